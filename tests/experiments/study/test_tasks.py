"""Tasks are divided by what repeats in their pairs, the same way every time, and the committed division is that."""

import gzip
import json
import random
from collections import Counter

import pytest

from tests.helpers import ROOT
from toolkit.experiments.study.division import (
    DIVISION_SEED,
    FEWEST_CLUSTERS,
    INNER_FOLDS,
    OUTER_FOLDS,
    Pair,
    cluster_names,
    deal,
    divide,
    draw,
    fingerprint,
    identity,
    normal,
    said,
    seen_in,
    settle,
)
from toolkit.experiments.study.task_pairs import TaskPairs, cut, record, transferred
from toolkit.experiments.study.tasks import (
    DRAWS,
    GROUPED,
    KINDS,
    LEFT_OUT,
    NUMBERS,
    TASKS,
    TRANSFERS,
    Task,
    article,
    debate,
    first_turn,
    problem,
    request,
    story,
    turns,
    weights,
)

COMMITTED = json.loads((ROOT / "docs" / "results" / "decoder" / "tasks.json").read_text())
BY_NAME = {task.name: task for task in TASKS}


def user(text):
    return [{"role": "user", "content": text}]


def pair(prompt, chosen, rejected, strength=1.0, keys=(), in_test_file=False):
    return Pair(user(prompt), chosen, rejected, strength, (normal(prompt), *keys), in_test_file)


def made(clusters, size=3, test_from=None):
    """Pairs of `clusters` prompts, each with an answer of its own and one that many share."""
    return [
        pair(f"Question {c}?", f"answer {c} {i}", f"No comment {(c * size + i) % 40}.", in_test_file=in_test)
        for c in range(clusters)
        for i in range(size)
        for in_test in [test_from is not None and c >= test_from]
    ]


def sides_of(division, part):
    return [[division.pairs[i] for i in side] for side in (part.train, part.test)]


@pytest.mark.parametrize("clusters", [40, FEWEST_CLUSTERS])
def test_no_cluster_and_no_prompt_is_on_both_sides(clusters):
    division = divide(made(clusters))
    assert len(division.parts) == (OUTER_FOLDS if clusters < FEWEST_CLUSTERS else 1)
    for part in division.parts:
        train, test = ({division.clusters[i] for i in side} for side in (part.train, part.test))
        assert train
        assert test
        assert not train & test
        prompts = [{normal(said(p.prompt)) for p in side} for side in sides_of(division, part)]
        assert not prompts[0] & prompts[1]


def test_no_text_of_a_pair_that_counts_occurs_in_training():
    division = divide(made(FEWEST_CLUSTERS))
    [part] = division.parts
    train, test = sides_of(division, part)
    # The independent look: texts side by side, without sets and without the function that marks
    texts = [normal(text) for p in train for text in (p.chosen, p.rejected)]
    for each, seen in zip(test, part.seen, strict=True):
        assert seen == (texts.count(normal(each.chosen)) + texts.count(normal(each.rejected)) > 0)
    assert any(part.seen)


def test_outer_folds_test_every_pair_once_and_inner_folds_part_the_training_clusters():
    division = divide(made(40))
    assert Counter(i for part in division.parts for i in part.test) == Counter(range(120))
    for part in division.parts:
        assert sorted([*part.train, *part.test]) == list(range(120))
        folds = Counter(zip((division.clusters[i] for i in part.train), part.inner, strict=True))
        assert len(folds) == len({cluster for cluster, _ in folds})
        assert {fold for _, fold in folds} == set(range(INNER_FOLDS))


def test_the_order_of_the_rows_changes_nothing():
    pairs = made(FEWEST_CLUSTERS)
    first = divide(pairs)
    random.Random(1).shuffle(pairs)
    assert divide(pairs) == first
    assert fingerprint(divide(pairs)) == fingerprint(first)
    # A pair more is another division
    assert fingerprint(divide([*pairs, pair("One more?", "yes", "no")])) != fingerprint(first)


def test_the_fingerprint_depends_on_every_half_and_fold():
    division = divide(made(40))
    [part, *others] = division.parts
    changes = [
        part._replace(seen=[not part.seen[0], *part.seen[1:]]),
        part._replace(inner=[(part.inner[0] + 1) % INNER_FOLDS, *part.inner[1:]]),
        part._replace(train=part.train[1:], inner=part.inner[1:]),
    ]
    changed = {fingerprint(division._replace(parts=[change, *others])) for change in changes}
    assert len(changed | {fingerprint(division)}) == 4


def test_a_test_file_stays_the_test_half_and_its_prompts_leave_training():
    pairs = [*made(20, test_from=15), *(pair(f"question {c}", "new", "old") for c in (15, 16))]
    division = divide(pairs)
    [part] = division.parts
    train, test = sides_of(division, part)
    assert all(p.in_test_file for p in test)
    assert len(test) == 15
    assert len(train) == 45
    assert division.left_out["of a test cluster"] == 2


