"""The page of REINFORCE on real text."""

from statistics import mean
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ...pages.page import Block, Example, Examples, Page, Paragraph, Picture, Response, Section
from ...pages.page import Table as Cells
from ...stats.curves import tokens_to_level
from ...stats.metrics import correlation, pair_accuracy
from ...stats.resampling import bootstrap_figures, bootstrap_interval
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
    policy_rate,
    prompts_of,
    reward_name,
    rewards,
)

JUDGES = {f"{GOLD}, {SIMPLE}": "gold (simple contrast)", f"{GOLD}, {MIX}": "gold (multi-scale)", PROXY: "own proxy"}
ROUNDING = 1e-9  # of means that are the same summed in another order
COLOURS = dict(zip(ARMS, ("#E69F00", "#009E73", "#0072B2", "#CC79A7"), strict=True))


def text_policy_page(study: Study) -> tuple[Page, dict[str, Any]]:
    """The page as far as the runs have come, and its tables."""
    settings: TextPolicyStudy = study.settings
    table = end_table(study)
    lead = (
        "Policies tuned on proxy rewards, their responses to held-out prompts judged by two gold rewards, which are "
        "models of other pairs and other prompts. In nats; brackets are 95% intervals over "
        f"{len(settings.seeds)} seeds, each with proxies of its own, and {settings.evaluation_prompts} prompts, which "
        "are too narrow with so few seeds; differences are paired."
    )
    sections = [
        Section("At the end", _end(study, table)),
        Section("On the way", _way(study)),
        Section("Rates, lengths and reward models", [*_lengths(study), *_models(study)]),
    ]
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
            one_scale = name != PROXY or ARMS[arm].proxy == ARMS[RLOO].proxy
            paired = arm != RLOO and one_scale and RLOO in risen
            less = bootstrap_interval(values - risen[RLOO][name]) if paired else None
            table.setdefault(arm, {})[JUDGES[name]] = Estimate(bootstrap_interval(values), less)
    return table


class Way(NamedTuple):
    """What was measured of an arm's `S` seeds at `T` steps; float64."""

    judged: dict[str, Tensor]  # by judge the rewards of `N` held-out responses, `(S, T, N)`
    divergence: Tensor  # from the start in nats a response, of each of them, `(S, T, N)`
    tokens: Tensor  # generated so far, in thousands, `(S, T)`


def ways_of(study: Study) -> dict[str, Way]:
    """Of each arm all of whose seeds have ended, what was measured."""
    found = {}
    for arm in ARMS:
        judged = {name: values for name in JUDGES if (values := rewards(study, arm, name)) is not None}
        if judged:
            found[arm] = Way(judged, *course(study, arm))
    return found


def at_divergence(divergence: Tensor, gold: Tensor, level: Tensor) -> Tensor:
    """Gold `(T,)` where the divergence `(T,)` first reaches a level, interpolated; its last where it does not."""
    behind = (divergence >= level).nonzero()
    i = int(behind[0]) if len(behind) else len(gold) - 1
    if i == 0 or divergence[i] < level:
        return gold[i]
    share = (level - divergence[i - 1]) / (divergence[i] - divergence[i - 1])
    return gold[i - 1] + share * (gold[i] - gold[i - 1])


def fallen(gold: Tensor, weights: Tensor) -> Tensor:
    """
    How far gold has fallen at the end since it was highest, without the luck of the highest.

    The step is chosen by one half of the prompts and the fall is read from the other half, both ways round.

    Args:
        gold (`torch.Tensor` of shape `(T, N)`, float64):
            Reward of the responses to `N` prompts at `T` steps.
        weights (`torch.Tensor` of shape `(N,)`, float64):
            What each prompt weighs.

    Returns:
        `torch.Tensor` of shape `()`: In the unit of `gold`; below 0 where it rose. 0 where a half weighs nothing.
    """
    halves = [weights.clone(), weights.clone()]
    for half, own in enumerate(halves):
        own[half::2] = 0
    if not all(own.sum() > 0 for own in halves):
        return torch.zeros((), dtype=torch.float64)
    curves = [gold @ (own / own.sum()) for own in halves]
    falls = [curve[other.argmax()] - curve[-1] for curve, other in (curves, curves[::-1])]
    return torch.stack(falls).mean()


