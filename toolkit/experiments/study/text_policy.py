"""REINFORCE on real text: policies tuned on proxy rewards and judged by gold ones, as over-optimisation is measured.

After Gao et al. (https://huggingface.co/papers/2210.10760): the gold reward is a model of other pairs, and its course
is seen against the proxy's, the divergence from the start and the tokens generated. Gold, proxies, policies and
evaluation have prompts of their own. docs/text_policies.md has the rest.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, TrainerCallback
from trl import RLOOConfig, RLOOTrainer

from ...data.messages import Messages
from ...policy.config import ReinforceConfig
from ...policy.sampling import Sampled, sample_ids
from ...policy.trainer import ReinforceTrainer
from ...reward.scorer import RewardFunction
from ...reward.shared_base import SharedBaseRewardFunction
from ...training.manifests import last_complete_checkpoint
from ...training.run_record import write_json
from .division import deal, draw
from .grid import Cell, Study, cell_name
from .models import reward_config, train_reward_model, trainer_options
from .task_pairs import TaskPairs
from .tasks import TASKS

SIMPLE, MIX = "simple contrast", "multi-scale"
ROLES = GOLD, PROXY, POLICY = "gold", "proxy", "policy"
TASK = "HH helpful"
# Of a policy's log; ratios are those of TRL's loss alone
LOGGED = ("kl", "reward", "entropy", "completions/mean_length", "completions/clipped_ratio", "clip_ratio/region_mean")


class Arm(NamedTuple):
    """A way to tune the policy."""

    proxy: str  # preference model whose reward it is
    trl: bool = False  # by `trl.RLOOTrainer` instead of ours
    prefix_baseline: bool = False


RLOO = "RLOO, simple contrast"
ARMS = {
    RLOO: Arm(SIMPLE, trl=True),
    "REINFORCE, simple contrast": Arm(SIMPLE),
    "REINFORCE, multi-scale": Arm(MIX),
    "REINFORCE, multi-scale, prefix baseline": Arm(MIX, prefix_baseline=True),
}


@dataclass
class TextPolicyStudy:
    """Settings; `data` is the folder of the pairs' files, the decoders folders or hub names."""

    data: str
    decoder: str
    gold_decoder: str | None = None  # the policy's where there is none
    gold_pairs: int = 2_600
    proxy_pairs: int = 500  # of each seed, others for every one
    pairs_seen: int = 1_000  # by each reward model, at least; and every pair once
    reward_rates: dict[str, float] = field(default_factory=lambda: {SIMPLE: 1e-4, MIX: 2e-4})
    rank: int = 16
    rates: list[float] = field(default_factory=lambda: [1e-4, 3e-4])
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    search_seed: int = 0
    search_steps: int = 20
    steps: int = 60
    responses_per_step: int = 32
    num_generations: int = 2
    max_new_tokens: int = 64
    beta: float = 0.05
    evaluation_steps: int = 10
    evaluation_prompts: int = 64
    ranked_pairs: int = 250  # of the evaluation, by each reward model
    shown: int = 20  # responses that are kept, before and after

    @classmethod
    def quick(cls, data: str, decoder: str) -> "TextPolicyStudy":
        """The same in little: it shows that everything runs, not how the methods compare."""
        small = cls(data, decoder, rates=[1e-3], seeds=[1, 2], search_steps=1, steps=2, evaluation_steps=1)
        return replace(
            small, gold_pairs=16, proxy_pairs=16, pairs_seen=16, ranked_pairs=8, responses_per_step=4,
            max_new_tokens=8, evaluation_prompts=4, shown=2,
        )  # fmt: skip


# Names of cells


def reward_name(role: str, model: str, seed: int = 0) -> str:
    """Cell of a reward model, `"gold"`, or `"proxy"` with the seed of the policies that are tuned on it."""
    return cell_name("reward", role, model, *([seed] if role == PROXY else []))


def policy_name(arm: str, seed: int, rate: float | None = None) -> str:
    """Cell of a policy; with a rate, one of the search."""
    return cell_name("policy", arm.replace(",", ""), seed, rate=rate)


# Who has which prompts


