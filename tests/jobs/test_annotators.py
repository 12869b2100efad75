"""`prefscale annotators`, on states whose annotators are planted, and as a command on a tiny decoder."""

import json

import pytest
import torch

from toolkit.cli.main import main
from toolkit.jobs.annotators import compare, shared_share
from toolkit.reward.rates import StatePairs


def labelled(strength, everybody=True, pairs=300, people=4):
    """States of 16 numbers, of which all like the first and every second person dislikes the second one."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2 * pairs, 4, 16, generator=generator)
    rows = torch.arange(2 * pairs).view(-1, 2).repeat(people, 1)
    who = torch.arange(people).repeat_interleave(pairs)
    likes = torch.zeros(people, 16)
    likes[:, 0], likes[:, 1] = 1, strength * torch.tensor([1.0, -1.0]).repeat(people // 2)
    gaps = ((states[rows[:, 0], 1] - states[rows[:, 1], 1]) * likes[who]).sum(1)
    wins = torch.rand(len(rows), generator=generator) < torch.sigmoid(gaps)
    rows = torch.where(wins[:, None], rows, rows.flip(1))
    prompts = rows.min(1).values // 4  # two pairs each
    some = slice(None) if everybody else prompts % people == who
    return StatePairs(states, rows[some], {}, prompts[some]), who[some]


@pytest.mark.parametrize("strength", [0.0, 2.0])
def test_people_who_differ_are_told_from_those_who_do_not(strength):
    found = compare(*labelled(strength), seed=0)
    assert (found.annotators, found.pairs, found.compared) == (4, 1200, "pair")
    if strength:
        assert found.p_value == 0.01
        assert min(found.gain.low, found.by_names.low) > 0.05
        assert found.own > found.shared + 0.05
    else:
        assert found.p_value > 0.05
        assert found.gain.value < 0.005


def test_what_softer_weights_gain_is_not_owed_to_people():
    # Three names on every label of one taste that is not linear: weights of all, which take each label three times,
    # are too sure, and anybody's own are less so
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(400, 4, 64, generator=generator)
    rows = torch.arange(400).view(-1, 2)
    gaps = (states[rows[:, 0], 1] - states[rows[:, 1], 1])[:, 0]
    wins = torch.rand(len(rows), generator=generator) < torch.sigmoid(gaps)
    rows = torch.where(wins[:, None], rows, rows.flip(1)).repeat(3, 1)
    who = torch.arange(3).repeat_interleave(200)
    found = compare(StatePairs(states, rows, {}, rows.min(1).values // 4), who, seed=0)
    assert found.gain.low > 0
    assert found.by_names.value == pytest.approx(0, abs=1e-12)  # all said the same of every pair


def test_people_who_saw_different_prompts_are_not_compared():
    with pytest.raises(ValueError, match=r"No two of the 4 annotators labelled pairs of one prompt, so that people"):
        compare(*labelled(0.0, everybody=False), seed=0)


def test_labels_shared_with_others_are_counted_by_people_and_not_by_labels():
    # Of group 0 two people have labels; of group 1 one has two, of group 2 one has one.
    group, who = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([5, 6, 5, 5, 6])
    assert shared_share(group, who) == pytest.approx(2 / 5)


def test_the_command_writes_and_says_what_it_found(tiny_folder, tmp_path, monkeypatch, capsys):
    rows = [
        {"prompt": f"Which of {n}?", "chosen": f"one {n}" * (n % 3 + 1), "rejected": f"two {n}", "annotator": name}
        for n in range(10)
        for name in ("Ann", "Bo")
    ]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--model_name_or_path", str(tiny_folder()), "--dataset_name", str(data), "--report_to", "none"]
    monkeypatch.setattr("sys.argv", ["prefscale"])
    main(["annotators", *words, "--output_dir", str(tmp_path / "out"), "--use_cpu", "true", "--bf16", "false"])
    said = capsys.readouterr().out
    assert "Annotators, by their labels of the same pair" in said
    assert "They are not shown to differ by more than noise" in said
    found = json.loads((tmp_path / "out" / "annotators.json").read_text())
    assert (found["annotators"], found["pairs"]) == (2, 20)
