"""TRL's `RLOOTrainer` with per-token credit, any baseline, and one generation a prompt where that is enough."""

from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import gather
from datasets import IterableDataset
from peft import PeftModel
from torch import Tensor
from trl import RLOOTrainer

from ..data.kernels import on_cpu
from ..data.packing import why_not_shared
from ..reward.loading import keep_gradients_in_4bit
from ..reward.scorer import RewardFunction
from ..reward.setup import check_targets
from ..reward.shared_base import SharedBaseRewardFunction
from ..training.cards import Card, ModelCards
from ..training.checkpoints import ExactResume
from ..training.command_line import as_name
from ..training.progress import show_progress
from .cards import policy_card
from .config import ReinforceConfig
from .losses import clipped_policy_loss, reinforce_loss, sampling_weights
from .passes import decoder_of, prefill_once, prompts_together, response_log_probs, unpadded, why_not_prefilled
from .prefix_baseline import PrefixBaseline, only_source
from .reductions import mean_and_std, reduced_sums
from .returns import (
    Moments,
    batch_mean_baseline,
    check_rewards,
    leave_one_out_baseline,
    moving_average,
    reward_to_go,
    update_moments,
    whiten,
)
from .setup import (
    check_arguments,
    check_policy,
    check_prompts,
    checked,
    is_saved,
    leave_out_long_prompts,
    turn_off_dropout,
    warn_of_filters,
    warn_of_names,
)
from .vllm import SampledLogProbs

logger = get_logger(__name__)


