"""What trained thoughts are worth: the ways of training with which DWRL is compared, and a table of what came out."""

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ..generative.trainer import ThoughtTrainer
from ..generative.weights import Loss, ThoughtWeights
from ..pages.tables import interval_cells, print_table
from ..stats.resampling import bootstrap_interval

Cells = dict[str, dict[int, dict[str, Any]]]  # by arm and seed


class Unweighted(ThoughtTrainer):
    """Without the pair's weight: the gap of the utilities is pushed alike however large it is."""

    def _loss(self, inputs: list[dict[str, Any]]) -> Loss:
        return lambda values: values[:, 1] - values[:, 0]


class Verdicts(ThoughtTrainer):
    """Drawn verdicts: the i-th on both responses are compared, rewarded, and normalised in the group as GRPO does."""

    def _weights(self, loss: Loss) -> ThoughtWeights:
        omega, chance = self._log_answers.exp(), torch.Generator().manual_seed((self.args.seed << 31) + self._step)
        good = (torch.rand(omega.shape, generator=chance) < omega).float()
        rewards = ((1 + good[:, :1] - good[:, 1:]) / 2).expand_as(good)
        spread, mean = torch.std_mean(rewards, -1, keepdim=True)
        advantages = (rewards - mean) / (spread + 1e-4) / omega.size(-1)
        other = -omega / (1 - omega).clamp(min=1e-6)  # slope of log(1 - omega), of the other answer, by log omega
        return ThoughtWeights(advantages, advantages * torch.where(good > 0, 1.0, other))


JUDGES = {"dwrl": ThoughtTrainer, "verdicts": Verdicts, "unweighted": Unweighted, "frozen": ThoughtTrainer}


def read_cells(folder: str | Path) -> Cells:
    """Cells of a folder, `ARM-SEED.json`."""
    found: Cells = {}
    for file in sorted(Path(folder).glob("*-*.json")):
        arm, _, seed = file.stem.rpartition("-")
        found.setdefault(arm.replace("_", " "), {})[int(seed)] = json.loads(file.read_text())
    return found


def ranked_right(cell: dict[str, Any], side: str = "") -> Tensor:
    """Whether each held-out pair is ranked right, a tie by half, `(P,)` float64."""
    gaps = torch.tensor(cell[f"{side}chosen"], dtype=torch.float64) - torch.tensor(cell[f"{side}rejected"])
    return (gaps.sign() + 1) / 2


def print_arms(cells: Cells, beside: tuple[str, ...] = ("start", "dwrl")) -> None:
    """Print the accuracy of each arm, and by how many points it is above others with the same seeds on the same pairs,
    with intervals of a bootstrap over seeds and pairs."""
    rows = []
    for arm, own in cells.items():
        right = torch.stack([ranked_right(cell) for cell in own.values()])
        row = [arm, ", ".join(map(str, own)), *interval_cells(bootstrap_interval(right), 1, 100)]
        for other in beside:
            shared = [seed for seed in own if seed in cells.get(other, {})]
            if other == arm or not shared:
                row += ["–", ""]
                continue
            less = torch.stack([ranked_right(own[s]) - ranked_right(cells[other][s]) for s in shared])
            row += interval_cells(bootstrap_interval(less), 1, 100)
        rows.append(tuple(row))
    for arm, own in cells.items():
        if all("parsed chosen" in cell for cell in own.values()):
            right = torch.stack([ranked_right(cell, "parsed ") for cell in own.values()])
            found = interval_cells(bootstrap_interval(right), 1, 100)
            rows.append((f"{arm}, after parsed thoughts", ", ".join(map(str, own)), *found, *[""] * 2 * len(beside)))
    header = ("arm", "seeds", "right, %", "95%", *(part for other in beside for part in (f"above {other}", "95%")))
    print_table("Held-out pairs ranked right", header, rows)


def print_policies(folder: str | Path) -> None:
    """Print what policies gained in gold reward by the arm of their reward, over its seeds."""
    gains: dict[str, list[float]] = {}
    for file in sorted(Path(folder).glob("*.json")):
        gains.setdefault(file.stem.rsplit("-", 2)[0], []).append(json.loads(file.read_text())["gain"][0])
    rows = [
        (arm.replace("_", " "), f"{fmean(own):.2f}", ", ".join(f"{gain:.2f}" for gain in own))
        for arm, own in gains.items()
    ]
    print_table("Gold reward gained by policies", ("reward", "mean", "each"), rows)
