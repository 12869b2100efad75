"""Models side by side on held-out pairs: what `prefscale evaluate` and `recipes/evaluate_reward.py` do."""

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState
from torch import Tensor

from ..arguments import EVAL_SIZE, SANDBOX, names_files
from ..data.files import check_json_name
from ..data.loading import named_tables
from ..data.tastes import ATTRIBUTES
from ..pages.page import render_page, write_page
from ..pages.tables import print_table
from ..reward.loading import check_place
from ..sandbox.rows import HELD_OUT_SEED, sample_pairs
from ..training.command_line import run_recipe
from ..training.options import check_counts, check_number, help_from_docstring
from ..training.run_record import options_of, read_json, write_json, write_text
from .figures import Figures, figures_of
from .pairs import PairReader, Scored, ScoredPairs
from .report import build_page, plain, print_figures
from .rewardbench import result_files, section_results, subset_results, write_results
from .scorers import RULE, kind_of, longer_wins, open_scorer, score


@help_from_docstring
@dataclass
class EvaluationArguments:
    """
    Models side by side on the same pairs.

    Args:
        models (`list[str]`):
            Folders or hub names: multi-scale reward models, stock ones with one label, causal LMs, adapters of each,
            and folders of judges. Preferring the longer response is compared with them.
        dataset_name (`list[str]`):
            Held-out data: hub names, folders, files or patterns of files with preference pairs, files of RewardBench
            or RewardBench 2, or `sandbox`.
        dataset_config (`str`, *optional*):
            Configuration of a hub data set or folder.
        dataset_test_split (`str`, *optional*, defaults to `"test"`):
            Split of a hub data set or folder. A file is one split.
        eval_size (`int`, *optional*):
            Most rows of each file or data set, drawn at random; all by default, and 2,000 of the sandbox.
        batch_size (`int`, *optional*, defaults to `16`):
            Rows of a forward pass.
        max_length (`int`, *optional*):
            Most tokens of a row, to which prompts are shortened from the left; the model's context length by default.
        dtype (`str`, *optional*):
            Type of the weights; that in which they were saved by default, and bfloat16 on a GPU.
        plain_text (`bool`, *optional*, defaults to `False`):
            Whether stock models and causal LMs with a chat template read plain text as it is, as those do that were
            trained on plain text; else it is a message of the user and one of the assistant.
        output_file (`str`, *optional*):
            JSON file for the figures.
        scores_file (`str`, *optional*):
            JSON lines file for the scores of every pair.
        page (`str`, *optional*):
            An `.html` file, or a folder, for a page with pictures.
        rewardbench_dir (`str`, *optional*):
            Folder for the results in RewardBench's form, of one file.
    """

    models: list[str] = field(default_factory=list)
    dataset_name: list[str] = field(default_factory=list)
    dataset_config: str | None = None
    dataset_test_split: str = "test"
    eval_size: int | None = None
    batch_size: int = 16
    max_length: int | None = None
    dtype: str | None = None
    plain_text: bool = False
    output_file: str | None = None
    scores_file: str | None = None
    page: str | None = None
    rewardbench_dir: str | None = None

    def __post_init__(self) -> None:
        check_counts(self, "eval_size", "batch_size")
        check_number("max_length", self.max_length, 2, whole=True)
        check_place(None, self.dtype)
        if not self.models or len(set(self.models)) < len(self.models):
            raise ValueError(f"`models` is {self.models}. Name one model or more, each once.")
        if not self.dataset_name:
            raise ValueError("`dataset_name` is not set. Give files, folders, hub names, or 'sandbox'.")
        if self.rewardbench_dir and len(self.dataset_name) > 1:
            raise ValueError(f"`rewardbench_dir` holds results of one file, not of {self.dataset_name}. Give one.")


def main(args: EvaluationArguments) -> None:
    """
    Score, compare, print, and write what was asked for. On several processes each scores some responses.

    Args:
        args ([`EvaluationArguments`]):
            The options.

    Raises:
        `ValueError`: If a file is there that would be written over, a model is of no known kind, or data are wrong.
    """
    check_outputs(args)
    kinds = {name: kind_of(name) for name in args.models}
    pairs = read_pairs(args)
    scored = []
    for (name, kind), label in zip(kinds.items(), labels_of(args.models), strict=True):
        scorer = open_scorer(name, kind, args.batch_size, args.max_length, args.dtype, args.plain_text)
        scored += score(name, label, pairs, scorer, kind, args.batch_size)
        del scorer  # the next one needs its memory
    scored.append(longer_wins(pairs))
    if PartialState().is_main_process:
        figures = figures_of(scored, pairs)
        print_figures(figures)
        write_outputs(args, figures, scored, pairs)


def check_outputs(args: EvaluationArguments) -> None:
    """
    Refuse, before anything is scored, what could not be written or would be written over.

    Args:
        args ([`EvaluationArguments`]):
            The options.

    Raises:
        `ValueError`: Naming the file. Figures of an evaluation are written over by those of another one.
    """
    if args.output_file:
        check_json_name(args.output_file)
        file = Path(args.output_file)
        if file.exists() and "differences" not in read_json(file, dict, "Give another `output_file`."):
            raise ValueError(f"'{file}' exists and holds no figures of an evaluation. Give another `output_file`.")
    if args.scores_file:
        check_json_name(args.scores_file, (".jsonl",))
    once = [args.scores_file, args.page if _is_file(args.page) else None, args.rewardbench_dir]
    for name in once:
        if name and os.path.lexists(name) and PartialState().is_main_process:
            raise ValueError(f"'{name}' exists. Give another name, or remove it.")