def way_figures(ways: dict[str, Way], seeds: Tensor, prompts: Tensor) -> dict[str, dict[str, Tensor]]:
    """
    What a table says of each arm's course, of seeds and prompts that weigh as given; RLOO's is among the arms.

    Args:
        ways (`dict[str, Way]`):
            By arm what was measured.
        seeds (`torch.Tensor` of shape `(S,)`, float64):
            What each seed weighs; they sum to 1.
        prompts (`torch.Tensor` of shape `(N,)`, float64):
            What each prompt weighs; they sum to 1.

    Returns:
        `dict[str, dict[str, torch.Tensor]]`: By arm and figure; tokens are infinite where the level is not reached.
    """
    golds = [name for name in JUDGES if name != PROXY]

    def curve(values: Tensor) -> Tensor:
        return torch.einsum("s,stn->tn", seeds, values)

    gold = {arm: {name: curve(way.judged[name]) @ prompts for name in golds} for arm, way in ways.items()}
    divergence = {arm: curve(way.divergence) @ prompts for arm, way in ways.items()}
    level = float(gold[RLOO][golds[0]][-1]) - ROUNDING
    found = {}
    for arm, way in ways.items():
        shared = torch.minimum(divergence[arm][-1], divergence[RLOO][-1])
        above = {
            name: at_divergence(divergence[arm], gold[arm][name], shared)
            - at_divergence(divergence[RLOO], gold[RLOO][name], shared)
            for name in golds
        }
        found[arm] = {
            "KL at the end": divergence[arm][-1],
            **{f"{JUDGES[name]} above RLOO's at equal KL": value for name, value in above.items()},
            "thousand tokens to RLOO's end": tokens_to_level(seeds @ way.tokens, gold[arm][golds[0]], level),
            **{f"{JUDGES[name]}, fallen": fallen(curve(way.judged[name]), prompts) for name in golds},
        }
    return found


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
    ways = ways_of(study)
    if RLOO not in ways:
        return [Paragraph("RLOO has not all its seeds yet.")]

    def figures(seeds: Tensor, prompts: Tensor) -> Tensor:
        found = way_figures(ways, seeds, prompts)
        return torch.stack([figure for own in found.values() for figure in own.values()])

    settings: TextPolicyStudy = study.settings
    number = settings.evaluation_prompts
    intervals = iter(bootstrap_figures(figures, len(settings.seeds), number))
    even = [torch.full((n,), 1 / n, dtype=torch.float64) for n in (len(settings.seeds), number)]
    named = way_figures(ways, even[0], even[1])
    rows = [(arm, *(interval_text(next(intervals), 1, "{:.2f}") for _ in own)) for arm, own in named.items()]
    told = (
        "KL is from the start, in nats a response; equal KL is the lesser of the two arms' at the end. RLOO's end is "
        "its gold (simple contrast) there. Fallen is from the step at which one half of the prompts has the highest "
        "gold to the end, as the other half has it: above 0 the policy is over-optimised."
    )
    highest = [
        (arm, *(_highest(way.judged[name], settings.evaluation_steps) for name in JUDGES)) for arm, way in ways.items()
    ]
    return [
        _picture(ways),
        Cells(("arm", *named[RLOO]), rows, told),
        Cells(("highest at step", *JUDGES.values()), highest),
    ]


def _lengths(study: Study) -> list[Block]:
    settings: TextPolicyStudy = study.settings
    rows = []
    for arm in ARMS:
        cells = study.results(policy_name(arm, seed) for seed in settings.seeds)
        if cells:
            held = [[mean(cell["measured"][i]["tokens"]) for cell in cells] for i in (0, -1)]
            cut = [mean(row["completions/clipped_ratio"] for row in cell["log"][-5:]) for cell in cells]
            ratios = [row.get("clip_ratio/region_mean") for cell in cells for row in cell["log"]]
            told = "–" if None in ratios else f"{100 * mean(ratios):.1f}"
            rows.append((arm, *(f"{mean(own):.1f}" for own in held), f"{100 * mean(cut):.0f}", told))
    searched = [policy_name(arm, settings.search_seed, rate) for arm in ARMS for rate in settings.rates]
    chosen = f"{policy_rate(study):g}" if len(study.results(searched)) == len(searched) else "to come"
    header = ("arm", "tokens a response, start", "end", "cut off in the last five steps, %", "ratios clipped, %")
    return [Paragraph(f"Learning rate of all arms: {chosen}."), *([Cells(header, rows)] if rows else [])]


def _models(study: Study) -> list[Block]:
    """How often the reward models rank held-out pairs right, and how alike they and their golds are."""
    settings: TextPolicyStudy = study.settings
    names = {f"{GOLD}, {kind}": reward_name(GOLD, kind) for kind in (SIMPLE, MIX)}
    names |= {f"{PROXY}, {k}, seed {s}": reward_name(PROXY, k, s) for k in (SIMPLE, MIX) for s in settings.seeds}
    found = {told: torch.tensor(cell["gaps"]) for told, name in names.items() if (cell := study.result(name))}
    rows = []
    for told, gaps in found.items():
        right = pair_accuracy(gaps, torch.zeros_like(gaps))
        golds = {gold: found.get(gold) if gold != told else None for gold in [*names][:2]}
        alike = [f"{correlation(gaps, other):.2f}" if other is not None else "–" for other in golds.values()]
        longer = torch.tensor(study.results([names[told]])[0]["longer"])
        share = f"{100 * right.value:.1f} ({100 * right.low:.1f} to {100 * right.high:.1f})"
        rows.append((told, share, f"{correlation(gaps, longer):.2f}", *alike))
    header = ("model", "held-out pairs ranked right, %", *(f"correlation with {t}" for t in ("length", *[*names][:2])))
    return [Cells(header, rows, "Correlations are those of differences between the two responses.")] if rows else []


def _highest(judged: Tensor, every: int) -> str:
    return str(int(judged.mean((0, 2)).argmax()) * every)


def _picture(ways: dict[str, Way]) -> Picture:
    figure = Figure(figsize=(7.5, 8.4), layout="constrained")
    panels = figure.subplots(len(JUDGES), 2, sharey="row", sharex="col")
    for row, (name, judge) in zip(panels, JUDGES.items(), strict=True):
        for arm, way in ways.items():
            means = [bootstrap_interval(values) for values in way.judged[name].unbind(1)]
            for axes, along in zip(row, (way.divergence.mean((0, 2)), way.tokens.mean(0)), strict=True):
                axes.plot(along, [i.value for i in means], marker="o", markersize=3, color=COLOURS[arm], label=arm)
                low, high = [i.low for i in means], [i.high for i in means]
                axes.fill_between(along, low, high, color=COLOURS[arm], alpha=0.12, linewidth=0)
        row[0].set(ylabel=f"{judge}, nats")
    for axes, label in zip(panels[-1], ("KL, nats a response", "thousand tokens"), strict=True):
        axes.set(xlabel=label)
    panels[0, 1].legend(fontsize=7)
    told = "Means with 95% intervals over seeds and prompts. Proxies of two models have no scale in common."
    return Picture(figure, "rewards", "Gold and proxy rewards against divergence and tokens.", told, wide=True)


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
