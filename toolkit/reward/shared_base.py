"""One base, several adapters: a reward model that is a LoRA adapter and a head on the policy's own weights."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from peft import (
    LoraConfig,
    PeftModel,
    PeftType,
    TaskType,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG_NAME
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled

from ..data.rotary import settle_frequencies
from ..data.tokens import EncodedResponse
from .adapters import load_adapter_config, load_adapter_settings, restore_adapter_dtype
from .head import MultiScaleHead, MultiScaleSettings
from .loading import keep_gradients_in_4bit, load_tokenizer
from .model import reward_model_class
from .record import ADAPTER_PREFIX, finder
from .saved_checks import check_base, check_saved
from .scorer import RewardFunction
from .scores import ResponseScore

ADAPTER_NAME = "shared_reward"
HEAD_PREFIX = f"{ADAPTER_PREFIX}score."  # of the head's keys in an adapter's file

# The others take the first singular vectors, or what 4 bits lose, out of the base's own weights.
INITS_THAT_KEEP_THE_BASE = (True, False, "gaussian", "orthogonal", "eva")


class SharedBaseRewardFunction(RewardFunction):
    """
    A [`RewardFunction`] whose reward model is a LoRA adapter on the policy's base: one copy of the weights in memory
    for policy, reference and reward model.

    It needs a policy that is trained with LoRA too, on the base that the reward adapter was trained on.
    [`ReinforceTrainer`] hands its policy over by itself; for TRL's own trainers call [`attach`] once the trainer is
    made. The base's weights have the policy's dtype and quantisation, the adapter the dtype in which it was saved, the
    head float32.

    Args:
        adapter (`str`):
            Folder of a LoRA adapter that [`MultiScaleRewardTrainer`] saved.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of the reward model. Where it is not given, the one beside the adapter, else its base's.
        kwargs (`dict`, *optional*):
            What [`RewardFunction`] takes beside: `policy_processing_class`, `batch_size`, `max_length`, …

    Raises:
        `ValueError`: If the folder is no such adapter, the adapter has more than LoRA matrices and the head, or
            `device` or `model_init_kwargs` are given, which are the policy's.

    Example:

    ```python
    trainer = ReinforceTrainer(
        model="Qwen/Qwen3-0.6B",
        reward_funcs=SharedBaseRewardFunction("runs/reward-lora"),  # trained on Qwen/Qwen3-0.6B
        args=ReinforceConfig(output_dir="runs/policy"),
        train_dataset=prompts,
        peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"),
    )
    ```
    """

    def __init__(self, adapter: str, processing_class: PreTrainedTokenizerBase | None = None, **kwargs: Any) -> None:
        if of_base := sorted(kwargs.keys() & {"device", "model_init_kwargs"}):
            raise ValueError(f"{of_base} are of the base, which is the policy's. Give them to the policy.")
        self._config = _adapter_config(adapter)
        self._record = check_saved(adapter, finder(adapter), adapter=True)
        self._folder = adapter
        self._policy: Any = None
        self._name = ""
        super().__init__(
            _without_backbone(adapter, self._config),
            processing_class or load_tokenizer(adapter),
            **kwargs,
        )

    def attach(self, policy: Any) -> None:
        """
        Put the adapter on a policy's base, frozen and left out of what the policy saves. The policy's own adapter
        stays the active one. Under ZeRO this comes before training begins, which is when the engine is made.

        Args:
            policy ([`~peft.PeftModel`]):
                Policy with a LoRA adapter of its own: a trainer's `model`.

        Raises:
            `ValueError`: If the policy's base is another model, or its training would change the base.
        """
        if policy is self._policy:
            return
        self._check(policy)
        base = policy.get_base_model()
        self._name = f"{ADAPTER_NAME}_{sum(name.startswith(ADAPTER_NAME) for name in policy.peft_config)}"
        _add_frozen_adapter(policy, self._name, self._folder)
        # PEFT saves every adapter into a folder of its name, where Transformers would look for it when it resumes.
        own = [name for name in policy.peft_config if not name.startswith(ADAPTER_NAME)]
        policy.save_pretrained = partial(type(policy).save_pretrained, policy, selected_adapters=own)
        keep_gradients_in_4bit(policy)  # which is in evaluation mode while it scores
        prefix = self.model.base_model_prefix
        settle_frequencies(base)
        setattr(self.model, prefix, getattr(base, prefix))
        self.model.config._attn_implementation = base.config._attn_implementation
        # The policy's engine divides the base up, so there is no engine to make for it here.
        self._partitioned = is_deepspeed_zero3_enabled()
        self._policy = policy

    def _check(self, policy: Any) -> None:
        alone = f"use RewardFunction('{self._folder}'), which has weights of its own"
        if not isinstance(policy, PeftModel):
            raise ValueError(
                f"The policy is a {type(policy).__name__} of which every weight is trained, and the reward model on "
                f"its base would change with it. Give the trainer a `peft_config`, or {alone}."
            )
        for config in policy.peft_config.values():
            if reason := _changes_base(config):
                raise ValueError(
                    f"The policy's adapter {reason}, and the reward model on its base would change with it. Train the "
                    f"policy with plain LoRA, or {alone}."
                )
        base: Any = policy.get_base_model()
        wanted, found = self._config.base_model_name_or_path, base.name_or_path
        revisions = [config.revision for config in policy.peft_config.values() if config.revision]
        other_revision = bool(self._config.revision and revisions) and self._config.revision not in revisions
        if other_revision or not _same_model(wanted, found):
            first, second = (
                f"'{name}'" + (f", revision '{revision}'" if revision else "")
                for name, revision in ((wanted, self._config.revision), (found, next(iter(revisions), None)))
            )
            raise ValueError(
                f"The reward adapter '{self._folder}' was trained on {first}, and the policy's base is {second}. "
                f"Begin the policy from the base of the reward adapter, or {alone}."
            )
        if self._record is not None and self._record.base is not None:
            revision = {"revision": self._record.base.commit} if self._record.base.commit else {}
            check_base(self._folder, self._record.base, str(found), finder(str(found), **revision))
        layers, read = base.config.get_text_config().num_hidden_layers, self.settings.num_hidden_layers
        if read not in (None, layers):
            raise ValueError(
                f"The reward adapter '{self._folder}' reads its base after {read} layers, and the policy's base runs "
                f"all {layers}. Train it without `num_hidden_layers`, or {alone}."
            )
        if len(set(getattr(base, "hf_device_map", {}).values())) > 1:
            raise ValueError(
                f"The policy is spread over several devices by `device_map`, which a shared base cannot be. Load it "
                f"on one device, or {alone}."
            )
        if PartialState().distributed_type == DistributedType.FSDP:
            raise ValueError(f"A shared base does not work under FSDP. Use DeepSpeed ZeRO, or {alone}.")

    def score_encoded(self, rows: Sequence[EncodedResponse]) -> list[ResponseScore]:
        """As in [`RewardFunction`], on the policy's base."""
        if self._policy is None:
            raise ValueError(
                f"The reward adapter '{self._folder}' has no base yet: ReinforceTrainer gives it that of its policy, "
                "and for another trainer call `attach(trainer.model)` once the trainer is made."
            )
        # To where trainers move the policy after it was attached; the model's own `device` is that of its head
        self.model.score.to(self._policy.device)
        with _active(self._policy, self._name):
            return super().score_encoded(rows)


