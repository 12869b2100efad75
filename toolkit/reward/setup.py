"""What a reward training begins with: its model, the dtypes of what is trained, and what is refused."""

import os
import re
from typing import Any

import numpy as np
import pyarrow.compute as pc  # type: ignore[import-untyped]
import torch
from accelerate.logging import get_logger
from accelerate.utils import parse_flag_from_env
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel, TaskType
from torch import nn
from transformers import TrainingArguments, set_seed

from ..data.batches import SIDES, has_lists
from ..data.kernels import sharing_pays
from ..data.packing import why_not_shared
from ..data.tastes import taste_names
from ..training.command_line import as_name
from .config import MultiScaleRewardConfig
from .head import ASKED_FOR, MultiScaleSettings
from .loading import AutoModelForMultiScaleReward, generation_stops
from .losses import strength_weights
from .model import check_adapter

logger = get_logger(__name__)


def check_arguments(model: Any, args: Any, peft_config: PeftConfig | None, kwargs: dict[str, Any]) -> Any:
    """Refuse what would train or save another model than it seems; the model, a path as its text."""
    if not isinstance(args, MultiScaleRewardConfig):
        raise ValueError(
            f"`args` is a {type(args).__name__}. Give a MultiScaleRewardConfig, which has the options of TRL's "
            "RewardConfig."
        )
    if kwargs.get("data_collator") is not None:
        raise ValueError(
            "`data_collator` cannot be set: only the trainer's own knows where responses start. Leave it out."
        )
    if peft_config is not None:
        check_adapter(peft_config)
    if peft_config is not None and peft_config.task_type != TaskType.SEQ_CLS:
        raise ValueError(
            f"`peft_config.task_type` is {peft_config.task_type}, with which the score head would be frozen and left "
            "out of the saved adapter. Set `task_type='SEQ_CLS'`, or `--lora_task_type SEQ_CLS`."
        )
    return as_name(model)


def check_size(pairs: Any, args: TrainingArguments) -> None:
    """Refuse a training that `dataloader_drop_last` leaves without a step."""
    batch = args.train_batch_size * args.world_size
    if args.dataloader_drop_last and len(pairs) < batch:
        raise ValueError(
            f"`dataloader_drop_last=True` leaves none of the {len(pairs)} pairs, which are fewer than a batch of "
            f"{batch}. Set it to False, or make batches smaller."
        )


def check_lists(dataset: Any, args: MultiScaleRewardConfig) -> None:
    """Refuse what is known of pairs in rows of their own alone, where the training data are others."""
    lists = has_lists(dataset)
    if args.learning_rates is not None and "response_ids" in dataset.column_names:
        found = "ranked lists. Set" if lists else "in rows by their prompts. Leave `group_by_prompt` out, or set"
        raise ValueError(f"`learning_rates` are compared on pairs, and the training data are {found} `learning_rate`.")
    if args.group_by_prompt and lists:
        raise ValueError("`group_by_prompt` is for pairs, and the training data are ranked lists. Leave it out.")
    if lists and args.reader != "linear":
        raise ValueError(
            f"`reader='{args.reader}'` compares two responses, and the training data are ranked lists. Give pairs, or "
            "use 'linear'."
        )


def weigh_by_strength(dataset: Any, name: str) -> Any:
    """Give tokenized pairs or lists a column `weight` from their column `strength`, or say that they have none."""
    if "strength" in dataset.column_names:
        weights = strength_weights(torch.tensor(dataset["strength"][:], dtype=torch.float64))
        return dataset.add_column("weight", weights.tolist())
    what = "lists" if has_lists(dataset) else "pairs"
    logger.warning(f"Data set '{name}' has no column 'strength': all its {what} weigh the same.")
    return dataset


def check_tokenizer(tokenizer: Any, pairs: Any, args: MultiScaleRewardConfig) -> None:
    """Refuse a tokenizer without the tokens that end and pad a row, and a template that is not there."""
    path = args.chat_template_path
    if path and path.endswith((".jinja", ".j2")) and not os.path.isfile(path):
        raise ValueError(f"`chat_template_path` is '{path}', and there is no such file. Correct the path.")
    if tokenizer is None or args.eos_token or tokenizer.eos_token is not None:
        return
    example: dict[str, Any] = next(iter(pairs), {})
    if isinstance(next(iter(example.get("responses") or ()), example.get("chosen")), str):
        raise ValueError(
            "The tokenizer has no EOS token, with which a response in plain text ends. Set `tokenizer.eos_token`, or "
            "`--eos_token` to one that the vocabulary has."
        )
    if tokenizer.pad_token is None and not args.pad_token:
        raise ValueError(
            "The tokenizer has neither a padding token nor an EOS token to pad with. Set `tokenizer.pad_token`, or "
            "`--pad_token` to one that the vocabulary has."
        )


