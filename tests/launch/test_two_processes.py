"""Both trainers under `accelerate launch` with two processes, against one process at the same global batch."""

import json
import math
import socket

import pytest

from tests.helpers import run_python
from tests.launch.scripts import forked, train_both

# "MULTI_CPU" would silently run one process; this is what starts two with gloo.
LAUNCH = """\
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
use_cpu: true
num_machines: 1
machine_rank: 0
num_processes: 2
mixed_precision: 'no'
main_training_function: main
rdzv_backend: static
same_network: true
main_process_port: {port}
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def results(tmp_path_factory, tiny_folder, chat_pairs):
    """What each process has written: of one process, and of two."""
    work = tmp_path_factory.mktemp("processes")
    pairs = chat_pairs.add_column("strength", [1.0 + i % 3 for i in range(len(chat_pairs))])
    pairs.to_json(work / "pairs.jsonl")
    (work / "launch.yaml").write_text(LAUNCH.format(port=free_port()))
    base, script = tiny_folder(), train_both.__file__
    train_both.main(work, base)
    launch = {"config": str(work / "launch.yaml"), "script": script, "arguments": [str(work), base]}
    (work / "launches.json").write_text(json.dumps([launch]))
    two = run_python(forked.__file__, work / "launches.json")
    # Judged by what was written: a process now and then aborts when it leaves, after all is done.
    files = {name: work / f"result-{name}.json" for name in ("1-0", "2-0", "2-1")}
    for file in files.values():
        assert file.is_file(), two.stdout[-1000:] + two.stderr[-3000:]
    return {name: json.loads(file.read_text()) for name, file in files.items()}


def logged(log: list[dict], key: str) -> list[float]:
    return [entry[key] for entry in log if key in entry]


def without_times(log: list[dict]) -> list[dict]:
    """What does not hang on how fast a process was."""
    return [{key: entry[key] for key in entry if "time" not in key and "second" not in key} for entry in log]


def test_there_are_two_processes(results):
    counts = {name: (result["processes"], result["policy_processes"]) for name, result in results.items()}
    assert counts == {"1-0": (1, 1), "2-0": (2, 2), "2-1": (2, 2)}


def test_reward_losses_are_those_of_one_process(results):
    one, two = results["1-0"]["reward_log"], results["2-0"]["reward_log"]
    assert len(logged(one, "loss")) == 6
    assert logged(two, "loss") == pytest.approx(logged(one, "loss"), abs=1e-5)
    assert logged(two, "grad_norm") == pytest.approx(logged(one, "grad_norm"), rel=1e-4)
    for key in ("accuracy", "pairs", "margin", "accuracy/segment", "gate/token", "num_tokens"):
        assert logged(two, key) == pytest.approx(logged(one, key), abs=1e-5), key
    assert results["2-0"]["weight"] == results["2-1"]["weight"]


def test_evaluation_of_seven_pairs_is_that_of_one_process(results):
    # two processes of two pairs each see eight: the one that fills up must not count twice
    one, two = results["1-0"]["evaluation"], results["2-0"]["evaluation"]
    assert one["eval_pairs"] == two["eval_pairs"] == 7
    for key in ("eval_accuracy", "eval_ties", "eval_margin", "eval_min_reward", "eval_loss", "eval_accuracy/token"):
        assert two[key] == pytest.approx(one[key], abs=1e-5), key
    assert (two["eval_accuracy"] * 7) == pytest.approx(round(two["eval_accuracy"] * 7))


def test_heads_on_a_frozen_decoder_are_those_of_one_process(results):
    one, two = results["1-0"], results["2-0"]
    assert one["frozen_files"] == two["frozen_files"] > 3  # of states, which the processes computed in turns
    assert logged(two["frozen_log"], "loss") == pytest.approx(logged(one["frozen_log"], "loss"), abs=1e-5)
    assert len(logged(one["frozen_log"], "loss")) == 6
    for key in ("eval_loss", "eval_margin", "eval_pairs"):
        assert two["frozen_evaluation"][key] == pytest.approx(one["frozen_evaluation"][key], abs=1e-5), key
    assert one["frozen_rates"] == two["frozen_rates"] == results["2-1"]["frozen_rates"]


def test_a_judge_of_two_processes_is_that_of_one(results):
    # four thoughts about a pair, of which each of two processes has the two about one response
    one, two = results["1-0"], results["2-0"]
    assert (one["judge_processes"], two["judge_processes"]) == (1, 2)
    for key in ("pair_loss", "pair_weight", "advantage_std", "answers/letter_bias", "kl"):
        assert len(logged(one["judge_log"], key)) == 3
        assert logged(two["judge_log"], key) == pytest.approx(logged(one["judge_log"], key), abs=2e-6), key
    assert logged(two["judge_log"], "grad_norm") == pytest.approx(logged(one["judge_log"], "grad_norm"), rel=1e-4)
    assert logged(one["judge_log"], "advantage_std")[0] > 0.01
    assert without_times(results["2-1"]["judge_log"]) == without_times(two["judge_log"])


@pytest.mark.parametrize("name", ["lists", "by_prompt"])
def test_training_on_lists_is_that_of_one_process(results, name):
    # two processes hold lists of unlike size, and unlike numbers of pairs
    one, two = (results[process][f"{name}_log"] for process in ("1-0", "2-0"))
    assert len(logged(one, "loss")) == 4
    assert logged(two, "grad_norm") == pytest.approx(logged(one, "grad_norm"), rel=1e-4)
    for key in (
        "loss",
        "accuracy",
        "pairs",
        "margin",
        "num_tokens",
        *(["kendall_tau", "lists"] if name == "lists" else []),
    ):
        assert logged(two, key) == pytest.approx(logged(one, key), abs=1e-5), key
    one, two = (results[process][f"{name}_evaluation"] for process in ("1-0", "2-0"))
    assert one["eval_lists"] == two["eval_lists"] == 7
    for key in ("eval_loss", "eval_kendall_tau", "eval_top_1", "eval_accuracy", "eval_max_reward"):
        assert two[key] == pytest.approx(one[key], abs=1e-5), key


def test_policy_processes_stay_together(results):
    first, second = results["2-0"], results["2-1"]
    assert first["policy_weight"] == second["policy_weight"]
    assert first["policy_state"] == second["policy_state"]
    assert first["policy_state"][1][0] == 16  # two batches of eight responses, from both processes
    assert all(map(math.isfinite, logged(first["policy_log"], "grad_norm")))
    assert len(logged(first["policy_log"], "prefix/explained")) == 2


def test_processes_resume_where_they_were(results):
    # in the middle of a generation that serves two steps; each process has its own half of it
    for result in results.values():
        assert result["resumed_difference"] == 0
