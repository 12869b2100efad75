"""TRL's `RewardTrainer` with a score at several scales."""

from typing import Any

import numpy as np
import torch
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel, TaskType
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction
from trl import RewardTrainer

from ..data.batches import (
    EpochBatchRebalanceSampler,
    EpochLengthGroupedSampler,
    MultiScaleCollator,
    TokenBudgetSampler,
    longest_first,
)
from ..data.formats import normalize_pairs
from ..data.packing import why_not_shared
from ..data.tokens import response_marker_ids, segment_boundary_ids, tokenize_pair
from ..stats.metrics import PairScores, summarize_pairs
from ..training.checkpoints import ExactResume
from .adapter_files import save_adapter_settings
from .config import MultiScaleRewardConfig
from .head import MultiScaleHead, MultiScaleSettings
from .losses import centering_penalty, multi_scale_loss, strength_weights
from .model import AutoModelForMultiScaleReward, base_reward_model, load_tokenizer

logger = get_logger(__name__)


class MultiScaleRewardTrainer(ExactResume, RewardTrainer):
    """
    [`trl.RewardTrainer`] for a reward model with several scales. Loading of data, LoRA, ZeRO and saving stay TRL's.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Hub name or folder of a causal model, a reward model or an adapter, or a model from
            [`AutoModelForMultiScaleReward`].
        args ([`MultiScaleRewardConfig`]):
            Configuration.
        train_dataset ([`~datasets.Dataset`]):
            Pairs in any of TRL's preference formats, with optional columns `margin` and `strength`.
        eval_dataset ([`~datasets.Dataset`] or `dict` of them, *optional*):
            Held-out pairs.
        kwargs (`dict`, *optional*):
            What [`trl.RewardTrainer`] takes: `processing_class`, `peft_config`, `quantization_config`, `callbacks`, …

    Raises:
        `ValueError`: If the data, the model or the LoRA configuration do not fit; the message names what and where.
    """

    _name = "MultiScaleReward"

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: MultiScaleRewardConfig,
        train_dataset: Dataset,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        *,
        quantization_config: Any = None,
        peft_config: PeftConfig | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("data_collator") is not None:
            raise ValueError(
                "`data_collator` cannot be set: only the trainer's own knows where responses start. Leave it out."
            )
        if peft_config is not None and peft_config.task_type != TaskType.SEQ_CLS:
            raise ValueError(
                f"`peft_config.task_type` is {peft_config.task_type}, with which the score head would be frozen and "
                "left out of the saved adapter. Set `task_type='SEQ_CLS'`, or `--lora_task_type SEQ_CLS`."
            )
        init_kwargs = args.model_init_kwargs
        if isinstance(model, str):
            if kwargs.get("processing_class") is None:  # TRL would ask for that of the base, in its newest revision
                options = {"trust_remote_code": args.trust_remote_code, **(init_kwargs or {})}
                kwargs["processing_class"] = load_tokenizer(model, **options)
            model = self._load(model, args, quantization_config)
            args.model_init_kwargs = None  # used up; TRL would warn that a loaded model ignores them
        self.reward_model = base_reward_model(model)
        settings = self.reward_model.settings
        if (settings.scales, settings.context) != (args.scales, args.context):
            raise ValueError(
                f"The model has `scales={settings.scales}` and `context='{settings.context}'`, the configuration "
                f"`scales={args.scales}` and `context='{args.context}'`. Give both the same."
            )
        reason = why_not_shared(self.reward_model)
        if args.shared_prompts and reason is not None:
            raise ValueError(
                f"`shared_prompts=True`, but {type(self.reward_model).__name__} cannot run both sides of a pair in "
                f"one row: {reason}. Load it with `attn_implementation='sdpa'` where that is the reason, or leave "
                "`shared_prompts` unset."
            )
        self._shared_prompts = reason is None and args.shared_prompts is not False
        if reason is not None and args.shared_prompts is None:
            logger.info(f"The two sides of a pair run in rows of their own, since {reason}.")
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            peft_config=peft_config,
            **kwargs,
        )
        args.model_init_kwargs = init_kwargs
        self.reward_model.set_layout(
            response_marker_ids(self.processing_class), segment_boundary_ids(self.processing_class)
        )
        self._settle_dtypes()
        self.data_collator = MultiScaleCollator(
            pad_token_id=self.processing_class.pad_token_id,
            pad_to_multiple_of=args.pad_to_multiple_of,
            shared_prompts=self._shared_prompts,
        )
        if self.processing_class.pad_token_id == self.processing_class.eos_token_id:
            logger.warning(
                "The padding token is the EOS token. Scores here are read at the last real token; stock classes look "
                "for the last token that is not padding and would read the one before EOS. Give the tokenizer a "
                "padding token of its own if the model will be used with them."
            )
        # With PEFT the copy that is trained is among them
        self._heads = [module for module in self.model.modules() if isinstance(module, MultiScaleHead)]
        self._train_pairs: list[PairScores] = []  # since the last log
        # Some batches have more pairs than others where tokens are counted; a step still weighs all its pairs alike.
        self._uneven_batches = bool(args.max_tokens_per_batch) or args.train_sampling_strategy == "batch_rebalance"
        self.loss_is_scaled_for_ga = True if self._uneven_batches else None

    def _settle_dtypes(self) -> None:
        """The head in float32, or all that LoRA trains in the one dtype that DeepSpeed can divide up."""
        engine_dtype = torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else torch.float32
        for name, parameter in self.model.named_parameters():
            if self.is_deepspeed_enabled:
                # Its optimizer keeps and steps a float32 copy of every weight, so here nothing is lost in bfloat16.
                if parameter.requires_grad and isinstance(self.model, PeftModel):
                    parameter.data = parameter.data.to(engine_dtype)
            elif "score." in name:
                # TRL casts what QLoRA trains to bfloat16, in which a small optimizer step on the head is lost whole.
                parameter.data = parameter.data.float()

    @staticmethod
    def _load(name_or_path: str, args: MultiScaleRewardConfig, quantization_config: Any) -> Any:
        set_seed(args.seed)  # the new head is random; TRL seeds here, too
        kwargs = dict(args.model_init_kwargs or {})
        if quantization_config is not None:
            kwargs["quantization_config"] = quantization_config
        kwargs.setdefault("dtype", "float32")
        kwargs.setdefault("trust_remote_code", args.trust_remote_code)
        settings = MultiScaleSettings(scales=args.scales, context=args.context)
        return AutoModelForMultiScaleReward.from_pretrained(name_or_path, settings, **kwargs)

    def _prepare_dataset(
        self,
        dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        args: MultiScaleRewardConfig,
        dataset_name: str,
    ) -> Dataset:
        if isinstance(dataset, IterableDataset):
            raise TypeError(
                f"Data set '{dataset_name}' is streamed. Every pair is checked and the strengths are compared with "
                "their mean before training, so load it whole."
            )
        if "shared_tokens" in dataset.column_names:
            return dataset  # prepared before
        dataset = normalize_pairs(dataset, dataset_name, args.drop_unusable_pairs)
        with args.main_process_first(desc=f"tokenizing {dataset_name}"):
            dataset = dataset.map(
                tokenize_pair,
                with_indices=True,
                fn_kwargs={
                    "tokenizer": processing_class,
                    "max_length": args.max_length,
                    "dataset_name": dataset_name,
                    "needs_prompt": args.context != "none",
                    "length_column_name": args.length_column_name,
                },
                num_proc=args.dataset_num_proc,
                desc=f"Tokenizing {dataset_name}",
            )
        wrong = [reason for reason in dataset["error"] if reason]
        if wrong and not (args.drop_unusable_pairs and len(wrong) < len(dataset)):
            more = f" It is the first of {len(wrong)} such rows of {len(dataset)}." if len(wrong) > 1 else ""
            raise ValueError(wrong[0] + more)
        if wrong:
            what = f"{len(wrong)} of {len(dataset)} pairs, of which a response alone is longer than `max_length`"
            logger.warning(f"Data set '{dataset_name}': left out {what}={args.max_length}.")
            with args.main_process_first(desc=f"dropping rows of {dataset_name}"):
                dataset = dataset.filter(lambda reason: not reason, input_columns="error")
        dataset = dataset.remove_columns("error")
        cut = [tokens for tokens in dataset["cut_tokens"] if tokens]
        if cut:
            logger.warning(
                f"Data set '{dataset_name}': {len(cut)} of {len(dataset)} pairs were longer than "
                f"`max_length={args.max_length}` and lost {sum(cut) / len(cut):.0f} tokens on average, "
                f"{max(cut)} at most, from the left of their prompt."
            )
        if args.weight_by_strength and "strength" in dataset.column_names:
            weights = strength_weights(torch.tensor(dataset["strength"][:], dtype=torch.float64))
            dataset = dataset.add_column("weight", weights.tolist())
        elif args.weight_by_strength:
            logger.warning(f"Data set '{dataset_name}' has no column 'strength': all its pairs weigh the same.")
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            super()._set_signature_columns_if_needed()
            self._signature_columns += ["chosen_start", "rejected_start", "shared_tokens", "weight"]
            self._signature_columns.append(self.args.length_column_name)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Any:
        dataset, args = self.train_dataset if train_dataset is None else train_dataset, self.args
        seed = args.seed if args.data_seed is None else args.data_seed
        if args.max_tokens_per_batch:
            multiple = args.pad_to_multiple_of or 1
            if self._shared_prompts:
                lengths = dataset[args.length_column_name][:]
            else:
                sides = zip(dataset["chosen_ids"], dataset["rejected_ids"], strict=True)
                lengths = [max(len(chosen), len(rejected)) for chosen, rejected in sides]
            rows = 1 if self._shared_prompts else 2
            lengths = [-(-length // multiple) * multiple * rows for length in lengths]
            return TokenBudgetSampler(lengths, args.max_tokens_per_batch, seed, args.world_size, args.process_index)
        if args.train_sampling_strategy == "group_by_length":
            rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            return EpochLengthGroupedSampler(rows, dataset[args.length_column_name][:], seed)
        if args.train_sampling_strategy == "batch_rebalance":
            return EpochBatchRebalanceSampler(
                dataset[args.length_column_name][:],
                effective_batch_size=args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
                dp_size=args.world_size,
                grad_accum=args.gradient_accumulation_steps,
                seed=seed,
                rank=args.process_index,
                drop_last=args.dataloader_drop_last,
            )
        return super()._get_train_sampler(train_dataset)

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Any:
        return longest_first(eval_dataset[self.args.length_column_name][:])

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        mode = "train" if self.model.training else "eval"
        rows = {key: value for key, value in inputs.items() if key not in ("margin", "weight")}
        warmup = self.args.coarse_warmup * self.state.max_steps
        for head in self._heads:
            head.coarse_gradient = min(1.0, self.state.global_step / warmup) if warmup else 1.0
        outputs = model(**rows, use_cache=False)
        pairs = self._score_pairs(outputs, inputs)
        if mode == "train":
            tokens = self.accelerator.gather(inputs["attention_mask"].sum()).sum().item()
            self._total_train_tokens += tokens // self._tp_size
            self._train_pairs.append(self._gather_pairs(_detached(pairs)))
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        if num_items_in_batch is None:
            loss = pairs.loss.mean()
        else:  # the mean over all pairs of the step, when the gradients of the processes have been averaged
            loss = pairs.loss.sum() * self.accelerator.num_processes / num_items_in_batch
        return (loss, pairs) if return_outputs else loss

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        prepared = super()._prepare_inputs(inputs)
        # Under DeepSpeed Transformers rounds all floats to the engine's dtype; these go into the loss, in float32
        exact = {column: inputs[column].to(self.args.device) for column in ("margin", "weight") if column in inputs}
        return {**prepared, **exact}

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor | None:
        """Pairs of an optimizer step on all processes, where its batches differ in theirs."""
        if not self._uneven_batches:
            return None
        pairs = sum(len(batch["response_start"]) // 2 for batch in batch_samples)
        return self.accelerator.reduce(torch.tensor(pairs, device=device), "sum")

    def _gather_pairs(self, pairs: PairScores) -> PairScores:
        if not self._uneven_batches:
            # All that were trained on. `gather_for_metrics` takes every batch of an epoch's last step for its last one
            return self.accelerator.gather(pairs)
        parts = gather_object([tuple(column.cpu() for column in pairs)])
        return PairScores(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _score_pairs(self, outputs: Any, inputs: dict[str, Tensor]) -> PairScores:
        args = self.args
        chosen, rejected = outputs.logits[:, 0].chunk(2)  # the collator stacks all chosen, then all rejected
        scale_chosen, scale_rejected = outputs.scale_scores.chunk(2)
        losses = multi_scale_loss(
            chosen,
            rejected,
            scale_chosen,
            scale_rejected,
            pointwise=args.loss_type == "pointwise",
            weight=inputs.get("weight"),
            margin=inputs.get("margin"),
            scale_weight=args.scale_loss_weight,
            label_smoothing=args.label_smoothing_factor,
        )
        total = losses.total
        if args.center_rewards_coefficient is not None:
            total = total + args.center_rewards_coefficient * centering_penalty(chosen, rejected)
        chosen_length, rejected_length = outputs.response_mask.sum(1).chunk(2)
        return PairScores(
            chosen=chosen,
            rejected=rejected,
            scale_chosen=scale_chosen,
            scale_rejected=scale_rejected,
            gate=torch.stack(outputs.gate.chunk(2)).mean(0),
            chosen_length=chosen_length,
            rejected_length=rejected_length,
            loss=total,
            scale_losses=losses.scales,
        )

    def prediction_step(
        self, model: Any, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """One row a pair, so that what Transformers gathers and cuts to the data set's length are whole pairs."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, pairs = self.compute_loss(model, inputs, return_outputs=True)
        return loss.detach(), tuple(_detached(pairs)), torch.ones_like(pairs.chosen_length)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Transformers' loop, with metrics that are exact over all pairs rather than a mean over batches."""
        # The longest pairs come first; what is returned, and given to `compute_metrics`, is in the data set's order.
        place = np.argsort(longest_first(dataloader.dataset[self.args.length_column_name][:]))
        compute_metrics = self.compute_metrics
        if compute_metrics is not None and not self.args.batch_eval_metrics:
            self.compute_metrics = lambda found: compute_metrics(
                EvalPrediction(tuple(column[place] for column in found.predictions), found.label_ids)
            )
        try:
            output = super().evaluation_loop(dataloader, description, False, ignore_keys, metric_key_prefix)
        finally:
            self.compute_metrics = compute_metrics
        output = output._replace(predictions=tuple(column[place] for column in output.predictions))
        pairs = PairScores(*(torch.as_tensor(column) for column in output.predictions))
        summary = summarize_pairs(pairs, self.reward_model.settings.scales)
        output.metrics.update({f"{metric_key_prefix}_{key}": value for key, value in summary.items()})
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the figures of the pairs trained on since the last log, exact over them."""
        if self._train_pairs and self.model.training:
            pairs = PairScores(*(torch.cat(column) for column in zip(*self._train_pairs, strict=True)))
            summary = summarize_pairs(pairs, self.reward_model.settings.scales)
            summary.pop("loss")  # Transformers logs its own, over the same pairs
            logs.update(summary)
            self._train_pairs.clear()
        super().log(logs, start_time)

    def _resume_state(self) -> dict[str, Any]:
        return {"num_tokens": self._total_train_tokens, "pairs": [tuple(pairs) for pairs in self._train_pairs]}

    def _restore_resume_state(self, state: dict[str, Any], same_processes: bool) -> None:
        self._total_train_tokens = state["num_tokens"]
        self._train_pairs = [PairScores(*pairs) for pairs in state["pairs"]]
        if self._uneven_batches:  # which are gathered on the CPU, and come back where the model is
            self._train_pairs = [PairScores(*(column.cpu() for column in pairs)) for pairs in self._train_pairs]

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save and isinstance(self.accelerator.unwrap_model(self.model), PeftModel):
            save_adapter_settings(self.reward_model.settings, output_dir or self.args.output_dir)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # Transformers copies to where it pushes from what it knows the names of
        if self.is_world_process_zero() and isinstance(self.accelerator.unwrap_model(self.model), PeftModel):
            save_adapter_settings(self.reward_model.settings, self.args.output_dir)
        super()._push_from_checkpoint(checkpoint_folder)


def _detached(pairs: PairScores) -> PairScores:
    return PairScores(*(column.detach() for column in pairs))