def parts(settings: TextPolicyStudy) -> tuple[TaskPairs, dict[str, list[int]]]:
    """Pairs, and those of each role, a third of the training clusters each; the others are `"evaluation"`."""
    task = {each.name: each for each in TASKS}[TASK]
    pairs = TaskPairs(settings.data, replace(task, most=10_000))
    own, part = pairs.division, pairs.parts[0]
    role_of = deal(Counter(own.clusters[i] for i in part.train), len(ROLES), "roles")
    found = {role: [i for i in part.train if role_of[own.clusters[i]] == k] for k, role in enumerate(ROLES)}
    found["evaluation"] = [i for i, seen in zip(part.test, part.seen, strict=True) if not seen]
    return pairs, {role: draw(own.pairs, own.clusters, numbers, role) for role, numbers in found.items()}


def prompts_of(pairs: TaskPairs, numbers: Sequence[int]) -> list[Messages]:
    """Different prompts of some pairs, in their order."""
    found = {json.dumps(pairs.division.pairs[i].prompt): pairs.division.pairs[i].prompt for i in numbers}
    return list(found.values())


# What cells do


def reward_cell(folder: Path, settings: TextPolicyStudy, role: str, model: str, seed: int = 0) -> dict[str, Any]:
    """A gold or a proxy reward model, and its gaps on pairs of the evaluation."""
    pairs, of_role = parts(settings)
    gold = role == GOLD
    number = settings.gold_pairs if gold else settings.proxy_pairs
    first = 0 if gold else number * settings.seeds.index(seed)
    train = of_role[role][first : first + number]
    if len(train) < number:
        raise ValueError(f"There are {len(of_role[role])} pairs for '{role}', and {first + number} are asked for.")
    config = reward_config(
        model,
        pairs_per_step=16,
        batches=4,
        num_train_epochs=max(1.0, settings.pairs_seen / number),
        per_device_eval_batch_size=16,
        learning_rate=settings.reward_rates[model],
        max_length=None,
        warmup_steps=0.1,
        **trainer_options(folder, reward_name(role, model, seed), seed) | _saves(0.1),
    )
    lora = _lora(settings, "SEQ_CLS")
    start = (settings.gold_decoder if gold else None) or settings.decoder
    held_out = of_role["evaluation"][: settings.ranked_pairs]
    train_rows, ranked = (pairs.pairs.select(numbers) for numbers in (train, held_out))
    trainer, result = train_reward_model(start, config, train_rows, ranked, lora)
    trainer.save_model()
    return result


class AsFinished(SharedBaseRewardFunction):
    """
    A reward of responses as if each had come to its end, which is how TRL's trainers score the text of any.

    Most responses are cut off here. Without an end simple contrast would be read at a token where it has never been
    trained, and elsewhere than where held-out responses are read, of which only the texts are kept.
    """

    def _rows(self, prompts: Any, completions: Any, completion_ids: Any, columns: Any) -> Any:
        end = [self.processing_class.eos_token_id]
        ids = [[*own, *([] if not own or own[-1] in self.end_ids else end)] for own in completion_ids or ()]
        return super()._rows(prompts, completions, ids or None, columns)


@torch.no_grad()
def divergences(model: Any, sampled: Sequence[Sampled]) -> list[float]:
    r"""
    Divergence of a policy with adapters from its base along responses, in nats a response.

    $$ \sum_t \mathrm{KL}(\pi(\cdot \mid x, y_{<t}) \,\Vert\, \pi_0(\cdot \mid x, y_{<t})) $$

    With responses of the policy its mean is the divergence of the two, with less noise than that of log ratios.

    Args:
        model ([`~peft.PeftModel`]):
            The policy.
        sampled (`list[Sampled]`):
            Prompts and responses as ids, the one that ends a response included.

    Returns:
        `list[float]`: Of each response.
    """
    found: list[float] = []
    training = model.training
    model.eval()
    for prompt, response in sampled:
        ids = torch.tensor([[*prompt, *response]], device=model.device)
        kept = len(response) + 1
        own = model(input_ids=ids, logits_to_keep=kept).logits[0, :-1].float().log_softmax(-1)
        with model.disable_adapter():
            base = model(input_ids=ids, logits_to_keep=kept).logits[0, :-1].float().log_softmax(-1)
        found.append((own.exp() * (own - base)).sum().item())
    model.train(training)
    return found