def test_of_too_many_pairs_every_cluster_keeps_some():
    division = divide(made(FEWEST_CLUSTERS, size=4), most=150)
    [part] = division.parts
    assert len(part.train) == 150 == len({division.clusters[i] for i in part.train})
    assert sum(part.seen) == 15
    assert 0 < part.seen.count(False) <= 75
    assert division.left_out["beyond the most"] == 4 * FEWEST_CLUSTERS - len(division.pairs)


def test_a_pair_judged_several_times_is_one_pair_as_most_see_it():
    judged = [
        pair("q", "a", "b", 1.0),
        pair("q", "b", "a", 9.0),
        pair("q ", "a", " b", 2.0),
        pair("r", "a", "b"),
        pair("r", "b", "a"),
        pair("s", "a", "b", in_test_file=False),
        pair("s", "a", "b", in_test_file=True),
    ]
    kept, left_out = settle(judged)
    by_prompt = {said(p.prompt).strip(): p for p in kept}
    assert by_prompt.keys() == {"q", "s"}
    assert (by_prompt["q"].chosen, by_prompt["q"].strength) == ("a", 1.5)  # of 1 and 2, which agree
    assert by_prompt["s"].in_test_file
    assert left_out == {"repeated": 3, "undecided": 2}


def test_clusters_are_what_keys_link():
    keys = [["d", "c"], ["x"], ["c", "b"], ["b", "a"], ["y", "x"]]
    assert cluster_names(keys) == ["a", "x", "a", "a", "x"]


def test_clusters_go_to_the_fold_with_fewest_pairs():
    # Whatever their order: the large one alone, as the small ones together are not more
    folds = deal({"large": 9, **{f"small {i}": 1 for i in range(8)}}, 2, "test")
    assert len({fold for cluster, fold in folds.items() if cluster != "large"} - {folds["large"]}) == 1
    held = Counter[int]()
    for cluster, fold in folds.items():
        held[fold] += 9 if cluster == "large" else 1
    assert max(held.values()) - min(held.values()) <= 9


def test_folds_follow_from_names_and_purpose():
    sizes = {f"cluster {i}": 1 + i % 3 for i in range(60)}
    folds = deal(sizes, 5, "outer")
    assert deal(dict(reversed(sizes.items())), 5, "outer") == folds
    assert deal(sizes, 5, "inner") != folds


def test_draws_are_nested_and_take_a_pair_of_each_cluster_before_a_second():
    division = divide(made(40))
    part = division.parts[0]
    orders = [draw(division.pairs, division.clusters, part.train, f"draw {number}") for number in DRAWS]
    count = len({division.clusters[i] for i in part.train})
    for order in orders:
        assert sorted(order) == part.train
        rounds = [Counter(division.clusters[i] for i in order[k * count : (k + 1) * count]) for k in range(3)]
        assert all(set(each.values()) == {1} for each in rounds)
    assert len({tuple(order[:count]) for order in orders}) == len(DRAWS)
    assert sorted(NUMBERS) == list(NUMBERS)


def test_normal_texts_are_letters_and_figures():
    assert normal("It’s  2, OK?") == normal("its 2 ok") == "its2ok"
    assert normal("上海！") == "上海"
    assert normal(" -1 ") == "1"
    assert normal(" += ") == "+="
    assert seen_in([pair("Why?", "a", "b")], [pair("x", "WHY", "c"), pair("x", "d", "c")]) == [True, False]


def test_prompts_lose_whole_turns_first():
    dialogue = [
        {"role": role, "content": text}
        for role, text in zip(["assistant", "user"] * 2, ["aa", "bb", "cc", "dd"], strict=True)
    ]
    assert cut(dialogue, 100, False) == dialogue[1:]  # begins with the user
    assert cut(dialogue, 5, False) == dialogue[3:]  # a response alone cannot begin
    assert cut(dialogue, 1, False) == [{"role": "user", "content": "d"}]
    assert cut(user("abcdef"), 4, True) == user("abcd")
    assert cut(user("abcdef"), 4, False) == user("cdef")


def test_what_repeats():
    def row(prompt, group=None):
        return {"prompt": prompt if isinstance(prompt, list) else user(prompt), "group": group}

    assert first_turn(row([{"role": "system", "content": "s"}, *user("u")])) == ["u"]
    long = "a turn that nobody says twice within one data set"
    assert turns(row(user("hi") + user(long))) == [long]
    assert turns(row("hi")) == ["hi"]
    assert article(row("Summarize the article.\n\nTwo men.")) == ["twomen"]
    assert story(row("What?", "50827-1")) == ["50827"]
    assert problem(row("f", "java-99")) == problem(row("g", "cpp-99")) != problem(row("g", "cpp-9"))
    assert debate(row("Debate: A\nSide: x")) == debate(row("Debate: A\nSide: y"))
    assert request(row("remove key 'a' from `d`")) == request(row("remove key 'b' from `e`"))