def _is_file(page: str | None) -> bool:
    return bool(page) and str(page).endswith((".html", ".htm"))


def read_pairs(args: EvaluationArguments) -> ScoredPairs:
    """
    Pairs of all files and data sets.

    Args:
        args ([`EvaluationArguments`]):
            The options.

    Returns:
        [`~toolkit.evaluation.pairs.ScoredPairs`]

    Raises:
        `ValueError`: If a name leads nowhere or a row is wrong; the message names file, row and column.
    """
    reader = PairReader(args.eval_size)
    for name in args.dataset_name:
        if name == SANDBOX:
            reader.add(name, sample_pairs(args.eval_size or EVAL_SIZE, seed=HELD_OUT_SEED))
            continue
        split = None if names_files(name) else args.dataset_test_split
        for file, table in named_tables(name, split, args.dataset_config):
            reader.add(file, table)
    return reader.result()


def labels_of(models: list[str]) -> list[str]:
    """What tables call models: the last part of each path where these differ, else all of it."""
    last = [Path(name).name or name for name in models]
    return last if len(set(last)) == len(last) else models


def write_outputs(args: EvaluationArguments, figures: Figures, scored: list[Scored], pairs: ScoredPairs) -> None:
    """
    Write figures, scores, page and results as far as they were asked for.

    Args:
        args ([`EvaluationArguments`]):
            The options.
        figures ([`~toolkit.evaluation.figures.Figures`]), scored (`list[Scored]`):
            What was found.
        pairs ([`~toolkit.evaluation.pairs.ScoredPairs`]):
            What it was found on.
    """
    if args.output_file:
        write_json(Path(args.output_file), plain(figures._asdict()))
    if args.scores_file:
        Path(args.scores_file).parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in score_lines(scored, pairs))
        write_text(Path(args.scores_file), "".join(lines))
    if args.page:
        page = build_page(figures, scored, pairs, options_of(args)["changed"])
        if _is_file(args.page):
            Path(args.page).parent.mkdir(parents=True, exist_ok=True)
            write_text(Path(args.page), render_page(page))
        else:
            write_page(page, args.page)
    if args.rewardbench_dir:
        write_rewardbench(
            Path(args.rewardbench_dir), [each for each in scored if each.kind != RULE and each.gaps is None], pairs
        )


def write_rewardbench(folder: Path, scored: list[Scored], pairs: ScoredPairs) -> None:
    """Write the results of each model in RewardBench's form, and print them."""
    for each in scored:
        write_results(folder, each, pairs)
        results = subset_results(each, pairs)
        rows = [(name, f"{100 * value:.1f}") for name, value in (results | section_results(results)).items()]
        print_table(f"RewardBench's figures of {each.name}, in '{result_files(folder, each)[0]}'", ("", "%"), rows)


def score_lines(scored: list[Scored], pairs: ScoredPairs) -> list[dict[str, Any]]:
    """
    Scores of every pair and set, from which all figures can be made anew.

    Args:
        scored (`list[Scored]`):
            The scores.
        pairs ([`~toolkit.evaluation.pairs.ScoredPairs`]):
            The pairs.

    Returns:
        `list[dict[str, Any]]`: An object a pair: its `id`, number of the `prompt`, labels, gaps of its `attributes`,
        lengths in characters, scores of both sides by model, and in `gaps` what readers say of it; then one a set,
        with `correct`, the number of right responses, which come first; then one a ranked list, with its `ranks`.
    """
    values = {each.name: each.scores for each in scored if each.gaps is None}
    values |= {
        f"{each.name}: {k}": found for each in scored for k, found in {**each.scales, **each.attributes}.items()
    }
    lines: list[dict[str, Any]] = []
    for i, places in enumerate(zip(pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True)):
        line = {"id": pairs.ids[i], "prompt": int(pairs.prompt_numbers[i])}
        line |= {group: labels[i] for group, labels in pairs.groups.items()}
        more = {name: gaps[i].item() for name, gaps in pairs.attributes.items() if not gaps[i].isnan()}
        line |= {ATTRIBUTES: more} if more else {}
        line |= {"lengths": _of_sides(pairs.lengths, places)}
        line |= {"scores": {name: _of_sides(found, places) for name, found in values.items()}}
        gaps = {each.name: each.gaps[i].item() for each in scored if each.gaps is not None}
        lines.append(line | ({"gaps": gaps} if gaps else {}))
    for choice in pairs.sets:
        scores = {name: found[choice.responses].tolist() for name, found in values.items()}
        lines.append({"id": choice.id, "subset": choice.subset, "correct": choice.correct, "scores": scores})
    for ranked in pairs.lists:
        scores = {name: found[ranked.responses].tolist() for name, found in values.items()}
        lines.append({"id": ranked.id, "prompt": ranked.prompt, "ranks": ranked.ranks, "scores": scores})
    return lines


def _of_sides(values: Tensor, places: tuple[int, int]) -> dict[str, float]:
    return dict(zip(("chosen", "rejected"), values[list(places)].tolist(), strict=True))


def with_models(words: list[str]) -> list[str]:
    """A command line whose first words are models, with the option that they belong to."""
    return ["--models", *words] if words and not words[0].startswith("-") else words


CLASSES = (EvaluationArguments,)


def run() -> None:
    """Run the command with the options of the command line; words before the first of them are models."""
    sys.argv[1:] = with_models(sys.argv[1:])
    run_recipe(main, *CLASSES)


if __name__ == "__main__":
    run()