def check_targets(model: Any, peft_config: Any) -> None:
    """
    Refuse an adapter of which no layer is in a model, and warn of one of which some are not.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A model, with or without the adapter.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Configuration of the adapter.

    Raises:
        `ValueError`: Naming the layers.
    """
    targets = getattr(peft_config, "target_modules", None)
    if not targets or targets == "all-linear" or (isinstance(targets, str) and isinstance(model, PeftModel)):
        return
    names = [name for name, _ in model.named_modules()]
    if isinstance(targets, str):
        missing = [] if any(re.fullmatch(targets, name) for name in names) else [targets]
    else:
        missing = sorted(target for target in targets if not any(f".{name}".endswith(f".{target}") for name in names))
    found = f"`target_modules` names {missing}, which {type(model).__name__} has not"
    if missing and (isinstance(targets, str) or len(missing) == len(targets)):
        linear = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        raise ValueError(f"{found}. Name some of {sorted(linear)}.")
    if missing:
        logger.warning(f"{found}: an adapter is trained on the others alone.")


def check_ids(model: Any, tokenizer: Any) -> None:
    """
    Refuse special tokens that a model has no embedding for.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.

    Raises:
        `ValueError`: Naming the token.
    """
    wrapped = model.get_input_embeddings().modules()  # an adapter may stand around the embeddings
    size = next(module.num_embeddings for module in wrapped if isinstance(module, nn.Embedding))
    for name in ("pad_token", "eos_token", "bos_token"):
        number = getattr(tokenizer, f"{name}_id", None)
        if number is not None and number >= size:
            raise ValueError(
                f"The tokenizer's `{name}` '{getattr(tokenizer, name)}' has the id {number}, and the model has "
                f"embeddings for ids below {size}. Take a token that the model has, or call "
                f"`model.resize_token_embeddings({len(tokenizer)})` before training."
            )


def check_places(pairs: Any, name: str, model: Any) -> None:
    """
    Refuse rows that a model has no places for: learned positions have none, and `RewardFunction` cuts rows there.

    Args:
        pairs (`datasets.Dataset`):
            Tokenized pairs.
        name (`str`):
            Name of the data set, for the message.
        model ([`~transformers.PreTrainedModel`]):
            Reward model.

    Raises:
        `ValueError`: Naming the first row that is too long.
    """
    places = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if places is None:
        return
    lists, before = "response_ids" in pairs.column_names, 0
    columns = ["response_ids"] if lists else [f"{side}_ids" for side in SIDES]
    for part in pairs.select_columns(columns).with_format("arrow").iter(batch_size=10_000):
        if lists:
            starts = np.cumsum([0, *pc.list_value_length(part["response_ids"]).to_numpy()[:-1]])
            of_rows = pc.list_value_length(pc.list_flatten(part["response_ids"])).to_numpy()
            lengths = np.maximum.reduceat(of_rows, starts)
        else:
            lengths = np.maximum(*(pc.list_value_length(part[column]).to_numpy() for column in columns))
        if (lengths > places).any():
            row = int((lengths > places).argmax())
            raise ValueError(
                f"{'List' if lists else 'Pair'} {before + row + 1} of data set '{name}' has a row of {lengths[row]} "
                f"tokens, and {type(model).__name__} has places for {places}. Set `max_length={places}`, which cuts "
                "prompts from their left, or raise `max_position_embeddings` of a model whose positions are not "
                "learned."
            )
        before += len(lengths)


def shares_prompts(model: Any, args: MultiScaleRewardConfig) -> bool:
    """Whether both sides of a pair run in one row; refuses a model of other scales or one that cannot."""
    settings = model.settings
    for name in ASKED_FOR:
        own, asked = getattr(settings, name), getattr(args, name)
        if own != asked:
            raise ValueError(f"The model has `{name}={own!r}`, the configuration `{name}={asked!r}`. Give both alike.")
    layers = model.config.get_text_config().num_hidden_layers
    if args.num_hidden_layers not in (None, layers):
        raise ValueError(
            f"The model has {layers} layers, and `num_hidden_layers` is {args.num_hidden_layers}. Give the model by "
            "name, or load it with `MultiScaleSettings(num_hidden_layers=…)`."
        )
    reason = why_not_shared(model)
    if args.shared_prompts and reason is not None:
        raise ValueError(
            f"`shared_prompts=True`, but {type(model).__name__} cannot run both sides of a pair in one row: {reason}. "
            "Load it with `attn_implementation='sdpa'` where that is the reason, or leave `shared_prompts` unset."
        )
    if reason is not None and args.shared_prompts is None:
        logger.info(f"The two sides of a pair run in rows of their own, since {reason}.")
    return reason is None and args.shared_prompts is not False


