"""The page of REINFORCE on real text."""

from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ...pages.page import Block, Example, Examples, Page, Paragraph, Picture, Response, Section
from ...pages.page import Table as Cells
from ...stats.curves import tokens_to_level
from ...stats.resampling import bootstrap_interval
from .grid import Study
from .tables import Estimate, Table, interval_text
from .text_policy import (
    ARMS,
    GOLD,
    MIX,
    PROXY,
    RLOO,
    SIMPLE,
    TextPolicyStudy,
    course,
    parts,
    policy_name,
    prompts_of,
    rewards,
)

JUDGES = {f"{GOLD}, {SIMPLE}": "gold (simple contrast)", f"{GOLD}, {MIX}": "gold (multi-scale)", PROXY: "own proxy"}
COLOURS = dict(zip(ARMS, ("#E69F00", "#009E73", "#0072B2", "#CC79A7"), strict=True))


def text_policy_page(study: Study) -> tuple[Page, dict[str, Any]]:
    """The page as far as the runs have come, and its tables."""
    settings: TextPolicyStudy = study.settings
    table = end_table(study)
    lead = (
        "Policies tuned on proxy rewards, their responses to held-out prompts judged by two gold rewards, which are "
        "models of other pairs and other prompts. In nats; brackets are 95% intervals over "
        f"{len(settings.seeds)} seeds and {settings.evaluation_prompts} prompts; differences are paired."
    )
    sections = [Section("At the end", _end(study, table)), Section("On the way", _way(study))]
    if examples := _examples(study):
        sections.append(Section("Responses before and after", [examples]))
    return Page("REINFORCE on real text", lead, sections), {"end": table}


def end_table(study: Study) -> Table:
    """How far each arm's rewards rose from the start to the end; differences are those from RLOO's rise."""
    risen: dict[str, dict[str, Tensor]] = {}
    for arm in ARMS:
        for name in JUDGES:
            if (found := rewards(study, arm, name)) is not None:
                risen.setdefault(arm, {})[name] = found[:, -1] - found[:, 0]
    table: Table = {}
    for arm, own in risen.items():
        for name, values in own.items():
            # Proxies of two models have no scale in common
            paired = arm != RLOO and name != PROXY and RLOO in risen
            less = bootstrap_interval(values - risen[RLOO][name]) if paired else None
            table.setdefault(arm, {})[JUDGES[name]] = Estimate(bootstrap_interval(values), less)
    return table


def optimum(gold: Tensor) -> tuple[int, float]:
    """The evaluation at which a mean gold curve `(T,)` is highest, and how far it has fallen at its end."""
    best = int(gold.argmax())
    return best, float(gold[best] - gold[-1])


def at_divergence(divergence: Tensor, gold: Tensor, level: float) -> float | None:
    """Gold `(T,)` where the divergence `(T,)` first reaches a level, interpolated; none where it does not."""
    behind = (divergence >= level).nonzero()
    if len(behind) == 0:
        return None
    i = int(behind[0])
    if i == 0:
        return float(gold[0])
    share = (level - divergence[i - 1]) / (divergence[i] - divergence[i - 1])
    return float(gold[i - 1] + share * (gold[i] - gold[i - 1]))


def _end(study: Study, table: Table) -> list[Block]:
    if not table:
        return [Paragraph("No arm has all its seeds yet.")]
    header = [text for judge in JUDGES.values() for text in (f"{judge}, rise", "above RLOO's")]
    rows = []
    for arm, row in table.items():
        cells = [arm]
        for judge in JUDGES.values():
            found = row[judge]
            cells += [interval_text(found.value, 1, "{:.2f}", sign=True)]
            cells += [interval_text(found.difference, 1, "{:.2f}", sign=True) if found.difference else "–"]
        rows.append(tuple(cells))
    return [Cells(("arm", *header), rows)]


def _way(study: Study) -> list[Block]:
    name = f"{GOLD}, {SIMPLE}"
    curves = {arm: found.mean(2) for arm in ARMS if (found := rewards(study, arm, name)) is not None}
    if RLOO not in curves:
        return [Paragraph("RLOO has not all its seeds yet.")]
    ways = {arm: course(study, arm) for arm in curves}
    level = curves[RLOO][:, -1].mean().item()
    shared = min(divergence.mean(0)[-1].item() for divergence, _ in ways.values())
    rows = []
    for arm, gold in curves.items():
        divergence, tokens = ways[arm]
        step, fall = optimum(gold.mean(0))
        equal = at_divergence(divergence.mean(0), gold.mean(0), shared)
        reached = tokens_to_level(tokens.mean(0), gold.mean(0), level).item()
        rows.append(
            (
                arm,
                f"{divergence.mean(0)[-1]:.2f}",
                "–" if equal is None else f"{equal:.2f}",
                "never" if reached == torch.inf else f"{reached:.0f}",
                f"{step * study.settings.evaluation_steps}",
                f"{fall:.2f}",
            )
        )
    header = (
        "arm",
        "KL at the end, nats a response",
        f"gold at KL {shared:.2f}",
        "thousand tokens to RLOO's end level",
    )
    return [_picture(curves, ways), Cells((*header, "step of the highest gold", "fallen since"), rows)]


def _picture(curves: dict[str, Tensor], ways: dict[str, tuple[Tensor, Tensor]]) -> Picture:
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    for axes, which, label in zip(
        figure.subplots(1, 2, sharey=True), (0, 1), ("KL, nats a response", "thousand tokens"), strict=True
    ):
        for arm, gold in curves.items():
            along = ways[arm][which].mean(0)
            axes.plot(along, gold.mean(0), marker="o", markersize=3, color=COLOURS[arm], label=arm)
            axes.fill_between(along, gold.amin(0), gold.amax(0), color=COLOURS[arm], alpha=0.12, linewidth=0)
        axes.set(xlabel=label, ylabel="gold reward, nats" if which == 0 else "")
    axes.legend(fontsize=7)
    return Picture(
        figure, "gold", "Gold reward against divergence and tokens.", "Mean and range over seeds.", wide=True
    )


def _examples(study: Study) -> Examples | None:
    settings: TextPolicyStudy = study.settings
    cells = {arm: found for arm in ARMS if (found := study.result(policy_name(arm, settings.seeds[0]))) is not None}
    if not cells:
        return None
    pairs, of_role = parts(settings)
    shown = []
    for i, prompt in enumerate(prompts_of(pairs, of_role["evaluation"])[: settings.shown]):
        first = next(iter(cells.values()))["measured"][0]
        before = Response("start", first["responses"][i], _numbers(first, i))
        after = [
            Response(arm, c["measured"][-1]["responses"][i], _numbers(c["measured"][-1], i))
            for arm, c in cells.items()
        ]
        shown.append(Example(f"Prompt {i + 1}", prompt[-1]["content"], [before, *after]))
    return Examples(shown)


def _numbers(measured: dict[str, Any], i: int) -> dict[str, str]:
    return {JUDGES[name]: f"{values[i]:.2f}" for name, values in measured["rewards"].items()}
