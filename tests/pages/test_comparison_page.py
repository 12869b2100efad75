import json

import pytest
import torch

from tests.pages.planted import judge_run, policy_run, reward_run
from tests.pages.test_page import assert_stands_alone, drawings, read
from toolkit.cli.main import main
from toolkit.pages.comparison_page import write_comparison
from toolkit.pages.run_files import read_run
from toolkit.reward.config import PREFERENCE_MODELS


def options(folder, trainer, **changed):
    run = {"started": ["now"], "command": "train", "versions": {}, "trainer": trainer, "seed": 0, "data_seed": None}
    (folder / "run.json").write_text(
        json.dumps(run | {"options": {"C": {"changed": changed, "default": {"size": 1}}}})
    )
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three models on the same held-out pairs: a plain one that knows nothing, and two others."""
    folder = tmp_path_factory.mktemp("runs")
    kinds = {"plain": "chance", "ours": "good", "other": "good"}
    made = {name: reward_run(folder / name, kind, seed=0) for name, kind in kinds.items()}
    options(made["plain"], "MultiScaleRewardTrainer", **PREFERENCE_MODELS["simple contrast"], learning_rate=1e-5)
    for name in ("ours", "other"):
        options(made[name], "MultiScaleRewardTrainer", **PREFERENCE_MODELS["multi-scale"], output_dir=name)
    return made


def test_runs_stand_side_by_side_with_paired_differences(runs, capsys):
    assert main(["report", *(str(runs[name]) for name in ("ours", "plain", "other"))]) == 0
    path = runs["ours"] / "comparison-with-plain-other" / "index.html"
    assert capsys.readouterr().out.strip() == str(path)
    page = read(path)
    assert_stands_alone(page)
    assert page.texts["h1"] == ["Comparison: ours, plain, other"]
    records = {name: read_run(folder) for name, folder in runs.items()}
    scores = {name: record.held_out.scores for name, record in records.items()}
    ranked = {name: (s["chosen"] > s["rejected"]).double() for name, s in scores.items()}
    gaps = ranked["ours"] - ranked["plain"]
    z = 2.2414  # of two comparisons at 97.5% each
    value, half = gaps.mean().item(), z * gaps.std().item() / len(gaps) ** 0.5
    # Two pairs of a prompt are independent here, and so the interval is that of all pairs, or a little wider
    first = next(text for text in page.texts["li"] if "ours is" in text)
    assert (
        f"ours is better than plain Bradley-Terry (plain) in held-out pairs ranked right: by {100 * value:.1f}"
        in first
    )
    assert "on 800 pairs that both have scored" in first
    low, high = (float(x) for x in first.partition("points (")[2].partition(")")[0].split(" to "))
    assert 100 * half <= (high - low) / 2 + 0.06 <= 115 * half
    rows = [text.split() for text in page.texts["tr"]]
    assert ["scales[response][token,", "segment,", "response][token,", "segment,", "response]"] not in rows
    settings = next(text for text in page.texts["tr"] if text.strip().startswith("learning_rate"))
    assert "1e-05" in settings
    assert not any(text.strip().startswith("output_dir") for text in page.texts["tr"])  # it does not matter
    assert len(drawings(page)) >= 4


def test_runs_that_share_no_pairs_are_compared_as_independent_ones(runs, tmp_path):
    other = reward_run(tmp_path / "elsewhere", "good", seed=5)
    columns = json.loads((other / "held_out.json").read_text())
    columns["row"] = [f"other {row}" for row in columns["row"]]
    (other / "held_out.json").write_text(json.dumps(columns))
    page = read(write_comparison([other, runs["ours"]]))
    text = next(text for text in page.texts["li"] if "ours is not shown to differ from elsewhere" in text)
    assert "not known to be the same" in text


def test_shared_pairs_are_found_wherever_they_stand(runs, tmp_path):
    folder = reward_run(tmp_path / "backwards", "good", seed=0)
    columns = json.loads((folder / "held_out.json").read_text())
    backwards = {name: column[:500][::-1] for name, column in columns.items()}
    (folder / "held_out.json").write_text(json.dumps(backwards))
    page = read(write_comparison([runs["ours"], folder]))
    text = next(text for text in page.texts["li"] if "backwards is not shown" in text)
    assert "0.0 points (0.0 to 0.0), on 500 pairs that both have scored" in text


def test_policies_are_compared_by_what_they_are_not_trained_on(tmp_path):
    good, hacked = (policy_run(tmp_path / kind, kind, seed=0) for kind in ("good", "hacked"))
    page = read(write_comparison([good, hacked]))
    assert "good has the most reward by gold_judge" in page.texts["p"][0]
    levels = [
        torch.tensor(
            [row["rewards/gold_judge/mean"] for row in read_run(folder).log][-12:], dtype=torch.float64
        ).mean()
        for folder in (good, hacked)
    ]
    text = next(text for text in page.texts["li"] if "good is better than hacked" in text)
    assert f"by {levels[0] - levels[1]:.3g} (" in text
    assert any("hacked: Reward hacking" in text for text in page.texts["li"])


def test_what_cannot_be_compared_is_refused(runs, tmp_path, capsys):
    policy = policy_run(tmp_path / "policy", "good", seed=0)
    assert main(["report", str(runs["ours"]), str(policy)]) == 2
    assert "'ours' ranks pairs, 'policy' is a policy's. Compare runs of one kind." in capsys.readouterr().err
    assert main(["report", str(runs["ours"]), str(runs["ours"])]) == 2
    assert "A run is given twice" in capsys.readouterr().err


def test_judges_are_compared_with_judges_and_by_their_own_curves(tmp_path):
    folders = [judge_run(tmp_path / kind, kind, seed=0) for kind in ("good", "deaf")]
    page = read(write_comparison(folders))
    assert any("The answers do not listen to the thoughts" in text for texts in page.texts.values() for text in texts)
    assert len(drawings(page)) == 6  # loss, accuracy, effective thoughts, answers, length, entropy
    with pytest.raises(ValueError, match="'good' is a judge's, 'policy' is a policy's"):
        write_comparison([folders[0], policy_run(tmp_path / "policy", "good", seed=0)])