def test_tasks_and_transfers_name_each_other():
    assert len(BY_NAME) == len(TASKS) == len(COMMITTED["tasks"])
    files = [file for task in TASKS for file in (*task.files, task.test_file) if file]
    assert len(files) == len(set(files))
    for train, test in (*TRANSFERS, *LEFT_OUT):
        assert {*train, *test} <= BY_NAME.keys()
        assert not set(train) & set(test)
    assert [{BY_NAME[name].kind for name in test} for _, test in LEFT_OUT] == [{kind} for kind in KINDS]


def test_kinds_weigh_the_same():
    names = ["SummEval", "UKP", "ROSE"]
    assert weights(names) == [0.25, 0.5, 0.25]
    assert sum(weights(list(BY_NAME))) == pytest.approx(1)


def write(folder, name, rows):
    with gzip.open(folder / f"{name}.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


def test_a_task_is_read_cut_and_counted(tmp_path):
    rows = [
        {"prompt": f"{'x' * 10} {i}?", "chosen": f"yes {i}", "rejected": f"no {i}", "strength": 1 + i % 2}
        for i in range(30)
    ]
    write(tmp_path, "a", [*rows, rows[0], {**rows[1], "chosen": "long" * 9}, {**rows[2], "rejected": "yes 2"}])
    task = TaskPairs(str(tmp_path), Task("t", "k", ("a",), first_turn, "u", prompt_length=8, response_length=30))
    assert task.counts == {
        "rows": 33,
        "no preference": 1,
        "response too long": 1,
        "prompts cut": 31,
        "repeated": 1,
        "undecided": 0,
        "beyond the most": 0,
    }
    assert len(task.pairs) == 30
    assert all(len(said(prompt)) == 8 for prompt in task.pairs["prompt"])
    assert set(task.pairs["strength"]) == {1 / 1.5, 2 / 1.5}  # 48 in all over 32 rows
    assert task.training == task.testing == list(range(30))
    part = task.parts[0]
    assert set(task.smaller(part, 1, 5)) < set(task.smaller(part, 1, 10)) < set(part.train)
    assert record(task)["divided"] == f"{OUTER_FOLDS} folds"


def test_a_transfer_trains_on_nothing_that_it_tests(tmp_path):
    for name, first in (("a", 0), ("b", 20)):
        write(
            tmp_path,
            name,
            [{"prompt": f"Q{i}", "chosen": f"{i % 7} is", "rejected": f"{i} not"} for i in range(first, first + 30)],
        )
    a, b = (TaskPairs(str(tmp_path), Task(name, "k", (name,), first_turn, "u")) for name in "ab")
    [kept], test, seen = transferred([a], b)
    asked = {int(said(a.division.pairs[i].prompt)[1:]) for i in kept}
    assert asked == set(range(20))
    assert len(test) == 30
    assert all(seen)  # "0 is" to "6 is" are in all of both


def test_a_file_without_its_groups_is_named(tmp_path):
    write(tmp_path, "a", [{"prompt": "q", "chosen": "y", "rejected": "n"}])
    with pytest.raises(ValueError, match=r"a.jsonl.gz' has no column 'group', by which 't' is divided"):
        TaskPairs(str(tmp_path), Task("t", "k", ("a",), GROUPED[0], "u"))


def test_rows_fit_where_they_are_read():
    assert COMMITTED["seed"] == DIVISION_SEED
    assert max(task["tokens"]["longest"] for task in COMMITTED["tasks"].values()) <= 1024


def test_an_identity_is_that_of_all_three_texts():
    assert len({identity(pair(*texts)) for texts in [("a", "b", "c"), ("a", "c", "b"), ("b", "a", "c")]}) == 3


@pytest.mark.parametrize("name", BY_NAME)
def test_the_page_has_the_figures_of_the_committed_division(name):
    page = (ROOT / "docs" / "decoder_grid.md").read_text()
    first, second = (row.split(" | ") for row in page.splitlines() if row.startswith(f"| {name} |"))
    task, left_out = COMMITTED["tasks"][name], COMMITTED["tasks"][name]["left_out"]
    train, test, seen = (sum(part[key] for part in task["parts"]) for key in ("train", "test", "seen"))
    halves = f"{train:,} + {test - seen:,}" if len(task["parts"]) == 1 else f"{test - seen:,}"
    assert first[3:] == [f"{task['clusters']:,}", task["divided"], halves, f"{seen} |"]
    assert second[1:] == [
        *(f"{each:,}" for each in (BY_NAME[name].prompt_length, BY_NAME[name].response_length)),
        *(f"{left_out[why]:,}" for why in ("rows", "response too long", "repeated", "undecided", "beyond the most")),
        f"{left_out['prompts cut']:,}",
        f"{task['tokens']['pairs'] / 1000:.0f}",
        f"{task['tokens']['distinct'] / 1000:.0f} |",
    ]
