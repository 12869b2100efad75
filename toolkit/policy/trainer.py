"""TRL's `RLOOTrainer` with per-token credit, any baseline, and one generation a prompt where that is enough."""

import json
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import gather
from datasets import IterableDataset
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig
from trl import RLOOTrainer
from trl.trainer.utils import split_tensor_dict

from ..data.packing import why_not_shared
from ..reward.loading import keep_gradients_in_4bit
from ..reward.scorer import ResponseScore, RewardFunction, rewards_of
from ..reward.shared_base import SharedBaseRewardFunction
from ..training.checkpoints import ExactResume
from ..training.progress import show_progress
from .alignment import align_by_offsets, settled_length
from .config import ReinforceConfig
from .losses import clipped_policy_loss, reinforce_loss
from .passes import prefill_once, response_log_probs, unpadded
from .returns import (
    Moments,
    RidgeStatistics,
    batch_mean_baseline,
    batch_ridge_statistics,
    decay_and_add,
    leave_one_out_baseline,
    moving_average,
    prefix_features,
    reward_to_go,
    ridge_coefficients,
    update_moments,
    whiten,
)

logger = get_logger(__name__)


class ReinforceTrainer(ExactResume, RLOOTrainer):
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
        `ValueError`: If the prefix baseline has no reward function to read from, the policy takes images, or a reward
            adapter does not fit its base.
    """

    _name = "Reinforce"

    def __init__(self, model: Any, reward_funcs: Any, args: ReinforceConfig, **kwargs: Any) -> None:
        super().__init__(model=model, reward_funcs=reward_funcs, args=args, **kwargs)
        show_progress(self)
        if self._is_vlm:
            raise ValueError(f"{type(self).__name__} works on text only, but the policy takes images.")
        keep_gradients_in_4bit(self.model)  # which is in evaluation mode while it generates
        for func in self.reward_funcs:
            if isinstance(func, SharedBaseRewardFunction):
                func.attach(self.model)  # before training begins, when ZeRO-3 divides up what is in the model
        if args.disable_dropout:
            # TRL turns modules of dropout off; many attention layers keep their rate as a mere number.
            for module in self.model.modules():
                if isinstance(getattr(module, "attention_dropout", None), float):
                    module.attention_dropout = 0.0
        self._decoder = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        self._shared_prompts = why_not_shared(self._decoder) is None
        plain = not args.use_vllm and not args.use_transformers_continuous_batching and not args.cache_implementation
        if self._shared_prompts and plain:
            prefill_once(self._decoder)
        with_prefixes = [func for func in self.reward_funcs if isinstance(func, RewardFunction)]
        if args.prefix_baseline and len(with_prefixes) != 1:
            raise ValueError(
                "`prefix_baseline=True` reads the prefix values of one RewardFunction, but `reward_funcs` has "
                f"{len(with_prefixes)}. Wrap a multi-scale reward model in toolkit.RewardFunction, or set it to False."
            )
        self._prefix_source = with_prefixes[0] if args.prefix_baseline else None
        scales = len(self._prefix_source.settings.scales) if self._prefix_source else 0
        # One optimizer step uses up whole generation batches, so the policy that is trained is the one that sampled.
        self._on_policy = args.gradient_accumulation_steps % (args.steps_per_generation * args.num_iterations) == 0
        self._scores: list[ResponseScore | None] = []
        if self._prefix_source:
            self.reward_funcs[self.reward_funcs.index(self._prefix_source)] = self._score_and_keep
        self._moving_average: float | None = None
        self._reward_moments = Moments()
        self._prefix_fit = RidgeStatistics.empty(2 * (1 + scales))
        self._frozen_logps: list[Tensor] = []
        self._rewards = torch.empty(0)

    # TRL's method does everything from sampling to advantages and returns only their result. These two keep what it
    # passes by: the rewards, and the log-probabilities without gradient, of the policy first and then the reference.

    def _score_and_keep(
        self,
        prompts: list[Any],
        completions: list[Any],
        completion_ids: list[list[int]] | None = None,
        log_metric: Any = None,
        **columns: Any,
    ) -> list[float | None]:
        self._scores = self._prefix_source.score(prompts, completions, completion_ids, **columns)
        if log_metric is not None:
            self._prefix_source.report(self._scores, log_metric)
        return rewards_of(self._scores)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        self._rewards = super()._calculate_rewards(*args, **kwargs)
        return self._rewards

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
            # Without divergence and ratio, the log-probabilities of sampling have no use; an evaluation's loss has.
            result = input_ids.new_zeros(len(input_ids), logits_to_keep, dtype=torch.float32), None, None
        elif compute_aux_loss:  # which TRL's own pass makes of the attention mask
            result = super()._get_per_token_logps_and_entropies(
                model,
                input_ids,
                attention_mask,
                logits_to_keep,
                batch_size,
                compute_entropy,
                compute_aux_loss,
                **kwargs,
            )
        else:
            prompts, responses = unpadded(input_ids, attention_mask, logits_to_keep)
            with self.accelerator.autocast():
                logps, entropies = response_log_probs(
                    model,
                    self._decoder,
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
            whole = {key: torch.cat([part[key] for part in self._buffered_inputs]) for key in inputs}
            prompts = torch.cat([whole["prompt_mask"], whole["prompt_ids"]], dim=1)
            order = prompts.unique(dim=0, return_inverse=True)[1].argsort(stable=True)  # the shorter ones first
            self._buffered_inputs = split_tensor_dict({key: value[order] for key, value in whole.items()}, batches)
        return self._buffered_inputs[self._step % batches]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._frozen_logps.clear()
        output = super()._generate_and_score_completions(inputs)
        sampled, *reference = self._frozen_logps
        output["old_per_token_logps"] = sampled
        kl = sampled - reference[0] if reference else torch.zeros_like(sampled)
        # An evaluation has no baseline to keep and no gradient to take.
        training = self.model.training
        output["advantages"] = self._token_advantages(inputs, output, kl) if training else torch.zeros_like(sampled)
        return output

    def _token_advantages(self, inputs: list[dict[str, Any]], output: dict[str, Any], kl: Tensor) -> Tensor:
        """Advantages `(B, T)` of this process's responses; baselines see the responses of every process."""
        mask, metrics = output["completion_mask"], self._metrics["train"]
        scores = self._scores
        local = slice(self.accelerator.process_index * len(inputs), (self.accelerator.process_index + 1) * len(inputs))

        rewards = self._weighted(self._rewards)
        moments = self._reward_moments
        self._reward_moments = update_moments(moments, rewards)
        if moments.size == 0:
            moments = self._reward_moments  # the first batch has none before it
        rewards = self._shape(rewards, moments)
        returns = rewards - self.beta * gather((kl * mask).sum(1))
        baseline = self._baseline(inputs, returns, moments)
        metrics["baseline"].append(baseline.nanmean().item())

        to_go = reward_to_go(rewards[local], kl, mask, self.beta)
        # A response that was not scored, or has no other one to compare with, moves nothing.
        advantages = ((to_go - baseline[local][:, None]) * mask).nan_to_num()
        scored = mask * ~(rewards - baseline)[local].isnan()[:, None]
        if self._prefix_source:
            advantages = self._subtract_prefix(advantages, scores, scored, output)
        mean, std = self._mean_and_std(advantages, scored)
        if self.normalize_advantages:
            advantages = whiten(advantages, mean, std, scored)
            mean, std = self._mean_and_std(advantages, scored)
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

    def _baseline(self, inputs: list[dict[str, Any]], returns: Tensor, moments: Moments) -> Tensor:
        """Baseline `(N,)` of every process's responses."""
        if self.args.baseline == "leave_one_out":
            return leave_one_out_baseline(returns, self.num_generations)
        if self.args.baseline == "batch_mean":
            return batch_mean_baseline(returns)
        if self.args.baseline == "moving_average":
            earlier = 0.0 if self._moving_average is None else self._moving_average
            self._moving_average = moving_average(self._moving_average, returns, self.args.moving_average_decay)
            return torch.full_like(returns, earlier)
        if self.args.baseline == "greedy":
            return self._shape(self._greedy_rewards(inputs), moments)
        return torch.zeros_like(returns)

    def _greedy_rewards(self, inputs: list[dict[str, Any]]) -> Tensor:
        """Rewards `(N,)` of the greedy responses to the same prompts; each prompt is decoded once."""
        prompts = [example["prompt"] for example in inputs]
        distinct = {json.dumps(prompt): prompt for prompt in prompts}
        sampling, kwargs = self.generation_config, self.generation_kwargs
        greedy = {key: value for key, value in kwargs.items() if key not in ("temperature", "top_p", "top_k", "min_p")}
        self.generation_kwargs = {**greedy, "do_sample": False}
        self.generation_config = GenerationConfig(**self.generation_kwargs, disable_compile=True)
        try:
            ids = self._generate_single_turn(*self._tokenize_prompts(list(distinct.values())))
        finally:
            self.generation_config, self.generation_kwargs = sampling, kwargs
        texts = self.processing_class.batch_decode(ids, skip_special_tokens=True)
        found = dict(zip(distinct, zip(ids, texts, strict=True), strict=True))
        rows = [found[json.dumps(prompt)] for prompt in prompts]
        plain = isinstance(prompts[0], str)
        completions = [text if plain else [{"role": "assistant", "content": text}] for _, text in rows]
        rewards = super()._calculate_rewards(inputs, prompts, completions, [row_ids for row_ids, _ in rows])
        # The sampled responses' own have been logged by now; those of the greedy ones would mix with the next batch's.
        self._pending_metrics.clear()
        self._pending_extra_logs.clear()
        return self._weighted(rewards)

    def _subtract_prefix(
        self, advantages: Tensor, scores: list[ResponseScore | None], scored: Tensor, output: dict[str, Any]
    ) -> Tensor:
        """Subtract the fit of earlier batches `(B, T)`, then let this batch into the fit."""
        values, prompt_value = self._align(scores, output["completion_ids"], scored)
        features = prefix_features(values, prompt_value, scored, self.max_completion_length)
        coefficients = ridge_coefficients(self._prefix_fit, self.args.prefix_penalty).to(features)
        remaining = advantages - features @ coefficients

        count, _, before, _, after = self._reduced_sums(scored, advantages, advantages**2, remaining, remaining**2)
        self._metrics["train"]["prefix/explained"].append(
            (1 - after / before.clamp(min=1e-12)).item() if count else 0.0
        )
        batch = batch_ridge_statistics(features[scored.bool()], advantages[scored.bool()])
        batch = RidgeStatistics(*(self.accelerator.reduce(part, "sum").cpu() for part in batch))
        self._prefix_fit = decay_and_add(self._prefix_fit, batch, self.args.prefix_decay)
        return remaining

    def _align(self, scores: list[ResponseScore | None], ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Prefix values `(B, T, S)` after each of the *policy's* tokens, and of the empty response `(B, S)`."""
        scales = len(self._prefix_source.settings.scales)
        values, prompt_value = torch.zeros(*ids.shape, scales), torch.zeros(len(ids), scales)
        for i, score in enumerate(scores):
            length = int(mask[i].sum())
            if score is None or length == 0:
                continue
            prompt_value[i] = score.prompt_value
            if score.same_tokens:
                # Those of the template come before; one short where it writes no end
                known = score.prefix_values[score.head_tokens :][:length]
                values[i, : len(known)] = known
            else:
                values[i, :length] = align_by_offsets(score, self._settled_lengths(ids[i, :length].tolist()))
        return values.to(ids.device), prompt_value.to(ids.device)

    def _settled_lengths(self, ids: list[int]) -> list[int]:
        decode = self.processing_class.decode
        return [settled_length(decode(ids[: t + 1], skip_special_tokens=True)) for t in range(len(ids))]

    def _reduced_sums(self, mask: Tensor, *values: Tensor) -> Tensor:
        """Number of kept tokens and the kept sum of each of `values`, over every process."""
        sums = torch.stack([mask.sum().double(), *((value * mask).double().sum() for value in values)])
        return self.accelerator.reduce(sums, "sum")

    def _mean_and_std(self, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the kept `values` of every process; 0 where none is kept."""
        count, total, squares = self._reduced_sums(mask, values, values**2)
        mean = total / count.clamp(min=1)
        return mean, (squares / count.clamp(min=1) - mean**2).clamp(min=0).sqrt()

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
        if self._on_policy:
            loss = reinforce_loss(logps, inputs["advantages"], mask)
        else:
            old = inputs["old_per_token_logps"]
            loss, clipped = clipped_policy_loss(
                logps, old, inputs["advantages"], mask, self.epsilon_low, self.epsilon_high
            )
            count, cut = self._reduced_sums(mask, clipped)
            self._metrics[mode]["clip_ratio"].append((cut / count.clamp(min=1)).item())
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * aux_loss
            self._metrics[mode]["aux_loss"].append(self.accelerator.reduce(aux_loss.detach(), "mean").item())
        count, entropy = self._reduced_sums(mask, entropies.detach())
        self._metrics[mode]["entropy"].append((entropy / count.clamp(min=1)).item())
        return loss

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
            "prefix_fit": tuple(self._prefix_fit),
        }

    def _restore_resume_state(self, state: dict[str, Any], same_processes: bool) -> None:
        self._step, self._buffered_inputs = state["step"], state["generations"]
        if not same_processes and self._buffered_inputs is not None:
            logger.warning(
                "The generations that the checkpoint has not used up are those of other processes: new ones."
            )
            self._buffered_inputs = None
        if self.args.sync_ref_model:
            logger.warning(
                "The reference model of `sync_ref_model` is in no checkpoint: it is again what it began as."
            )
        self._moving_average = state["moving_average"]
        self._reward_moments = Moments(*state["reward_moments"])
        fit = RidgeStatistics(*(part.cpu() for part in state["prefix_fit"]))
        if fit.gram.shape != self._prefix_fit.gram.shape:
            raise ValueError(
                f"The checkpoint's prefix fit has {len(fit.moment)} features, this run's "
                f"{len(self._prefix_fit.moment)}. Resume with the same reward model and `prefix_baseline`."
            )
        self._prefix_fit = fit