@contextmanager
def _active(policy: Any, name: str) -> Iterator[None]:
    """Within it another adapter is active; after it all is as it was: adapter, what is trained, modes of modules."""
    tuner = policy.base_model
    active = tuner.active_adapter
    trained = [(parameter, parameter.requires_grad) for parameter in policy.parameters()]
    modes = [(module, module.training) for module in policy.modules()]
    try:
        tuner.set_adapter(name, inference_mode=True)
        yield
    finally:
        tuner.set_adapter(active)
        _restore(trained)
        for module, training in modes:
            module.training = training


def _restore(trained: list[tuple[nn.Parameter, bool]]) -> None:
    for parameter, requires_grad in trained:
        if parameter.requires_grad != requires_grad:
            parameter.requires_grad_(requires_grad)


def _same_model(first: Any, second: Any) -> bool:
    if os.path.isdir(first) and os.path.isdir(second):
        return os.path.samefile(first, second)
    return bool(os.path.normpath(first) == os.path.normpath(second))


def _changes_base(config: Any) -> str | None:
    """What of an adapter changes weights of the base that other adapters see."""
    if config.peft_type != PeftType.LORA:
        return f"is of the kind {config.peft_type.value}"
    if config.bias != "none":
        return f"trains biases of the base (`bias='{config.bias}'`)"
    if config.init_lora_weights not in INITS_THAT_KEEP_THE_BASE:
        return f"takes a part out of the base's weights (`init_lora_weights='{config.init_lora_weights}'`)"
    if config.layer_replication:
        return f"repeats layers of the base (`layer_replication={config.layer_replication}`)"
    return None


