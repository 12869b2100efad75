"""A page about a closed loop, in which reward model and policy are trained in turns."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..stats.curves import changes_to_last
from ..stats.intervals import PairAccuracy
from .page import Block, Page, Paragraph, Picture, Section, Table, Verdicts, curve_picture, write_page
from .policy_verdicts import PARTS
from .reward_verdicts import difference_of
from .run_files import REMEDY, content, log_of
from .run_page import POLICY_CURVES, count_verdicts, footer
from .tables import interval_cells
from .verdicts import SURE, TRAINING, Verdict, less, percent, points, rounded

_ACCURACY = "Accuracy on answers of the current policy"
_AFTER, _ONCE = "after this round", "trained once"


class _Round(NamedTuple):
    number: int
    accuracies: dict[str, PairAccuracy]  # of each reward model, on pairs of the round's policy
    log: list[dict[str, Any]]  # of the policy's training in the round; empty until it has ended


def is_joint(folder: Path) -> bool:
    """Whether a folder holds a closed loop, a round of which has measured its reward models."""
    return any(folder.glob("round-*/accuracy.json"))


def write_joint_report(folder: Path) -> Path:
    """
    Write a page about a closed loop, `report/index.html` in its folder, as far as it has come.

    Args:
        folder (`Path`):
            Output folder of recipes/train_jointly.py.

    Returns:
        `Path`: The page.

    Raises:
        `ValueError`: If a file is damaged.
    """
    names = [file.parent.name.partition("-")[2] for file in folder.glob("round-*/accuracy.json")]
    rounds = [_read_round(folder, number) for number in sorted(int(name) for name in names if name.isdecimal())]
    return write_page(_build_page(folder, rounds), folder / "report")


def _read_round(folder: Path, number: int) -> _Round:
    file, log_file = (folder / f"round-{number}" / name for name in ("accuracy.json", "policy/log.json"))
    found = content(file)
    if not {_ONCE, _AFTER} <= found.keys() or any(set(a) != set(PairAccuracy._fields) for a in found.values()):
        raise ValueError(f"'{file}' is damaged: it holds no accuracies of '{_ONCE}' and '{_AFTER}'. {REMEDY}")
    log = log_of({"log_history": content(log_file, [])}, log_file)
    return _Round(number, {name: PairAccuracy(**a) for name, a in found.items()}, log)


def _build_page(folder: Path, rounds: list[_Round]) -> Page:
    log = _joined(rounds)
    verdicts = [_retraining(rounds[-1]), *_judged(log)]
    last = rounds[-1].accuracies[_AFTER]
    waiting = [str(each.number) for each in rounds if not each.log]
    remark = [Paragraph(f"The policy of round {waiting[0]} was not trained yet.")] if waiting else []
    policy: list[Block] = [Paragraph("No policy has been trained yet.")]
    if log:
        names = {key: (f"Reward by {key.split('/')[1]}", "mean") for key in log[0] if _is_reward(key)}
        policy = [
            curve_picture(log, title, {"": key}, unit, key.replace("/", "-"))
            for key, (title, unit) in (names | POLICY_CURVES).items()
            if any(row.get(key) for row in log)
        ]
        policy.append(Paragraph("The steps of all rounds follow each other. Each has a reward model of its own."))
    return Page(
        title=f"Closed loop: {'/'.join(folder.resolve().parts[-2:])}",
        lead=(
            f"After {len(rounds)} rounds the reward model ranks {percent(last)} of the policy's own pairs right. "
            f"{count_verdicts(verdicts)}"
        ),
        sections=[
            Section("What follows", [*remark, Verdicts(verdicts)]),
            Section(_ACCURACY, [_table(rounds), _picture(rounds)]),
            Section(TRAINING, policy),
        ],
        footer=footer(),
    )


def _joined(rounds: list[_Round]) -> list[dict[str, Any]]:
    """Logs of all rounds, one after the other, with steps that go on."""
    joined: list[dict[str, Any]] = []
    for each in rounds:
        before = joined[-1]["step"] if joined else 0
        joined += [{**row, "step": before + row["step"]} for row in each.log if "reward" in row and "step" in row]
    return joined


def _is_reward(key: str) -> bool:
    return key.startswith("rewards/") and key.endswith("/mean")


def _retraining(last: _Round) -> Verdict:
    """Whether, on the last policy's answers, the reward model that was trained on beats the one trained once."""
    gain = difference_of(last.accuracies[_AFTER], last.accuracies[_ONCE], 0.95)
    what = "the reward model that was trained on in every round"
    where = f"than the one that was trained once, on the answers of round {last.number}"
    if gain.low > 0:
        return Verdict("good", f"{what.capitalize()} is better {where}: by {points(gain)}.", _ACCURACY)
    if gain.high < 0:
        return Verdict("bad", f"{what.capitalize()} is worse {where}: by {points(less(gain))}.", _ACCURACY)
    return Verdict("open", f"{what.capitalize()} is not shown to be better {where}: {points(gain)}.", _ACCURACY)


def _judged(log: list[dict[str, Any]]) -> list[Verdict]:
    """Whether the judge's score, the last reward of the log, on which no policy is trained, rose over the rounds."""
    key = next((key for key in reversed(log[0]) if _is_reward(key)), None) if log else None
    values = torch.tensor([row[key] for row in log if key in row], dtype=torch.float64) if key else torch.zeros(0)
    if key is None or len(values) < 2 * PARTS:
        return []
    judge = key.split("/")[1]
    first, *_ = changes_to_last(values, PARTS)
    fell = [change for change in changes_to_last(values, PARTS, SURE) if change.high < 0]
    if fell:
        text = (
            f"{judge}, on which no policy is trained, fell by {rounded(less(min(fell)))} to the last fifth of steps."
        )
        return [Verdict("bad", text, TRAINING)]
    rose = f"by {rounded(first)} from the first fifth of all steps to the last"
    if first.low > 0:
        return [Verdict("good", f"{judge}, on which no policy is trained, rose {rose}.", TRAINING)]
    return [Verdict("open", f"{judge} is not shown to rise: it changed {rose}.", TRAINING)]


def _table(rounds: list[_Round]) -> Table:
    rows = [
        (f"{each.number}", name, *interval_cells(accuracy, 1, 100), str(accuracy.ties), f"{accuracy.pairs:,}")
        for each in rounds
        for name, accuracy in each.accuracies.items()
    ]
    return Table(("round", "reward model", "accuracy, %", "95% interval", "ties", "pairs"), rows)


def _picture(rounds: list[_Round]) -> Picture:
    names = list(rounds[0].accuracies)
    rows: list[Mapping[str, Any]] = [
        {"step": each.number, **{name: 100 * a.value for name, a in each.accuracies.items()}} for each in rounds
    ]
    picture = curve_picture(rows, _ACCURACY, {name: name for name in names}, "pairs ranked right, %", "accuracy")
    picture.image.axes[0].set(xlabel="round", xticks=[each.number for each in rounds])
    return picture._replace(caption="Each point is a round.", alt=picture.alt.replace("by step", "by round"))