def settle_sharing(model: Any, args: MultiScaleRewardConfig, dataset: Any, allowed: bool) -> bool:
    """Whether prompts are shared, where a decoder allows it: where that is asked for, and else where it saves time."""
    if args.shared_prompts or not allowed:
        return allowed
    lists = "response_starts" in dataset.column_names
    sizes = list(map(len, dataset["response_starts"])) if lists else [len(SIDES)] * len(dataset)
    lengths, shared = dataset[args.length_column_name][:], dataset["shared_tokens"][:]
    return sharing_pays(model, lengths, shared, sizes, args.device.type)


def say_where_padding_is_eos(tokenizer: Any) -> None:
    """Warn of a tokenizer with which stock classes read another token."""
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        logger.warning(
            "The padding token is the EOS token. Scores here are read at the last real token; stock classes look "
            "for the last token that is not padding and would read the one before EOS. Give the tokenizer a "
            "padding token of its own if the model will be used with them."
        )


def check_frozen(model: Any, args: MultiScaleRewardConfig, peft_config: PeftConfig | None) -> None:
    """Refuse what does not go with states of a decoder that were computed before."""
    refused = {
        "an adapter, which would be frozen with it": peft_config is not None or isinstance(model, PeftModel),
        "DeepSpeed, which has nothing to divide where the head alone is trained": args.deepspeed_plugin is not None,
        "FSDP, which has nothing to divide where the head alone is trained": (
            bool(args.fsdp) or parse_flag_from_env("ACCELERATE_USE_FSDP")
        ),
        "`max_tokens_per_batch`, since a batch of states has no tokens": args.max_tokens_per_batch is not None,
        f"`train_sampling_strategy='{args.train_sampling_strategy}'`, since states are as long as each other": (
            args.train_sampling_strategy in ("group_by_length", "batch_rebalance")
        ),
        "evaluation in half precision, since states are computed once": args.bf16_full_eval or args.fp16_full_eval,
    }
    for what, found in refused.items():
        if found:
            raise ValueError(f"`freeze_decoder=True` does not go with {what}. Leave one of the two out.")


def freeze_decoder(model: Any) -> None:
    """Leave the head of a reward model as all that is trained."""
    head = {f"score.{name}" for name, _ in model.score.named_parameters()}
    frozen = 0
    for name, parameter in model.named_parameters():
        if name not in head:
            parameter.requires_grad_(False)
            frozen += parameter.numel()
    trained = sum(parameter.numel() for parameter in model.score.parameters())
    logger.info(f"The decoder's {frozen:,} parameters are frozen; the head's {trained:,} are trained.")


def load_for_training(
    name_or_path: str, args: MultiScaleRewardConfig, quantization_config: Any, train_dataset: Any
) -> Any:
    """
    Load a model by name with the head that the configuration asks for, in float32 unless it says otherwise; the
    training set has the names of annotators and attributes.
    """
    if not isinstance(train_dataset, (Dataset, IterableDataset)):
        kind = type(train_dataset).__name__
        raise TypeError(f"`train_dataset` must be a `Dataset`, got `{kind}`. Of rows `Dataset.from_list` makes one.")
    set_seed(args.seed)  # the new head is random; TRL seeds here, too
    kwargs: dict[str, Any] = {**(args.model_init_kwargs or {})}  # type: ignore[dict-item]
    if quantization_config is not None:
        kwargs["quantization_config"] = quantization_config
    kwargs.setdefault("dtype", "float32")
    kwargs.setdefault("trust_remote_code", args.trust_remote_code)
    stops = generation_stops(name_or_path, **kwargs)
    annotators, attributes = taste_names(train_dataset, args.outputs, args.reader, args.reader_weights)
    settings = MultiScaleSettings(
        stop_token_ids=stops,
        annotators=annotators,
        attributes=attributes,
        **{name: getattr(args, name) for name in (*ASKED_FOR, "num_hidden_layers")},
    )
    return AutoModelForMultiScaleReward.from_pretrained(name_or_path, settings, **kwargs)


def engine_dtype(args: TrainingArguments) -> torch.dtype:
    """Dtype in which DeepSpeed holds the weights."""
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32


def settle_dtypes(model: nn.Module, deepspeed_dtype: torch.dtype | None) -> None:
    """
    Put the head in float32, or all that LoRA trains in the one dtype that DeepSpeed can divide up.

    Args:
        model (`torch.nn.Module`):
            Reward model, with or without an adapter.
        deepspeed_dtype (`torch.dtype` or `None`):
            Dtype of DeepSpeed's engine; `None` without DeepSpeed.
    """
    for name, parameter in model.named_parameters():
        if deepspeed_dtype is not None:
            # Its optimizer keeps and steps a float32 copy of every weight, so here nothing is lost in bfloat16.
            if parameter.requires_grad and isinstance(model, PeftModel):
                parameter.data = parameter.data.to(deepspeed_dtype)
        elif "score." in name:
            # TRL casts what QLoRA trains to bfloat16, in which a small optimizer step on the head is lost whole.
            parameter.data = parameter.data.float()