def _adapter_config(folder: str) -> Any:
    if not os.path.isfile(os.path.join(folder, ADAPTER_CONFIG_NAME)):
        raise ValueError(
            f"'{folder}' has no {ADAPTER_CONFIG_NAME}, so it is a whole model and not an adapter, and has no base to "
            f"share. Use RewardFunction('{folder}'), or train the reward model with `peft_config`."
        )
    config = load_adapter_config(folder)
    reason = _changes_base(config)
    if reason is None and (others := sorted({*(config.modules_to_save or [])} - {"score", "classifier"})):
        reason = f"has modules of its own beside the head (`modules_to_save={others}`)"
    if reason is None and config.trainable_token_indices:
        reason = "has embeddings of its own (`trainable_token_indices`)"
    if reason is None:
        own = [key for key in load_peft_weights(folder, device="cpu") if not key.startswith(HEAD_PREFIX)]
        if others := [key for key in own if "lora_" not in key]:
            reason = f"has weights of its own beside LoRA and head, as for tokens that the base has not ({others[0]})"
    if reason:
        raise ValueError(
            f"The reward adapter '{folder}' {reason}, so it cannot share its base with a policy. Use "
            f"RewardFunction('{folder}'), which has weights of its own, or train it with plain LoRA."
        )
    return config


def _without_backbone(folder: str, config: Any) -> Any:
    """The reward model of an adapter, with its trained head in float32, and no backbone yet."""
    settings = load_adapter_settings(folder)
    base_config: Any = AutoConfig.from_pretrained(
        config.base_model_name_or_path, num_labels=1, revision=config.revision
    )
    base_config.multi_scale = asdict(settings)
    config_class: Any = type(base_config)
    model_class = reward_model_class(config_class)
    model = model_class.__new__(model_class)
    PreTrainedModel.__init__(model, base_config)  # without the architecture's own, which would make a backbone
    model.settings = settings
    model.score = _load_head(folder, settings)
    return model.eval().requires_grad_(False)


def _load_head(folder: str, settings: MultiScaleSettings) -> MultiScaleHead:
    saved = load_peft_weights(folder, device="cpu")
    weights = {key.removeprefix(HEAD_PREFIX): value for key, value in saved.items() if key.startswith(HEAD_PREFIX)}
    with torch.device("meta"):
        head = MultiScaleHead(weights["weight"].size(-1) if "weight" in weights else 1, settings)
    missing = dict(head.named_parameters()).keys() ^ weights.keys()
    if missing:
        raise ValueError(
            f"The head of the reward adapter '{folder}' does not fit the settings beside it: {sorted(missing)} are in "
            "only one of them. Train it with `task_type='SEQ_CLS'`, as MultiScaleRewardTrainer asks for."
        )
    head.load_state_dict({key: value.float() for key, value in weights.items()}, assign=True)
    return head


def _add_frozen_adapter(policy: PeftModel, name: str, folder: str) -> None:
    """Load the LoRA matrices of a reward adapter into a policy; PEFT names them alike in both kinds of model."""
    lora = LoraConfig.from_pretrained(folder)
    lora.task_type, lora.modules_to_save, lora.inference_mode = TaskType.CAUSAL_LM, None, True
    lora.init_lora_weights = True  # overwritten; others would be computed from the base
    saved = load_peft_weights(folder, device="cpu")
    saved = {key: value for key, value in saved.items() if not key.startswith(HEAD_PREFIX)}
    trained = [(parameter, parameter.requires_grad) for parameter in policy.parameters()]
    engine_dtype = next(parameter.dtype for parameter, requires_grad in trained if requires_grad)
    # PEFT draws random numbers for new matrices, which would change what the policy then samples.
    with torch.random.fork_rng(devices=[]):
        policy.add_adapter(name, lora)
    _restore(trained)
    for parameter in _parameters_of(policy, name):
        parameter.requires_grad_(False)
    shapes = _shapes(get_peft_model_state_dict(policy, adapter_name=name, save_embedding_layers=False))
    if shapes != _shapes(saved):
        key = min(key for key, _ in shapes.items() ^ _shapes(saved).items())
        policy.delete_adapter(name)
        raise ValueError(
            f"The reward adapter '{folder}' does not fit the policy's base '{policy.get_base_model().name_or_path}': "
            f"'{key}' is {_shapes(saved).get(key, 'missing')} in the adapter's file and "
            f"{shapes.get(key, 'missing')} on the base. The base has changed since the adapter was trained, or the "
            f"adapter has more than LoRA on the decoder; use RewardFunction('{folder}')."
        )
    set_peft_model_state_dict(policy, saved, adapter_name=name)
    restore_adapter_dtype(policy, folder, name)
    if PartialState().distributed_type == DistributedType.DEEPSPEED:
        for parameter in _parameters_of(policy, name):  # its engine holds adapters of one dtype
            parameter.data = parameter.data.to(engine_dtype)


def _parameters_of(policy: PeftModel, name: str) -> list[nn.Parameter]:
    return [parameter for key, parameter in policy.named_parameters() if f".{name}." in f"{key}."]


def _shapes(weights: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in weights.items()}