class ReinforceTrainer(ModelCards, ExactResume, RLOOTrainer):
    """
    [`trl.RLOOTrainer`] with its own baseline, credit and loss. Generation, vLLM, the reference model, LoRA, ZeRO-3
    gathering and logging stay TRL's.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Policy.
        reward_funcs (`RewardFunction`, `Callable`, `str`, or a `list` of them):
            Reward functions, as TRL takes them. The prefix baseline needs exactly one [`RewardFunction`] among them.
            A [`SharedBaseRewardFunction`] is given the policy's base.
        args ([`ReinforceConfig`]):
            Configuration.
        train_dataset ([`~datasets.Dataset`]):
            Rows with a `prompt`, plain or messages.
        kwargs (`dict`, *optional*):
            What [`trl.RLOOTrainer`] takes: `eval_dataset`, `processing_class`, `peft_config`, `callbacks`, …

    Raises:
        `ValueError`: If the prefix baseline has no reward function to read from, the policy takes images or is no
            decoder, its tokenizer has no EOS token, or a reward adapter does not fit its base.
    """

    _name = "Reinforce"
    # Narrower than the libraries declare them, who allow for what cannot be here: no model, an image processor, …
    args: Any
    model: Any
    processing_class: Any
    num_generations: int
    router_aux_loss_coef: float
    _logs: dict[str, Any]
    _buffered_inputs: Any
    _train_sampler: Any

    def __init__(self, model: Any, reward_funcs: Any, args: ReinforceConfig, **kwargs: Any) -> None:
        model = as_name(model)
        check_arguments(model, reward_funcs, args, kwargs.get("peft_config"))
        super().__init__(model=model, reward_funcs=reward_funcs, args=args, **kwargs)
        show_progress(self)
        warn_of_names(self.reward_func_names)
        if self._is_vlm:
            raise ValueError(f"{type(self).__name__} works on text only, but the policy takes images.")
        keep_gradients_in_4bit(self.model)  # which is in evaluation mode while it generates
        for func in self.reward_funcs:
            if isinstance(func, RewardFunction):
                func.add_stop_token_ids(self.eos_token_ids)
            if isinstance(func, SharedBaseRewardFunction):
                func.attach(self.model)  # before training begins, when ZeRO-3 divides up what is in the model
        for config in self.model.peft_config.values() if isinstance(self.model, PeftModel) else ():
            check_targets(self.model, config)
        if args.disable_dropout:
            turn_off_dropout(self.model)
        self._decoder = decoder_of(self.model)
        check_policy(self._decoder, self._tokenizer, self.args.max_completion_length)
        if args.max_prompt_length is not None:
            self._leave_out_long_prompts(args.max_prompt_length)
        corrects = args.use_vllm and args.vllm_importance_sampling_correction
        self._sampled = SampledLogProbs(self.vllm_generation) if corrects else None
        if not corrects:
            warn_of_filters(args)
        self._shared_prompts = is_saved("Training", why_not_shared(self._decoder))
        plain = not args.use_vllm and not args.use_transformers_continuous_batching and not args.cache_implementation
        if plain and is_saved("Generation", why_not_prefilled(self._decoder)):
            prefill_once(self._decoder)
        # One optimizer step uses up whole generation batches, so the policy that is trained is the one that sampled.
        uses = self.args.steps_per_generation * args.num_iterations
        self._on_policy = args.gradient_accumulation_steps % uses == 0
        self._prefix_baseline: PrefixBaseline | None = None
        if args.prefix_baseline:
            self._prefix_baseline = baseline = PrefixBaseline(
                only_source(self.reward_funcs),
                self.processing_class.decode,
                max_length=self.args.max_completion_length,
                decay=args.prefix_decay,
                penalty=args.prefix_penalty,
            )
            # After TRL has taken the names for its metrics; in a new list, as the old one is the user's.
            self.reward_funcs = [baseline if func is baseline.source else func for func in self.reward_funcs]
        self._moving_average: float | None = None
        self._reward_moments = Moments()
        self._frozen_logps: list[Tensor] = []
        self._rewards = torch.empty(0)

    def _models_of_run(self) -> dict[str, tuple[Any, bool]]:
        funcs = [getattr(func, "source", func) for func in self.reward_funcs]  # the prefix baseline stands before one
        own_weights = [func for func in funcs if not isinstance(func, SharedBaseRewardFunction)]
        scorers = [func for func in own_weights if isinstance(func, RewardFunction) and func.model is not None]
        rewards = {f"reward model {i}": (func.model, False) for i, func in enumerate(scorers, 1)}
        return {**super()._models_of_run(), **rewards}

    def _card(self) -> Card:
        return policy_card(self)

    def _leave_out_long_prompts(self, most: int) -> None:
        self.train_dataset = leave_out_long_prompts(self.train_dataset, self._prompt_lengths, most)
        if self.eval_dataset is not None:
            self.eval_dataset = leave_out_long_prompts(self.eval_dataset, self._prompt_lengths, most)

    def _prompt_lengths(self, rows: dict[str, list[Any]]) -> list[int]:
        return list(map(len, self._tokenize_prompts(rows["prompt"])[0]))

    # TRL's `_generate_and_score_completions` does everything from sampling to advantages and returns one advantage a
    # response, without the rewards and the divergence of each token that ours are made of. These two methods keep what
    # it passes by, and there is no other way to it: the rewards, and the log-probabilities without gradient, of the
    # policy first and then of the reference. The order is TRL's, and tests/test_call_order.py holds it.

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        given, names = self.reward_funcs, self.reward_func_names
        self.reward_funcs = [checked(func, name) for func, name in zip(given, names, strict=True)]
        try:
            self._rewards = super()._calculate_rewards(*args, **kwargs)
        finally:
            self.reward_funcs = given
        # A judge may fail once; what has scored nothing in the first two batches will not score
        patient = not self.model.training or self._step == 0 or self._reward_moments.size > 0
        check_rewards(self._rewards.cpu(), self.reward_func_names, self.state.global_step, scored_before=patient)
        return self._rewards

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        check_prompts(self._decoder, prompt_ids, self.args.max_completion_length)
        return super()._generate_single_turn(prompt_ids, *args, **kwargs)  # type: ignore[no-untyped-call]

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """TRL's, with the prompt of several responses run once, and no pass whose result nothing reads."""
        frozen = not torch.is_grad_enabled()
        if frozen and self._on_policy and self.beta == 0 and not compute_entropy:
            # Without divergence and ratio nothing reads the log-probabilities of sampling; an evaluation's loss does.
            # NaN, since a zero would pass for the logarithm of a certain token.
            unknown = torch.full((len(input_ids), logits_to_keep), torch.nan, device=input_ids.device)
            result: tuple[Tensor, Tensor | None, Tensor | None] = unknown, None, None
        elif compute_aux_loss:  # which TRL's own pass makes of the attention mask
            stock, inputs = super()._get_per_token_logps_and_entropies, (input_ids, attention_mask, logits_to_keep)
            result = stock(model, *inputs, batch_size, compute_entropy, compute_aux_loss, **kwargs)
        else:
            prompts, responses = unpadded(input_ids, attention_mask, logits_to_keep)
            with self.accelerator.autocast():
                logps, entropies = response_log_probs(
                    model,
                    prompts,
                    responses,
                    width=logits_to_keep,
                    batch_size=batch_size or len(prompts),
                    pad_token_id=self._tokenizer.pad_token_id,
                    share=self._shared_prompts,
                )
            result = logps, entropies, None
        if frozen:
            self._frozen_logps.append(result[0])
        return result

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """TRL's, which shuffles; where one step uses up all responses, those to one prompt come together again."""
        batches, before = self.args.steps_per_generation, self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if not self.model.training or not self._on_policy or batches == 1:
            return inputs
        if self._buffered_inputs is not before:
            self._buffered_inputs = prompts_together(self._buffered_inputs)
        return self._buffered_inputs[self._step % batches]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._frozen_logps.clear()
        output = super()._generate_and_score_completions(inputs)
        sampled, *reference = self._frozen_logps
        output["old_per_token_logps"] = sampled
        if self._sampled is not None:
            output["sampling_per_token_logps"] = self._sampled.pop(output["completion_ids"])
        kl = sampled - reference[0] if reference else torch.zeros_like(sampled)
        # An evaluation has no baseline to keep and no gradient to take.
        training = self.model.training
        output["advantages"] = self._token_advantages(inputs, output, kl) if training else torch.zeros_like(sampled)
        return output

    def _token_advantages(self, inputs: list[dict[str, Any]], output: dict[str, Any], kl: Tensor) -> Tensor:
        """Advantages `(B, T)` of this process's responses; baselines see the responses of every process."""
        mask, metrics = output["completion_mask"], self._metrics["train"]
        local = slice(self.accelerator.process_index * len(inputs), (self.accelerator.process_index + 1) * len(inputs))

        rewards = self._weighted(self._rewards)
        moments = self._reward_moments
        self._reward_moments = update_moments(moments, rewards)
        if moments.size == 0:
            moments = self._reward_moments  # the first batch has none before it
        rewards = self._shape(rewards, moments)
        returns = rewards - self.beta * gather((kl * mask).sum(1))
        baseline = self._baseline(returns)

        to_go = reward_to_go(rewards[local], kl, mask, self.beta)
        # A response that was not scored, or has no other one to compare with, moves nothing.
        advantages: Tensor = ((to_go - baseline[local][:, None]) * mask).nan_to_num()
        scored = mask * ~(rewards - baseline)[local].isnan()[:, None]
        if self._prefix_baseline:
            advantages, explained = self._prefix_baseline.subtract(advantages, output["completion_ids"], scored)
            metrics["prefix/explained"].append(explained)
        if self.normalize_advantages:
            advantages = whiten(advantages, *mean_and_std(advantages, scored), scored)
        mean, std = on_cpu([baseline.nanmean(), mean_and_std(advantages, scored)[1]])
        metrics["baseline"].append(mean.item())
        metrics["advantage_std"].append(std.item())
        self._log_advantages(advantages[:, 0])
        return advantages

    def _weighted(self, rewards_per_func: Tensor) -> Tensor:
        weighted = rewards_per_func * self.reward_weights.to(rewards_per_func.device)
        return weighted.nansum(1).masked_fill(rewards_per_func.isnan().all(1), torch.nan)

    def _shape(self, rewards: Tensor, moments: Moments) -> Tensor:
        if self.args.normalize_rewards:
            rewards = (rewards - moments.mean) / moments.std
        return rewards.clamp(*self.reward_clip_range) if self.reward_clip_range else rewards

    def _baseline(self, returns: Tensor) -> Tensor:
        """Baseline `(N,)` of every process's responses."""
        if self.args.baseline == "leave_one_out":
            return leave_one_out_baseline(returns, self.num_generations)
        if self.args.baseline == "batch_mean":
            return batch_mean_baseline(returns)
        if self.args.baseline == "moving_average":
            earlier = 0.0 if self._moving_average is None else self._moving_average
            self._moving_average = moving_average(self._moving_average, returns, self.args.moving_average_decay)
            return torch.full_like(returns, earlier)
        return torch.zeros_like(returns)

    def _log_advantages(self, first: Tensor) -> None:
        """Put our advantages, at the first token, in the place of TRL's in its table of completions."""
        everyone = gather(first).tolist()
        for _ in range(min(len(everyone), len(self._logs["advantages"]))):
            self._logs["advantages"].pop()
        self._logs["advantages"].extend(everyone)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        mask, mode = inputs["completion_mask"], "train" if self.model.training else "eval"
        logps, entropies, aux_loss = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], mask], dim=1),
            inputs["completion_ids"].size(1),
            compute_entropy=True,
            compute_aux_loss=self.aux_loss_enabled,
        )
        # On-policy these are the same, and the pass that would find them out is left out
        old = logps.detach() if self._on_policy else inputs["old_per_token_logps"]
        advantages = inputs["advantages"]
        if self._sampled is not None:
            advantages = advantages * self._sampling_weights(old, inputs["sampling_per_token_logps"], mask, mode)
        if self._on_policy:
            loss = reinforce_loss(logps, advantages, mask)
        else:
            loss, clipped = clipped_policy_loss(logps, old, advantages, mask, self.epsilon_low, self.epsilon_high)
            count, cut = reduced_sums(mask, clipped)
            self._metrics[mode]["clip_ratio"].append((cut / count.clamp(min=1)).item())
        if aux_loss is not None:
            loss = loss + self.router_aux_loss_coef * aux_loss
            self._metrics[mode]["aux_loss"].append(self.accelerator.reduce(aux_loss.detach(), "mean").item())
        assert entropies is not None  # asked for above
        count, entropy = reduced_sums(mask, entropies.detach())
        self._metrics[mode]["entropy"].append((entropy / count.clamp(min=1)).item())
        return loss

    def _sampling_weights(self, old: Tensor, sampled: Tensor, mask: Tensor, mode: str) -> Tensor:
        """What weighs the tokens of vLLM's responses, with how far it was off in the metrics, by TRL's names."""
        whole = self.args.vllm_importance_sampling_mode == "sequence_truncate"
        weights = sampling_weights(old, sampled, mask, self.args.vllm_importance_sampling_clip_max, whole)
        metrics, known = self._metrics[mode], mask * ~sampled.isnan()
        off = (old - sampled).abs().nan_to_num() * known
        count, total, weighed = reduced_sums(known, off, weights)
        largest = torch.stack([(values * known).max() for values in (off, weights)])[None]
        metrics["sampling/sampling_logp_difference/mean"].append((total / count.clamp(min=1)).item())
        metrics["sampling/importance_sampling_ratio/mean"].append((weighed / count.clamp(min=1)).item())
        worst, heaviest = gather(largest).amax(0).tolist()
        metrics["sampling/sampling_logp_difference/max"].append(worst)
        metrics["sampling/importance_sampling_ratio/max"].append(heaviest)
        return weights

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        self._train_sampler = super()._get_train_sampler(dataset)
        return self._train_sampler

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or self.state.epoch < 1:
            return
        if isinstance(self.train_dataset, IterableDataset):
            logger.warning(
                "The prompts are streamed, and Transformers counts no epochs of a stream: those that follow are not "
                "the ones of an undisturbed run. Load them whole where that matters."
            )
        elif self.shuffle_dataset:
            # TRL's sampler draws a new order an epoch from one generator, so that of a later epoch follows from the
            # draws before it.
            for _ in range(int(self.state.epoch)):
                torch.randperm(self._train_sampler.num_samples, generator=self._train_sampler.generator)

    def _resume_state(self) -> dict[str, Any]:
        used_up = self._step % (self.args.steps_per_generation * self.num_iterations) == 0
        return {
            "step": self._step,
            "generations": None if used_up else self._buffered_inputs,
            "moving_average": self._moving_average,
            "reward_moments": tuple(self._reward_moments),
            **(self._prefix_baseline.state_dict() if self._prefix_baseline else {}),
        }

    def _restore_resume_state(self, state: dict[str, Any], same_processes: bool) -> None:
        self._step, self._buffered_inputs = state["step"], state["generations"]
        if not same_processes and self._buffered_inputs is not None:
            logger.warning(
                "The generations that the checkpoint has not used up are those of other processes: new ones."
            )
            self._buffered_inputs = None
        left = self._buffered_inputs
        if left is not None and self._sampled is not None and "sampling_per_token_logps" not in left[0]:
            logger.warning(
                "The generations that the checkpoint has not used up lack what vLLM says of its samples: new ones."
            )
            self._buffered_inputs = None
        if self.args.sync_ref_model:
            logger.warning(
                "The reference model of `sync_ref_model` is in no checkpoint: it is again what it began as."
            )
        self._moving_average = state["moving_average"]
        self._reward_moments = Moments(*state["reward_moments"])
        if self._prefix_baseline:
            self._prefix_baseline.load_state_dict(state)
        elif "prefix_fit" in state and state["prefix_fit"][1].any():
            raise ValueError(
                "The checkpoint has a prefix fit, and this run has `prefix_baseline=False`. Resume with True, or load "
                "the checkpoint as a model to begin a new run."
            )
