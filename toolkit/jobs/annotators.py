"""Whether the people who labelled a set of pairs differ by more than noise, and enough for weights of their own."""

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from trl import ModelConfig, get_peft_config, get_quantization_config

from ..arguments import RunArguments, named_model, training_pairs, with_model_arguments
from ..pages.tables import interval_cells, print_table
from ..reward.config import MultiScaleRewardConfig
from ..reward.head import STATES
from ..reward.rates import StatePairs, prompt_folds, training_states
from ..reward.readers import Taste, annotator_test, exchanged, fit_taste, own_taste_gaps
from ..reward.scales import SCALES
from ..reward.trainer import MultiScaleRewardTrainer
from ..stats.intervals import Interval
from ..stats.resampling import bootstrap_interval
from ..training.command_line import run_recipe
from ..training.run_folder import claim_folder
from ..training.run_record import write_json
from .defaults import annotator_defaults

CLASSES = (RunArguments, MultiScaleRewardConfig, ModelConfig)
COMPONENTS = 64  # of the states; more say little that is not in these
OWN_VARIANCE = 0.01  # of one person's weight of a component around that of all
FOLDS = 5
EXCHANGES = 5  # of names, with whose weights one's own are compared


class Comparison(NamedTuple):
    """What a set of pairs says of the people who labelled it."""

    annotators: int
    pairs: int
    compared: str  # "pair" or "prompt": whose labels by different people are compared
    p_value: float  # that they differ by noise alone
    gain: Interval  # nats of a held-out pair that weights of one's own gain on those of all
    by_names: (
        Interval  # and on weights of one's own where names have changed places: what is not owed to whose they are
    )
    shared: float  # share of held-out pairs that the weights of all rank right
    own: float


def main(script_args: RunArguments, training_args: MultiScaleRewardConfig, model_args: ModelConfig) -> None:
    """Read the pairs with a frozen decoder, compare, print, and write `annotators.json` into the output folder."""
    folder = str(training_args.output_dir)
    claim_folder(folder, None, script_args.overwrite_output_dir)
    trainer: Any = MultiScaleRewardTrainer(
        model=named_model(model_args),
        args=with_model_arguments(training_args, model_args),
        train_dataset=training_pairs(script_args, training_args.seed),
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),  # which a frozen decoder refuses
    )
    known = torch.tensor(trainer.train_dataset["annotator_index"][:])
    pairs = training_states(trainer).select(known >= 0)
    found = compare(pairs, known[known >= 0], training_args.seed)
    if trainer.accelerator.is_main_process:
        intervals = {"gain": found.gain._asdict(), "by_names": found.by_names._asdict()}
        write_json(Path(folder, "annotators.json"), found._asdict() | intervals)
        print_comparison(found)
    trainer.end()


def compare(pairs: StatePairs, annotator: Tensor, seed: int) -> Comparison:
    """
    Compare the annotators of pairs, by what a linear head reads of the mean states of their responses.

    Args:
        pairs ([`~toolkit.reward.rates.StatePairs`]):
            The pairs.
        annotator (`torch.Tensor` of shape `(P,)`, int64):
            Who labelled each.
        seed (`int`):
            Seed of the folds and of the permutations.

    Raises:
        `ValueError`: If no two people labelled pairs of one prompt, or there are fewer prompts than folds.
    """
    of_pair = torch.unique(pairs.rows.sort(1).values, dim=0, return_inverse=True)[1]
    several = {"pair": shared_share(of_pair, annotator), "prompt": shared_share(pairs.prompts, annotator)}
    compared = "pair" if several["pair"] >= 0.5 else "prompt"
    if not several[compared]:
        raise ValueError(
            f"No two of the {len(annotator.unique())} annotators labelled pairs of one prompt, so that people cannot "
            "be told from the prompts that they saw. Give data in which some prompts were labelled by several."
        )
    gaps = _components(pairs)
    everyone = Taste(torch.zeros(gaps.size(1)), torch.eye(gaps.size(1)))
    prompts = torch.unique(pairs.prompts, return_inverse=True)[1]
    group, sizes = of_pair if compared == "pair" else prompts, prompts.bincount()
    folds, generator = prompt_folds(prompts, FOLDS, seed), torch.Generator().manual_seed(seed)
    shared, own = own_taste_gaps(gaps, annotator, folds, everyone, OWN_VARIANCE)
    others = [
        own_taste_gaps(gaps, exchanged(annotator, group, generator), folds, everyone, OWN_VARIANCE)[1]
        for _ in range(EXCHANGES)
    ]

    around = Taste(fit_taste(gaps, everyone).mean, OWN_VARIANCE * everyone.covariance)

    def gained(on: list[Tensor]) -> Interval:
        nats = logsigmoid(own) - logsigmoid(torch.stack(on)).mean(0)
        return bootstrap_interval(torch.zeros(len(sizes)).double().index_add_(0, prompts, nats)[None], sizes)

    return Comparison(
        annotators=len(annotator.unique()),
        pairs=len(gaps),
        compared=compared,
        p_value=annotator_test(gaps, annotator, group, around, seed=seed),
        gain=gained([shared]),
        by_names=gained(others),
        shared=(shared > 0).double().mean().item(),
        own=(own > 0).double().mean().item(),
    )


def _components(pairs: StatePairs) -> Tensor:
    """Principal components of the mean states, of chosen less rejected, `(P, C)` float64."""
    states = pairs.states[:, STATES.index(SCALES[0])].double()
    states = states - states.mean(0)
    states = states @ torch.linalg.eigh(states.T @ states).eigenvectors[:, -COMPONENTS:]
    states = states / states.std(0).clamp(min=1e-12)
    gaps: Tensor = states[pairs.rows[:, 0]] - states[pairs.rows[:, 1]]
    return gaps


def shared_share(group: Tensor, annotator: Tensor) -> float:
    """Share of labels in whose group another person has one, too."""
    people = Counter(group for group, _ in set(zip(group.tolist(), annotator.tolist(), strict=True)))
    return sum(people[each] > 1 for each in group.tolist()) / max(1, len(group))


def print_comparison(found: Comparison) -> None:
    """Print what was found, and what follows."""
    low, high = min(found.gain.low, found.by_names.low), found.gain.high
    rows = [
        ("annotators", f"{found.annotators:,}"),
        ("pairs", f"{found.pairs:,}"),
        ("p-value of no difference", f"{found.p_value:.2f}"),
        ("gained by weights of one's own, nats a held-out pair", " (".join(interval_cells(found.gain, 4)) + ")"),
        ("of it by whose they are", " (".join(interval_cells(found.by_names, 4)) + ")"),
        ("ranked right with weights of all, %", f"{100 * found.shared:.1f}"),
        ("with one's own, %", f"{100 * found.own:.1f}"),
    ]
    print_table(f"Annotators, by their labels of the same {found.compared}", ("", ""), rows)
    differ = f"They {'differ' if found.p_value <= 0.05 else 'are not shown to differ'} by more than noise"
    if low > 0:
        print(f"{differ}, and weights of their own foretell their labels better: set `reader_weights=annotator`.")
    else:
        worse = "worse" if high < 0 else "no better, as far as these pairs tell"
        print(f"{differ}, and weights of their own foretell their labels {worse}: keep one score.")


def run() -> None:
    """Run the job with the options of the command line."""
    run_recipe(main, *CLASSES, defaults=annotator_defaults)


if __name__ == "__main__":
    run()
