"""The sandbox's half of the study: the same policy tuned on each preference model, where the true reward is known."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from transformers import AutoTokenizer, TrainerCallback

from ...policy.config import ReinforceConfig
from ...policy.sampling import sample_responses
from ...policy.trainer import ReinforceTrainer
from ...reward.config import PREFERENCE_MODELS
from ...reward.scorer import RewardFunction
from ...sandbox.rows import (
    HELD_OUT_SEED,
    gold_judge,
    sample_demonstrations,
    sample_pairs,
    sample_prompts,
    sandbox_decoder,
    sandbox_tokenizer,
)
from .callbacks import GoldCurve, Gradients
from .grid import Cell, Study, cell_name
from .models import ABLATIONS, attention, best_rate, reward_config, train_decoder, train_reward_model, trainer_options

SEARCH_TEST_SEED = 2_000_003  # of the pairs and prompts by which learning rates are chosen


@dataclass
class SandboxStudy:
    """
    Settings of the study in the sandbox; sizes are numbers of rows.

    Learning rates are chosen for each preference model by the same search, with `table_size` pairs and on seeds that
    do not count: those of the reward model by the mean accuracy of the `search_seeds` on `search_pairs` pairs, those
    of the policy by the last tenth of its curve on the first of them.
    """

    seeds: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 5])
    search_seeds: list[int] = field(default_factory=lambda: [0, 6])
    models: list[str] = field(default_factory=lambda: list(PREFERENCE_MODELS))
    table_size: int = 10_000
    curve_models: list[str] = field(default_factory=lambda: ["unbiased", "weighted", "multi-scale"])
    curve_sizes: list[int] = field(default_factory=lambda: [5_000, 10_000, 20_000, 40_000])
    reward_rates: list[float] = field(default_factory=lambda: [6e-4, 1.2e-3])
    policy_rates: list[float] = field(default_factory=lambda: [2e-4, 4e-4])
    pairs_seen: int = 20_000
    pairs_per_step: int = 32
    test_pairs: int = 4_000
    search_pairs: int = 2_000
    sft_steps: int = 1_000
    policy_steps: int = 40
    responses_per_step: int = 64
    baseline: str = "none"
    prefix_baseline: bool = True
    beta: float = 0.05
    max_new_tokens: int = 48
    test_prompts: int = 1_000
    curve_prompts: int = 128
    gradient_steps: int = 24
    ablations: list[str] = field(default_factory=lambda: list(ABLATIONS))
    baselines: list[str] = field(
        default_factory=lambda: [
            f"{b}{p}" for b in ("none", "moving_average", "leave_one_out") for p in ("", "+prefix")
        ]
    )

    @classmethod
    def quick(cls) -> "SandboxStudy":
        """The same grid in little: it shows that everything runs, not how the methods compare."""
        return cls(
            seeds=[1, 2],
            search_seeds=[0],
            table_size=640,
            curve_sizes=[320, 640],
            pairs_seen=640,
            reward_rates=[1e-3],
            policy_rates=[4e-4],
            test_pairs=400,
            search_pairs=200,
            sft_steps=100,
            policy_steps=8,
            test_prompts=64,
            curve_prompts=16,
            gradient_steps=4,
            ablations=["token", "with a gate"],
            baselines=["none", "none+prefix"],
        )


def table_baseline(settings: SandboxStudy) -> str:
    """The baseline of all policies but those of the comparison of baselines."""
    return settings.baseline + ("+prefix" if settings.prefix_baseline else "")


# Names of cells; with a rate, one of the search


def start_name(seed: int) -> str:
    """Cell of the policy that a seed starts from."""
    return cell_name("start", seed)


def reward_name(model: str, pairs: int, seed: int, rate: float | None = None) -> str:
    """Cell of a reward model."""
    return cell_name("reward", model, pairs, seed, rate=rate)


def policy_name(model: str, pairs: int, seed: int, baseline: str, rate: float | None = None) -> str:
    """Cell of a policy tuned on a reward model."""
    return cell_name("policy", model, pairs, seed, baseline, rate=rate)


def gradient_name(model: str, pairs: int, seed: int) -> str:
    """Cell of the noise of the gradient."""
    return cell_name("gradient", model, pairs, seed)


# What cells do


def start_cell(folder: Path, settings: SandboxStudy, seed: int) -> dict[str, Any]:
    """The supervised policy that every reward model and every policy of a seed starts from."""
    decoder = sandbox_decoder(seed=seed)
    decoder.set_attn_implementation(attention())
    trained = train_decoder(
        decoder,
        sandbox_tokenizer(),
        sample_demonstrations(32 * settings.sft_steps, seed),
        max_steps=settings.sft_steps,
        per_device_train_batch_size=32,
        learning_rate=3e-3,
        **trainer_options(folder, start_name(seed), seed),
    )
    return _held_out_responses(trained, settings)


def reward_cell(
    folder: Path, settings: SandboxStudy, model: str, pairs: int, seed: int, rate: float, search: bool = False
) -> dict[str, Any]:
    """A reward model, and its gaps on held-out pairs: those of the search, or those that count."""
    config = reward_config(
        model,
        pairs_per_step=settings.pairs_per_step,
        batches=2,
        # Every reward model sees as many pairs, and each of its own at least once
        num_train_epochs=max(1.0, settings.pairs_seen / pairs),
        per_device_eval_batch_size=64,
        learning_rate=rate,
        warmup_steps=0.3,  # of all steps: features that one seed finds and another misses get more of a chance
        **trainer_options(folder, reward_name(model, pairs, seed, rate if search else None), seed),
    )
    test = (settings.search_pairs, SEARCH_TEST_SEED) if search else (settings.test_pairs, HELD_OUT_SEED)
    start = str(folder / "models" / start_name(seed))
    trainer, result = train_reward_model(start, config, sample_pairs(pairs, seed), sample_pairs(*test))
    trainer.save_model()
    return result


def policy_cell(
    folder: Path,
    settings: SandboxStudy,
    model: str,
    pairs: int,
    seed: int,
    baseline: str,
    rate: float,
    reward: str,
    search: bool = False,
) -> dict[str, Any]:
    """A policy tuned on a reward model: its curve, its log and its responses to held-out prompts."""
    prompts = list(sample_prompts(settings.curve_prompts, SEARCH_TEST_SEED if search else HELD_OUT_SEED)["prompt"])
    tokenizer = AutoTokenizer.from_pretrained(folder / "models" / start_name(seed))
    curve = GoldCurve(prompts, tokenizer, settings.max_new_tokens)
    trainer = _policy_trainer(
        folder,
        settings,
        curve,
        name=policy_name(model, pairs, seed, baseline, rate),
        seed=seed,
        baseline=baseline,
        reward=reward,
        max_steps=settings.policy_steps,
        learning_rate=rate,
        warmup_steps=5,
    )
    trainer.train()
    kept = ("reward", "rewards/gold_judge/mean", "rewards/RewardFunction/mean", "kl", "entropy", "grad_norm")
    log = [{key: row[key] for key in kept} for row in trainer.state.log_history if "reward" in row]
    result = {"curve": curve.curve, "log": log}
    return result if search else result | _held_out_responses(trainer.model, settings)


def gradient_cell(
    folder: Path, settings: SandboxStudy, model: str, pairs: int, seed: int, reward: str
) -> dict[str, Any]:
    """Inner products of the gradients of steps at the start, where the learning rate 0 holds the policy."""
    gradients = Gradients()
    _policy_trainer(
        folder,
        settings,
        gradients,
        name=gradient_name(model, pairs, seed),
        seed=seed,
        baseline=table_baseline(settings),
        reward=reward,
        max_steps=settings.gradient_steps,
        learning_rate=0.0,
        max_grad_norm=0.0,
    ).train()
    # The first quarter fills the running statistics of the rewards and of the prefix fit
    kept = torch.stack(gradients.gradients[settings.gradient_steps // 4 :])
    return {"gram": (kept @ kept.T).tolist()}


def _policy_trainer(
    folder: Path,
    settings: SandboxStudy,
    callback: TrainerCallback,
    *,
    name: str,
    seed: int,
    baseline: str,
    reward: str,
    max_steps: int,
    **options: Any,
) -> ReinforceTrainer:
    """The trainer of the cell `name`, on the reward model of the cell `reward`."""
    kind, _, prefix = baseline.partition("+")
    generations = 2 if kind == "leave_one_out" else 1
    config = ReinforceConfig(
        max_steps=max_steps,
        per_device_train_batch_size=settings.responses_per_step,
        num_generations=generations,
        baseline=kind,
        prefix_baseline=bool(prefix),
        normalize_rewards=True,
        beta=settings.beta,
        max_completion_length=settings.max_new_tokens,
        reward_weights=[1, 0],
        logging_steps=1,
        **options,
        **trainer_options(folder, name, seed, bf16=torch.cuda.is_available()),
    )
    return ReinforceTrainer(
        str(folder / "models" / start_name(seed)),
        [RewardFunction(str(folder / "models" / reward), batch_size=64), gold_judge],
        config,
        train_dataset=sample_prompts(max_steps * settings.responses_per_step // generations, seed),
        callbacks=[callback],
    )


def _held_out_responses(model: Any, settings: SandboxStudy) -> dict[str, Any]:
    prompts = list(sample_prompts(settings.test_prompts, HELD_OUT_SEED)["prompt"])
    texts = sample_responses(model, sandbox_tokenizer(), prompts, max_new_tokens=settings.max_new_tokens, seed=0)
    return {"gold": [round(gold, 4) for gold in gold_judge(prompts, texts)], "responses": texts[:20]}


# The grid


def reward_rate(study: Study, model: str) -> float:
    """The learning rate by which a model ranks most of the search's pairs right; ablations have multi-scale's."""
    settings, model = study.settings, model if model in PREFERENCE_MODELS else "multi-scale"

    def names(rate: float) -> list[str]:
        return [reward_name(model, settings.table_size, seed, rate) for seed in settings.search_seeds]

    return best_rate({rate: study.results(names(rate)) for rate in settings.reward_rates})


def policy_rate(study: Study, model: str) -> float:
    """The learning rate whose policy has the highest gold reward in the last tenth of its curve."""
    settings = study.settings
    cell = (model, settings.table_size, settings.search_seeds[0], table_baseline(settings))
    rates: list[float] = settings.policy_rates
    return max(rates, key=lambda rate: last_tenth(study.results([policy_name(*cell, rate)])[0]["curve"]))


def last_tenth(curve: list[float]) -> float:
    """Mean of the last tenth of a curve, of one value at least."""
    return mean(curve[-max(1, len(curve) // 10) :])


def sandbox_stages(study: Study) -> Iterator[list[Cell]]:
    """Stages of the study in the sandbox, the table's first; each may read the results of those before it."""
    settings: SandboxStudy = study.settings
    models, size, seeds, baseline = settings.models, settings.table_size, settings.seeds, table_baseline(settings)
    first = settings.search_seeds[0]  # on which policies are searched

    yield [Cell(start_name(seed), start_cell, {"seed": seed}) for seed in (*settings.search_seeds, *seeds)]
    yield [
        _reward(model, size, seed, rate, search=True)
        for seed in settings.search_seeds
        for model in models
        for rate in settings.reward_rates
    ]
    reward_rates = {model: reward_rate(study, model) for model in (*models, *settings.ablations)}

    def rewards(models: list[str], sizes: list[int]) -> list[Cell]:
        return [_reward(m, n, seed, reward_rates[m]) for n in sizes for seed in seeds for m in models]

    yield rewards(models, [size])
    yield [
        _policy(m, size, first, baseline, rate, reward_name(m, size, first, reward_rates[m]), search=True)
        for m in models
        for rate in settings.policy_rates
    ]
    policy_rates = {model: policy_rate(study, model) for model in models}

    def policies(models: list[str], sizes: list[int], baselines: list[str]) -> list[Cell]:
        cells = [(m, n, seed) for n in sizes for seed in seeds for m in models]
        return [_policy(*cell, b, policy_rates[cell[0]], reward_name(*cell)) for cell in cells for b in baselines]

    yield policies(models, [size], [baseline])
    yield [_gradient(model, size, seed) for seed in seeds for model in models]
    other_sizes = [n for n in settings.curve_sizes if n != size]
    yield rewards(settings.curve_models, other_sizes)
    yield policies(settings.curve_models, other_sizes, [baseline])
    yield rewards(settings.ablations, [size])
    yield policies(["multi-scale"], [size], [b for b in settings.baselines if b != baseline])


def _reward(model: str, pairs: int, seed: int, rate: float, search: bool = False) -> Cell:
    arguments = {"model": model, "pairs": pairs, "seed": seed, "rate": rate, "search": search}
    return Cell(reward_name(model, pairs, seed, rate if search else None), reward_cell, arguments, (start_name(seed),))


def _policy(model: str, pairs: int, seed: int, baseline: str, rate: float, reward: str, search: bool = False) -> Cell:
    arguments = {"model": model, "pairs": pairs, "seed": seed, "baseline": baseline, "rate": rate, "reward": reward}
    name = policy_name(model, pairs, seed, baseline, rate if search else None)
    return Cell(name, policy_cell, {**arguments, "search": search}, (start_name(seed), reward))


def _gradient(model: str, pairs: int, seed: int) -> Cell:
    reward = reward_name(model, pairs, seed)
    arguments = {"model": model, "pairs": pairs, "seed": seed, "reward": reward}
    return Cell(gradient_name(model, pairs, seed), gradient_cell, arguments, (start_name(seed), reward))
