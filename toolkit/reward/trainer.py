"""TRL's `RewardTrainer` with a score at several scales."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from datasets import Dataset
from peft import PeftConfig, PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction
from trl import RewardTrainer

from ..data.batches import (
    BESIDE_THE_ROWS,
    SIDES,
    MultiScaleCollator,
    has_lists,
    longest_first,
    longest_list,
    train_sampler,
)
from ..data.kernels import on_cpu
from ..data.markers import response_marker_ids
from ..data.positions import group_rows
from ..data.preparation import group_by_prompt, tokenize_pairs
from ..data.tastes import TASTE_COLUMNS, add_tastes
from ..data.templates import row_template_kwargs
from ..data.tokens import segment_boundary_ids
from ..stats.metrics import PairScores
from ..stats.rankings import ListScores, Scores, summarize
from ..training.cards import Card, ModelCards
from ..training.checkpoints import ExactResume
from ..training.progress import show_progress
from .adapters import save_adapter_settings
from .cards import reward_card
from .comparisons import reach_at, score_lists
from .config import MultiScaleRewardConfig
from .head import fold_outputs
from .loading import load_tokenizer
from .losses import score_pairs
from .model import base_reward_model
from .reading import read_pairs, taste_losses
from .record import RECORD_NAME, add_tokenizer, write_record
from .setup import (
    check_arguments,
    check_frozen,
    check_ids,
    check_lists,
    check_places,
    check_size,
    check_targets,
    check_tokenizer,
    engine_dtype,
    freeze_decoder,
    load_for_training,
    say_where_padding_is_eos,
    settle_dtypes,
    settle_sharing,
    shares_prompts,
    weigh_by_strength,
)
from .states import frozen_states
from .warmup import CoarseWarmup

logger = get_logger(__name__)


class MultiScaleRewardTrainer(ModelCards, ExactResume, RewardTrainer):
    """
    [`trl.RewardTrainer`] for a reward model with several scales. Loading of data, LoRA, ZeRO and saving stay TRL's.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Hub name or folder of a causal model, a reward model or an adapter, or a model from
            [`AutoModelForMultiScaleReward`].
        args ([`MultiScaleRewardConfig`]):
            Configuration.
        train_dataset ([`~datasets.Dataset`]):
            Pairs in any of TRL's preference formats, with optional columns `margin` and `strength`; or ranked lists:
            `prompt`, `responses` and `ranks`, with an optional column `strength`.
        eval_dataset ([`~datasets.Dataset`] or `dict` of them, *optional*):
            Held-out pairs or lists.
        kwargs (`dict`, *optional*):
            What [`trl.RewardTrainer`] takes: `processing_class`, `peft_config`, `quantization_config`, `callbacks`, …

    Raises:
        `ValueError`: If the data, the model or the LoRA configuration do not fit; the message names what and where.
    """

    _name = "MultiScaleReward"

    # As they are here; Transformers allows for more
    args: Any
    data_collator: Any
    model: Any
    processing_class: Any
    reward_model: Any
    _signature_columns: Any

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
        model = check_arguments(model, args, peft_config, kwargs)
        init_kwargs = args.model_init_kwargs
        if isinstance(model, str):
            if kwargs.get("processing_class") is None:  # TRL would ask for that of the base, in its newest revision
                options: Any = {"trust_remote_code": args.trust_remote_code, **(init_kwargs or {})}  # type: ignore[dict-item]
                kwargs["processing_class"] = load_tokenizer(model, **options)
            model = load_for_training(model, args, quantization_config, train_dataset)
            args.model_init_kwargs = None  # used up; TRL would warn that a loaded model ignores them
        check_tokenizer(kwargs.get("processing_class"), train_dataset, args)
        self.reward_model = base_reward_model(model)  # type: ignore[arg-type]
        self.shared_prompts = shares_prompts(self.reward_model, args)
        if args.freeze_decoder:
            check_frozen(model, args, peft_config)
            freeze_decoder(self.reward_model)
        check_targets(self.reward_model, peft_config)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            peft_config=peft_config,
            **kwargs,
        )
        args.model_init_kwargs = init_kwargs
        tokenizer = self.processing_class
        check_ids(self.reward_model, tokenizer)
        self._settle_layout(tokenizer)
        settle_dtypes(self.model, engine_dtype(args) if self.is_deepspeed_enabled else None)
        self.shared_prompts = settle_sharing(self.reward_model, args, self.train_dataset, self.shared_prompts)
        self.data_collator = MultiScaleCollator(
            pad_token_id=tokenizer.pad_token_id,
            pad_to_multiple_of=args.pad_to_multiple_of,  # type: ignore[arg-type]
            shared_prompts=self.shared_prompts,
            longest=longest_list(self.train_dataset),
        )
        say_where_padding_is_eos(tokenizer)
        check_size(self.train_dataset, args)
        if args.freeze_decoder:
            self.data_collator.table = frozen_states(self)
        self.add_callback(CoarseWarmup(args.coarse_warmup))
        show_progress(self)
        self._train_scores: list[Scores] = []  # since the last log
        # Of unlike numbers of pairs where tokens are counted or prompts have several; a step weighs all pairs alike.
        by_length = bool(args.max_tokens_per_batch) or args.train_sampling_strategy == "batch_rebalance"
        self._uneven_batches = by_length or args.group_by_prompt
        self.loss_is_scaled_for_ga = True if self._uneven_batches else None  # type: ignore[assignment]

    def _settle_layout(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Let the model remember the form of its training rows."""
        first: dict[str, Any] = self.train_dataset[0]  # type: ignore[index]  # checked: no stream, and not empty
        # Data that were tokenized elsewhere may lack it
        conversational = not isinstance(first["prompt"], str) if "prompt" in first else None
        options = {"chat_template_kwargs": first.get("chat_template_kwargs")}
        marker = [] if conversational is False else response_marker_ids(tokenizer, **row_template_kwargs(options))
        self.reward_model.set_layout(marker, segment_boundary_ids(tokenizer), conversational)

    def _prepare_dataset(  # type: ignore[override]  # the configuration is ours
        self,
        dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        args: MultiScaleRewardConfig,
        dataset_name: str,
    ) -> Dataset:
        given = dataset
        with args.main_process_first(desc=f"tokenizing {dataset_name}"):
            dataset = tokenize_pairs(
                given,
                dataset_name,
                processing_class,
                max_length=args.max_length,
                needs_prompt=self.reward_model.settings.reads_prompt,
                drop_long=args.drop_long_pairs,
                length_column_name=args.length_column_name,
                num_proc=args.dataset_num_proc,
            )
        if dataset is not given:  # else prepared before
            check_places(dataset, dataset_name, self.reward_model)
            dataset = weigh_by_strength(dataset, dataset_name) if args.weight_by_strength else dataset
            dataset = add_tastes(dataset, dataset_name, self.reward_model.settings, dataset_name == "train")
        if args.group_by_prompt and dataset_name == "train" and "chosen_ids" in dataset.column_names:
            dataset = group_by_prompt(dataset, dataset_name, args.length_column_name)
        if dataset_name == "train":
            check_lists(dataset, args)
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            super()._set_signature_columns_if_needed()  # type: ignore[no-untyped-call]
            self._signature_columns += ["chosen_start", "rejected_start", "shared_tokens", "weight"]  # type: ignore[operator]
            self._signature_columns += ["response_ids", "response_starts", "response_ranks", "response_pairs"]
            self._signature_columns += [*TASTE_COLUMNS, self.args.length_column_name]
            if (table := self.data_collator.table) is not None:
                self._signature_columns += [*table.columns, table.list_column]

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        sampler = train_sampler(dataset, self.args, self.shared_prompts)
        return super()._get_train_sampler(train_dataset) if sampler is None else sampler

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Any:
        return longest_first(eval_dataset[self.args.length_column_name][:])

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        mode = "train" if self.model.training else "eval"
        rows = {key: value for key, value in inputs.items() if key not in BESIDE_THE_ROWS}
        outputs = model(**rows, use_cache=False)
        scores: Scores = self.list_scores(outputs, inputs) if "ranks" in inputs else self.pair_scores(outputs, inputs)
        scores = scores._replace(loss=scores.loss + taste_losses(outputs, inputs, self.args.label_smoothing_factor))
        if mode == "train":
            tokens = self.accelerator.gather(inputs["pair_tokens"].sum()).sum().item()
            self._total_train_tokens += tokens // self._tp_size
            self._train_scores.append(self._gather_scores(type(scores)(*(each.detach() for each in scores))))
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        if mode == "train" and not bool(scores.loss.isfinite().all()):
            what = "list" if "ranks" in inputs else "pair"
            raise ValueError(
                f"The loss of a {what} is not finite after step {self.state.global_step}: {scores.loss.tolist()}. "
                "Lower `learning_rate`, look at `margin` and `strength` of the data, and go on from the last "
                "checkpoint."
            )
        if num_items_in_batch is None:
            loss = scores.loss.mean()
        else:  # the mean over all pairs of the step, when the gradients of the processes have been averaged
            loss = scores.loss.sum() * self.accelerator.num_processes / num_items_in_batch
        return (loss, scores) if return_outputs else loss

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        # Under DeepSpeed Transformers rounds all floats to the engine's dtype; these go into the loss, in float32
        floats = ("margin", "weight", *TASTE_COLUMNS[1:])
        exact = {name: inputs[name].to(self.args.device) for name in floats if name in inputs}
        return {**super()._prepare_inputs(inputs), **exact}

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor | None:
        """Pairs or lists of an optimizer step on all processes, where its batches differ in theirs."""
        if not self._uneven_batches:
            return None
        pairs = sum(len(batch.get("pairs", batch["group_sizes"])) for batch in batch_samples)
        return self.accelerator.reduce(torch.tensor(pairs, device=device), "sum")  # type: ignore[no-any-return]

    def _gather_scores(self, scores: Scores) -> Scores:
        if not self._uneven_batches:
            # All that were trained on. `gather_for_metrics` takes every batch of an epoch's last step for its last one
            return self.accelerator.gather(scores)  # type: ignore[no-any-return]
        parts = gather_object([tuple(on_cpu(scores))])
        return type(scores)(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def pair_scores(self, outputs: Any, inputs: dict[str, Tensor]) -> PairScores:
        """
        Losses and scores of a batch.

        Args:
            outputs ([`MultiScaleRewardOutput`]):
                What the model says of its rows.
            inputs (`dict[str, torch.Tensor]`):
                What [`~toolkit.data.batches.MultiScaleCollator`] gives beside the rows.

        Returns:
            [`~toolkit.stats.metrics.PairScores`]
        """
        args = self.args
        pairs = inputs["pairs"] if "pairs" in inputs else group_rows(inputs["group_sizes"], len(SIDES))
        return score_pairs(
            *read_pairs(outputs, pairs, self.reward_model.settings.reader),
            outputs.gate[pairs],
            inputs["response_tokens"][pairs],
            pointwise=args.loss_type == "pointwise",
            weight=inputs.get("weight"),
            margin=inputs.get("margin"),
            scale_weight=args.scale_loss_weight,
            label_smoothing=args.label_smoothing_factor,
            centering=args.center_rewards_coefficient,
        )

    def list_scores(self, outputs: Any, inputs: dict[str, Tensor]) -> ListScores:
        """Losses and scores of a batch of lists; arguments are those of [`pair_scores`]."""
        args, lists = self.args, group_rows(inputs["group_sizes"], inputs["ranks"].size(1))
        reach = args.list_reach
        if self.model.training and args.list_reach_warmup:
            progress = self.state.global_step / (args.list_reach_warmup * self.state.max_steps)
            reach = reach_at(progress, reach or self.data_collator.longest - 1)
        return score_lists(
            outputs.logits[lists, 0],
            outputs.scale_scores[lists],
            outputs.gate[lists],
            inputs["response_tokens"][lists],
            inputs["ranks"],
            loss_type=args.loss_type,
            reach=reach,
            weight=inputs.get("weight"),
            scale_weight=args.scale_loss_weight,
            label_smoothing=args.label_smoothing_factor,
            centering=args.center_rewards_coefficient,
        )

    def prediction_step(  # type: ignore[override]
        self, model: Any, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """One row a pair or list, so that what Transformers gathers and cuts to the set's length are whole ones."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, scores = self.compute_loss(model, inputs, return_outputs=True)
        return loss.detach(), tuple(scores), torch.ones_like(inputs["group_sizes"])

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Transformers' loop, with metrics that are exact over all rows rather than a mean over batches."""
        # The longest come first; what is returned, and given to `compute_metrics`, is in the data set's order.
        place = np.argsort(longest_first(dataloader.dataset[self.args.length_column_name][:]))
        compute_metrics = self.compute_metrics
        if compute_metrics is not None:
            self.compute_metrics = lambda found: compute_metrics(
                EvalPrediction(tuple(column[place] for column in found.predictions), found.label_ids)  # type: ignore[arg-type]
            )
        try:
            output = super().evaluation_loop(dataloader, description, False, ignore_keys, metric_key_prefix)
        finally:
            self.compute_metrics = compute_metrics
        output = output._replace(predictions=tuple(column[place] for column in output.predictions))  # type: ignore[arg-type]
        kind = ListScores if has_lists(dataloader.dataset) else PairScores
        scores = kind(*(torch.as_tensor(column) for column in output.predictions))
        summary = summarize(scores, self.reward_model.settings.scales)
        output.metrics.update({f"{metric_key_prefix}_{key}": value for key, value in summary.items()})  # type: ignore[union-attr]
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the figures of the pairs or lists trained on since the last log, exact over them."""
        if self._train_scores and self.model.training:
            kind = type(self._train_scores[0])
            scores = kind(*on_cpu(torch.cat(column) for column in zip(*self._train_scores, strict=True)))
            summary = summarize(scores, self.reward_model.settings.scales)
            summary.pop("loss")  # Transformers logs its own, over the same pairs
            logs.update(summary)
            self._train_scores.clear()
        super().log(logs, start_time)

    def _resume_state(self) -> dict[str, Any]:
        return {
            "num_tokens": self._total_train_tokens,
            "pairs": [tuple(scores) for scores in self._train_scores],
            "unit_prompt": self.reward_model.settings.unit_prompt,
        }

    def _restore_resume_state(self, state: dict[str, Any], same_processes: bool) -> None:
        self._total_train_tokens = state["num_tokens"]
        # A run that began before this was saved goes on as it began
        self.reward_model.set_unit_prompt(state.get("unit_prompt", False))
        kind = ListScores if has_lists(self.train_dataset) else PairScores
        self._train_scores = [kind(*scores) for scores in state["pairs"]]
        if self._uneven_batches:  # which are gathered on the CPU, and come back where the model is
            self._train_scores = [kind(*(column.cpu() for column in scores)) for scores in self._train_scores]

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        for head in {name.removesuffix("response") for name in state_dict or () if name.endswith(".response")}:
            fold_outputs(state_dict, self.reward_model.settings, head)
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = output_dir or self.args.output_dir
            self._save_adapter_settings(folder)
            model = self.accelerator.unwrap_model(self.model)
            if isinstance(model, PeftModel):
                write_record(model, folder)
            add_tokenizer(folder)

    def _card(self) -> Card:
        return reward_card(self)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # Transformers copies to where it pushes from what it knows the names of
        if self.is_world_process_zero():
            self._save_adapter_settings(self.args.output_dir)
            if (record := Path(checkpoint_folder, RECORD_NAME)).is_file():
                shutil.copy(record, self.args.output_dir)
        super()._push_from_checkpoint(checkpoint_folder)

    def _save_adapter_settings(self, folder: str) -> None:
        if isinstance(self.accelerator.unwrap_model(self.model), PeftModel):
            save_adapter_settings(self.reward_model.settings, folder)