class HeldOut(TrainerCallback):
    """Rewards and divergence of sampled responses to held-out prompts, when training begins and every few steps."""

    def __init__(
        self, settings: TextPolicyStudy, prompts: list[Messages], judges: Mapping[str, Any], file: Path
    ) -> None:
        self.settings, self.prompts, self.judges, self.file = settings, prompts, judges, file
        self.tokenizer = AutoTokenizer.from_pretrained(settings.decoder)
        self.measured: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # What was measured behind the checkpoint that a training goes on from is measured again
        self.measured = [each for each in self.measured if each["step"] <= state.global_step]
        if not self.measured:
            self._measure(kwargs["model"], 0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.settings.evaluation_steps == 0 or state.global_step == args.max_steps:
            self._measure(kwargs["model"], state.global_step)

    def _measure(self, model: Any, step: int) -> None:
        options: dict[str, Any] = {"max_new_tokens": self.settings.max_new_tokens, "seed": 0, "batch_size": 16}
        sampled = sample_ids(model, self.tokenizer, self.prompts, **options)
        texts = self.tokenizer.batch_decode([each.response for each in sampled], skip_special_tokens=True)
        kl = [round(value, 4) for value in divergences(model, sampled)]
        responses = [[{"role": "assistant", "content": text}] for text in texts]
        rewards = {
            name: [round(value, 4) for value in judge(self.prompts, responses)] for name, judge in self.judges.items()
        }
        tokens = [len(each.response) for each in sampled]
        shown = texts[: self.settings.shown]
        self.measured.append({"step": step, "rewards": rewards, "kl": kl, "tokens": tokens, "responses": shown})
        write_json(self.file, self.measured)


def policy_cell(
    folder: Path, settings: TextPolicyStudy, arm: str, seed: int, rate: float, search: bool = False
) -> dict[str, Any]:
    """A tuned policy: its rewards on held-out prompts, its log, and some responses before and after."""
    own, name = ARMS[arm], policy_name(arm, seed, rate if search else None)
    pairs, of_role = parts(settings)
    models = folder / "models"
    judges = {f"{GOLD}, {kind}": RewardFunction(str(models / reward_name(GOLD, kind))) for kind in (SIMPLE, MIX)}
    # The search has the first seed's
    proxy = str(models / reward_name(PROXY, own.proxy, settings.seeds[0] if search else seed))
    judges[PROXY] = RewardFunction(proxy)
    number, all_held = settings.evaluation_prompts, prompts_of(pairs, of_role["evaluation"])
    held = all_held[number : 2 * number] if search else all_held[:number]
    held_out = HeldOut(settings, held, judges, models / f"{name}.measured.json")
    options: dict[str, Any] = {
        "max_steps": settings.search_steps if search else settings.steps,
        "per_device_train_batch_size": min(8, settings.responses_per_step),
        "gradient_accumulation_steps": max(1, settings.responses_per_step // 8),
        "num_generations": settings.num_generations,
        "max_completion_length": settings.max_new_tokens,
        "beta": settings.beta,
        "learning_rate": rate,
        "warmup_steps": 5,
        "logging_steps": 1,
        **trainer_options(folder, name, seed),
        # TRL's own does not go on as if it had never stopped, and is run as a whole
        **({} if own.trl else _saves(settings.evaluation_steps)),
        "lr_scheduler_type": "constant_with_warmup",
    }
    config: Any = RLOOConfig(**options) if own.trl else ReinforceConfig(prefix_baseline=own.prefix_baseline, **options)
    reward = AsFinished(proxy)
    trainer: Any = (RLOOTrainer if own.trl else ReinforceTrainer)(
        settings.decoder,
        reward,
        config,
        train_dataset=Dataset.from_dict({"prompt": prompts_of(pairs, of_role[POLICY])}),
        peft_config=_lora(settings, "CAUSAL_LM"),
        callbacks=[held_out],
    )
    reward.attach(trainer.model)  # which ours has done
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(models / name))
    log = [{key: row.get(key) for key in LOGGED} for row in trainer.state.log_history if "reward" in row]
    return {"measured": held_out.measured, "log": log, "bf16": bool(config.bf16)}


def _saves(steps: float) -> dict[str, Any]:
    return {"save_strategy": "steps", "save_steps": steps, "save_total_limit": 1}


def _lora(settings: TextPolicyStudy, task: str) -> LoraConfig:
    return LoraConfig(task_type=task, r=settings.rank, lora_alpha=2 * settings.rank, target_modules="all-linear")


# The grid


def gold_at_end(result: Mapping[str, Any]) -> float:
    """Mean gold reward of a policy at its end, in nats."""
    return float(mean(result["measured"][-1]["rewards"][f"{GOLD}, {SIMPLE}"]))


def policy_rate(study: Study) -> float:
    """The learning rate of all arms: that at which their policies end the search with the highest gold on the mean."""
    settings: TextPolicyStudy = study.settings

    def reached(rate: float) -> float:
        found: Any = [study.result(policy_name(arm, settings.search_seed, rate)) for arm in ARMS]
        return mean(map(gold_at_end, found))

    return max(settings.rates, key=reached)


def text_policy_stages(study: Study) -> Iterator[list[Cell]]:
    """Reward models, the search, and one seed after the other."""
    settings: TextPolicyStudy = study.settings
    first, *others = settings.seeds
    yield [_reward(GOLD, model) for model in (SIMPLE, MIX)] + _proxies(first)
    yield [_policy(arm, settings.search_seed, rate, first, search=True) for arm in ARMS for rate in settings.rates]
    rate = policy_rate(study)
    yield [_policy(arm, first, rate, first) for arm in ARMS]
    for seed in others:
        yield _proxies(seed)
        yield [_policy(arm, seed, rate, seed) for arm in ARMS]


def _reward(role: str, model: str, seed: int = 0) -> Cell:
    return Cell(reward_name(role, model, seed), reward_cell, {"role": role, "model": model, "seed": seed})


def _proxies(seed: int) -> list[Cell]:
    return [_reward(PROXY, model, seed) for model in (SIMPLE, MIX)]


def _policy(arm: str, seed: int, rate: float, proxy_seed: int, search: bool = False) -> Cell:
    golds = {reward_name(GOLD, SIMPLE), reward_name(GOLD, MIX)}
    needs = tuple({*golds, reward_name(PROXY, ARMS[arm].proxy, proxy_seed)})
    arguments = {"arm": arm, "seed": seed, "rate": rate, "search": search}
    return Cell(policy_name(arm, seed, rate if search else None), policy_cell, arguments, needs)


# What of it is measured


def rewards(study: Study, arm: str, name: str) -> torch.Tensor | None:
    """A reward of the held-out responses, `(S, T, N)` float64: seeds, evaluations, prompts; `None` while one lacks."""
    settings: TextPolicyStudy = study.settings
    found = study.results(policy_name(arm, seed) for seed in settings.seeds)
    if len(found) < len(settings.seeds):
        return None
    return torch.tensor([[e["rewards"][name] for e in cell["measured"]] for cell in found], dtype=torch.float64)


def course(study: Study, arm: str) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Divergence from the start in nats a response, of each held-out response `(S, T, N)`, and thousands of tokens
    generated in training, at each evaluation `(S, T)`.
    """
    settings: TextPolicyStudy = study.settings
    divergence, tokens = [], []
    for cell in study.results(policy_name(arm, seed) for seed in settings.seeds):
        lengths = torch.tensor([row["completions/mean_length"] for row in cell["log"]], dtype=torch.float64)
        generated = settings.responses_per_step * lengths.cumsum(0) / 1_000
        divergence.append([each["kl"] for each in cell["measured"]])
        steps = [each["step"] for each in cell["measured"]]
        tokens.append([0.0 if step == 0 else generated[step - 1].item() for step in steps])
    return torch.tensor(divergence, dtype=torch.float64), torch.tensor(tokens, dtype=torch.float64)
