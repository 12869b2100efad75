"""Every command of the pages, and how it is tested: `python -m tests.documented` prints the list."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.helpers import ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "recipes/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
TOOLS = ("prefscale", "make", "python", "accelerate", "pip", "vllm")
# By how a command begins, the longest first: the test that runs it, at a small size, or what it needs that tests lack.
TESTED = {
    "prefscale annotators": "tests/jobs/test_annotators.py",
    "prefscale check": "tests/cli/test_check.py",
    "prefscale evaluate": "tests/evaluation/test_command.py; with two processes tests/launch/test_recipes.py",
    "prefscale explain": "tests/launch/test_documented.py",
    "prefscale export": "tests/reward/test_export.py",
    "prefscale init": "tests/cli/test_init.py",
    "prefscale joint": "tests/launch/test_recipes.py",
    "prefscale plan": "tests/planning/test_plan.py",
    "prefscale reinforce": "tests/launch/test_documented.py",
    "prefscale reinforce --accelerate_config zero3 --num_processes 2": "tests/launch/test_backends.py",
    "prefscale reinforce --accelerate_config zero3 --num_processes 7": "needs eight GPUs and vLLM",
    "prefscale report": "tests/launch/test_documented.py",
    "prefscale report runs/study": "tests/experiments/study/test_results.py",
    "prefscale report runs/grid": "tests/experiments/study/test_results.py",
    "prefscale reward": "tests/launch/test_documented.py",
    "prefscale reward --num_processes 2 --config frozen_reward": "tests/launch/test_two_processes.py",
    "prefscale reward --accelerate_config zero3 --config": "needs eight GPUs",
    "prefscale reward --accelerate_config zero3 --num_processes 2": "tests/launch/test_backends.py",
    "prefscale reward --num_processes 2": "tests/launch/test_two_processes.py",
    "prefscale sandbox": "tests/cli/test_main.py",
    "prefscale serve": "tests/serving/test_server.py",
    "prefscale verify": "tests/reward/test_saved_checks.py",
    "recipes/demo.py": "tests/launch/test_recipes.py",
    "recipes/evaluate_reward.py": "tests/launch/test_recipes.py",
    "recipes/experiments/benchmark": "tests/launch/test_benchmarks.py",
    "recipes/experiments/benchmark_serving.py": "needs minutes; tests/serving/test_server.py holds what it times",
    "recipes/experiments/cache_states.py": "tests/launch/test_grid.py",
    "recipes/experiments/calibrate_sandbox.py": "needs ten minutes; tests/sandbox/test_rows.py holds its parts",
    "recipes/experiments/check_templates.py": "tests/data/test_sampled.py, on six templates",
    "recipes/experiments/compare_reward.py": "needs an hour; tests/reward/test_trainer.py holds both of its arms",
    "recipes/experiments/divide_tasks.py": "tests/experiments/study/test_tasks.py",
    "recipes/experiments/gpu_hour.py": "tests/launch/test_gpu_hour.py, in its tiny version",
    "recipes/experiments/judged_policies.py": "needs an hour; tests/generative/test_reward.py rewards a policy",
    "recipes/experiments/make_decoder.py": "tests/experiments/test_real_decoder.py, on a small file of its own",
    "recipes/experiments/measure_readers.py": "needs cached states; tests/experiments/test_readers.py runs its parts",
    "recipes/experiments/measure_lists.py": "needs half an hour; tests/reward/test_list_training.py trains both ways",
    "recipes/experiments/measure_shapes.py": "needs an hour; tests/reward/test_centring.py trains on two prompts",
    "recipes/experiments/sample_efficiency.py": "needs an hour and the models of `make demo`",
    "recipes/experiments/study.py": "tests/experiments/study/test_miniature.py",
    "recipes/experiments/study.py --grid decoder": "tests/launch/test_grid.py",
    "recipes/experiments/study.py --grid lora": "tests/experiments/study/test_lora.py",
    "recipes/experiments/study.py --grid real": "tests/experiments/study/test_real.py",
    "recipes/experiments/study.py --grid text": "tests/experiments/study/test_text_policy.py",
    "recipes/experiments/sweep_architectures.py": "tests/experiments/architectures/test_trial.py",
    "recipes/experiments/thoughts.py": "needs hours; tests/experiments/test_thoughts.py holds what is its own",
    "recipes/pretrain_decoder.py": "needs ten minutes; tests/test_recipes.py reads its options",
    "recipes/train": "tests/launch/test_recipes.py",
    "make": "CI makes `check` and `test`; the others make what their pages say",
    "pip": "tests/launch/test_wheel.py installs the package",
    "pytest": "CI",
    "tests.": "tests/launch, or the module of the same name, at a small size",
    "vllm": "needs a GPU and vLLM",
}


class Documented(NamedTuple):
    """A command of a page."""

    page: str
    words: tuple[str, ...]  # from the program's name on

    @property
    def text(self) -> str:
        return shlex.join(self.words).replace("'", "")

    @property
    def how(self) -> str | None:
        """How it is tested; `None` where nobody has said."""
        kind = max((start for start in TESTED if self.text.startswith(start)), key=len, default=None)
        return None if kind is None else TESTED[kind]


def documented() -> Iterator[Documented]:
    """Every command, page by page, in the order in which it stands there."""
    for page in PAGES:
        for line in _lines(page.read_text()):
            words = _words(line)
            if words:
                yield Documented(str(page.relative_to(ROOT)), words)


def _lines(text: str) -> Iterator[str]:
    """Lines of blocks, those that end in a backslash with the next, and commands that stand in the cells of tables."""
    parts = re.split(r"^```(\w*)\n", text, flags=re.MULTILINE)
    for place in range(0, len(parts), 2):
        # With blocks come, in turns, text, a kind, a block, and the empty kind of its end
        if place % 4 == 2 and parts[place - 1] == "bash":
            yield from parts[place].replace("\\\n", " ").splitlines()
        elif place % 4 == 0:
            yield from re.findall(r"^ {4}(\S.*)", parts[place].replace("\\\n", " "), flags=re.MULTILINE)
            yield from re.findall(r"`((?:recipes/\S+\.py|\.venv/bin/python|python -m tests\.)[^`]*)`", parts[place])


def _words(line: str) -> tuple[str, ...]:
    """Words of a command from its program's name on, without what starts the program; none where it is none."""
    line = re.sub(r"\s+#.*$", "", line.strip())
    try:
        words = shlex.split(line)
    except ValueError:  # prose
        return ()
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    if not words or (Path(words[0]).name not in TOOLS and not words[0].startswith("recipes/")):
        return ()
    script = next((place for place, word in enumerate(words) if word.startswith("recipes/") and word[-3:] == ".py"), 0)
    if Path(words[0]).name == "python":
        script = script or 1 + (words[1:2] == ["-m"])
    return tuple(words[script:])


def main() -> None:
    """Print the list."""
    for command in documented():
        print(f"{command.page}: {command.text}\n    {command.how}")


if __name__ == "__main__":
    main()
