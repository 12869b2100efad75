import json

import numpy as np
import pytest

from tests.pages.test_page import assert_stands_alone, drawings, read
from toolkit.cli.main import main
from toolkit.stats.intervals import PairAccuracy, wilson_interval

PAIRS = 1000


def joint_run(folder, after=(0.70, 0.74, 0.78), gold=(0.0, 0.5, 1.0)):
    """What three rounds leave: accuracies of three reward models, and the policy's log."""
    rng = np.random.default_rng(0)
    for number, (share, level) in enumerate(zip(after, gold, strict=True), 1):
        place = folder / f"round-{number}"
        (place / "policy").mkdir(parents=True)
        shares = {"trained once": 0.70, "before this round": 0.70, "after this round": share}
        found = {
            name: PairAccuracy(*wilson_interval(p * PAIRS, PAIRS), 0, PAIRS)._asdict() for name, p in shares.items()
        }
        (place / "accuracy.json").write_text(json.dumps(found))
        log = [
            {
                "step": step,
                "loss": 0.0,
                "reward": rng.normal(),
                "rewards/RewardFunction/mean": rng.normal(),
                "rewards/gold_judge/mean": level + 0.1 * rng.normal(),
                "kl": 0.1,
            }
            for step in range(1, 11)
        ]
        (place / "policy" / "log.json").write_text(json.dumps([*log, {"train_runtime": 1.0, "step": 10}]))
    return folder


def test_the_page_of_a_closed_loop(tmp_path, capsys):
    assert main(["report", str(joint_run(tmp_path))]) == 0
    path = tmp_path / "report" / "index.html"
    assert capsys.readouterr().out.strip() == str(path)
    page = read(path)
    assert_stands_alone(page)
    assert page.texts["h1"][0].startswith("Closed loop: ")
    assert "After 3 rounds the reward model ranks 78.0%" in page.texts["p"][0]
    retrained, judged = page.texts["li"][-2:]
    # Wilson's 0.75328 below 0.78 and 0.72760 above 0.70: 0.08 − √(0.02672² + 0.02760²)
    assert "better than the one that was trained once, on the answers of round 3: by 8.0 points (4.2 to" in retrained
    assert "gold_judge, on which no policy is trained, rose by" in judged
    assert [row for row in page.texts["tr"] if row.strip().startswith("3after this round78.0")]
    assert any(alt.startswith("Reward by gold_judge by step") for alt in page.values("img", "alt"))
    assert len(drawings(page)) == 4  # accuracy by round, two rewards, divergence


def test_a_loop_that_gets_worse_is_told(tmp_path):
    main(["report", str(joint_run(tmp_path, after=(0.70, 0.65, 0.60), gold=(1.0, 0.5, 0.0)))])
    page = read(tmp_path / "report" / "index.html")
    assert any("worse than the one that was trained once" in text for text in page.texts["li"])
    assert any("gold_judge, on which no policy is trained, fell by" in text for text in page.texts["li"])


def test_a_loop_in_its_first_round_is_shown_as_far_as_it_is(tmp_path):
    folder = joint_run(tmp_path)
    for number in (1, 2, 3):
        (folder / f"round-{number}" / "policy" / "log.json").unlink()
    assert main(["report", str(folder)]) == 0
    page = read(tmp_path / "report" / "index.html")
    assert any("The policy of round 1 was not trained yet" in text for text in page.texts["p"])


@pytest.mark.parametrize("text", ['{"a": ', '{"after this round": {"value": 1}}', "[]"])
def test_damaged_accuracies_are_named(tmp_path, capsys, text):
    folder = joint_run(tmp_path)
    (folder / "round-2" / "accuracy.json").write_text(text)
    assert main(["report", str(folder)]) == 2
    assert f"{folder}/round-2/accuracy.json' is damaged" in capsys.readouterr().err
