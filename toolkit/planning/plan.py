"""What a run needs before it is started: memory of each GPU, tokens and hours, from a model's configuration alone."""

import math
import os
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils.peft_utils import find_adapter_config_file

from ..reward.adapters import load_adapter_config
from ..reward.head import MultiScaleSettings
from ..reward.model import reward_model_class
from .memory import (
    Decoder,
    Overhead,
    Parameter,
    Precision,
    activation_bytes,
    cache_bytes,
    framework_overhead,
    in_bfloat16,
    inference_bytes,
    language_head_activations,
    model_states,
    score_activations,
)

# Rows that `RewardFunction` scores at once.
REWARD_ROWS = 16


class MemoryPlan(NamedTuple):
    """Bytes on each GPU."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    generation: (
        int  # cache, prompt pass and, under ZeRO-3, the whole weights; or vLLM that sleeps; 0 for a reward model
    )
    vllm: int  # that is awake throughout
    reward_model: int
    reference_model: int
    overhead: Overhead

    @property
    def total(self) -> int:
        """All that is held at once: generation and training alternate, so the larger of the two counts."""
        *held, overhead = self._replace(activations=max(self.activations, self.generation), generation=0)
        return sum(held) + sum(overhead)


class Run(NamedTuple):
    """How a model is trained, as far as memory goes. TRL's defaults, and those of the files in deepspeed_configs/."""

    rows: int = 8  # of one GPU in one forward and backward pass; a pair is two rows
    length: int = 1024  # tokens of a row, prompt and completion
    stage: int = 0  # of ZeRO; 0 is plain data parallelism
    gpus: int = 1
    offload: bool = False  # weights and optimizer to the CPU, under stage 3
    bf16: bool = True  # mixed precision
    gradient_checkpointing: bool = True
    completion_length: int = 0  # of a policy; 0 for a reward model
    generated_rows: int = 0  # of one GPU at once
    beta: float = 0.0  # of the divergence from a reference model
    prompt_length: int = 0  # tokens that rows of one prompt may share; 0: none
    rows_per_prompt: int = 2  # both sides of a pair, or the generations of a prompt
    card: int = 0  # bytes of a GPU, of which vLLM takes its share
    vllm_share: float | None = None  # on the same GPU; 0 with a server on others, `None` where Transformers samples
    vllm_sleeps: bool = False  # while the policy is trained
    reward_on_policy_base: bool = False  # the reward model is an adapter there


def load_config(name_or_path: str) -> PreTrainedConfig:
    """
    Configuration of a decoder, by the hub name or folder of a model, or of an adapter, whose base model is then meant.

    Raises:
        `ValueError`: If there is none, or it is not that of a dense decoder.
    """
    try:
        if (file := find_adapter_config_file(name_or_path)) is not None:
            name_or_path = load_adapter_config(os.path.dirname(file)).base_model_name_or_path
        config: PreTrainedConfig = AutoConfig.from_pretrained(name_or_path, num_labels=1)
    except Exception as error:  # values of other kinds make it fail in many ways
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(
            f"'{name_or_path}' has no configuration that can be read ({reason}). Name a model of the hub, or a folder "
            "with a config.json."
        ) from None
    text = config.get_text_config()
    for key in ("num_experts", "num_local_experts", "n_routed_experts"):
        if experts := getattr(text, key, None):
            raise ValueError(
                f"'{name_or_path}' is a mixture of experts (`{key}={experts}`), which is not planned. Name a dense "
                "decoder."
            )
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise ValueError(
            f"'{name_or_path}' is of type '{config.model_type}', which is not a decoder. Name a causal model such as "
            "Qwen3, Llama or GPT-2."
        )
    for key in ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size"):
        if not (isinstance(value := getattr(text, key, 1), int) and value > 0):
            raise ValueError(f"'{name_or_path}' has `{key}` {value!r} in its config.json. Restore it as it was saved.")
    return config


def build_model(
    config: PreTrainedConfig,
    reward: bool,
    dtype: torch.dtype = torch.float32,
    lora_rank: int = 0,
    load_in_4bit: bool = False,
    keep_adapter_dtype: bool = False,
) -> PreTrainedModel | PeftModel:
    """
    Our reward model, or a causal model, without weights, on the meta device, with the types of TRL's trainers.

    LoRA of a rank above 0 is on all linear layers. Its matrices are bfloat16 where the base will be in 4 bits, as TRL
    makes them, stay in `dtype` with `keep_adapter_dtype`, as TRL has it under ZeRO-3, and are else PEFT's float32.
    """
    with torch.device("meta"):
        if reward:
            if getattr(config, "multi_scale", None) is None:
                config.multi_scale = asdict(MultiScaleSettings())
            build: Any = reward_model_class(type(config))._from_config  # type: ignore[arg-type]  # a class is hashable
        else:
            build = AutoModelForCausalLM.from_config
        model: PreTrainedModel = build(config, dtype=dtype)
        if reward:
            model.score.float()  # it stays so outside DeepSpeed
        if not lora_rank:
            return model
        task = "SEQ_CLS" if reward else "CAUSAL_LM"
        lora = LoraConfig(task_type=task, r=lora_rank, target_modules="all-linear")
        adapted: PeftModel = get_peft_model(model, lora)
        adapter_dtype = torch.bfloat16 if load_in_4bit else dtype if keep_adapter_dtype else torch.float32
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.to(adapter_dtype)
        return adapted


def list_parameters(
    model: PreTrainedModel | PeftModel, load_in_4bit: bool = False, double_quantisation: bool = False
) -> list[Parameter]:
    """
    Every parameter of a model, on any device, once, tied ones too.

    With `load_in_4bit` linear layers count as 4-bit, but for adapters, heads and what is tied to the embedding: those
    that Transformers hands to bitsandbytes. With `double_quantisation` their constants are quantised, too.
    """
    base = _without_adapters(model)
    outside = [base.get_output_embeddings(), base.get_input_embeddings()]
    kept = {id(module.weight) for module in outside if module is not None}
    linears = [m for name, m in base.named_modules() if type(m) in (nn.Linear, Conv1D) and "lora_" not in name]
    packed = {id(module.weight) for module in linears} - kept if load_in_4bit else set()
    return [
        Parameter(
            numel=parameter.numel(),
            itemsize=parameter.itemsize,
            trainable=parameter.requires_grad,
            decays=parameter.ndim > 1,  # Transformers goes by name: biases and norms, which are all that are vectors
            quantised=id(parameter) in packed,
            double_quantised=double_quantisation,
        )
        for parameter in model.parameters()
    ]


def decoder_shape(model: PreTrainedModel | PeftModel, load_in_4bit: bool = False) -> Decoder:
    """Shape of a model's decoder, read off its first layer; linear layers in 4 bits count as without weights."""
    base = _without_adapters(model)
    config = base.config.get_text_config()
    layers = config.num_hidden_layers
    lists = [module for module in base.modules() if isinstance(module, nn.ModuleList) and len(module) == layers]
    modules = [(name, module) for name, module in lists[0][0].named_modules() if "lora_" not in name]
    # A linear map of GPT-2 has its weight the other way round.
    linears = [(name, *module.weight.shape[::-1]) for name, module in modules if type(module) is nn.Linear]
    linears += [(name, *module.weight.shape) for name, module in modules if type(module) is Conv1D]
    norms = [(name, module) for name, module in modules if "Norm" in type(module).__name__]
    inner = [name for name, _ in norms if name.endswith(("q_norm", "k_norm"))]
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Decoder(
        layers=layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        head_dim=head_dim,
        intermediate=linears[-1][1],  # what the last map of the layer, back to the residual stream, reads
        vocabulary=config.vocab_size,
        linears=len(linears),
        linear_inputs=sum(width for _, width, _ in linears),
        linear_weights=0 if load_in_4bit else sum(width * out for _, width, out in linears),
        norms=len(norms) - len(inner),
        gated=any("gate" in name for name, _, _ in linears),
        query_norm=bool(inner),
        layer_norm=any(isinstance(module, nn.LayerNorm) for _, module in norms),
        stored_scores=config._attn_implementation == "eager",
    )


def plan_memory(
    model: PreTrainedModel | PeftModel,
    run: Run,
    reward_model: PreTrainedModel | PeftModel | None = None,
    load_in_4bit: bool = False,
    double_quantisation: bool = False,
) -> MemoryPlan:
    """
    Bytes that a run holds on each GPU. The formulas are in [`toolkit.planning.memory`] and docs/memory.md.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            What is trained, on the meta device, in the types in which it is loaded: see [`build_model`].
        run ([`Run`]):
            How it is trained.
        reward_model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`], *optional*):
            What scores a policy's completions. Whole on every GPU, but under ZeRO-3; with `reward_on_policy_base` its
            adapters alone. A served one is not given: it holds nothing here.
        load_in_4bit (`bool`), double_quantisation (`bool`):
            Whether the base model is in 4 bits, and whether their constants are quantised, too. Neither by default.

    Returns:
        [`MemoryPlan`]

    Raises:
        `ValueError`: If what is asked for does not go together.
    """
    _check(run, isinstance(model, PeftModel), load_in_4bit)
    parameters = list_parameters(model, load_in_4bit, double_quantisation)
    decoder = decoder_shape(model, load_in_4bit)
    adapters = {name: parameter for name, parameter in model.named_parameters() if "lora_" in name}
    peft_configs: dict[str, Any] = model.peft_config if isinstance(model, PeftModel) else {}
    lora_rank = peft_configs["default"].r if peft_configs else 0
    adapter_itemsize = next((parameter.itemsize for parameter in adapters.values()), 0)
    precision = Precision(_loaded_itemsize(model), run.bf16, adapter_itemsize)
    if run.stage and run.bf16:  # DeepSpeed casts the weights instead of the products
        parameters, precision = in_bfloat16(parameters), Precision(2, False, 2 if adapters else 0)
    # The files in deepspeed_configs/ leave both sizes to Transformers, which derives them from the width.
    persistent, bucket = 10 * decoder.hidden, decoder.hidden**2
    states = model_states(parameters, run.stage, run.gpus, persistent, run.offload, float32_gradients=True)
    adapted = sum(parameter.numel() for parameter in adapters.values())
    activations = max(_activations(decoder, precision, run, *rows, lora_rank, adapted) for rows in layouts(run))
    overhead = framework_overhead(
        parameters, run.stage, run.gpus, persistent, bucket, run.offload, activations=activations
    )
    generation = vllm = reward = reference = 0
    if run.completion_length:
        if run.vllm_share is None:
            generation = _generation_bytes(decoder, precision, parameters, run)
        elif run.vllm_sleeps:
            generation = int(run.vllm_share * run.card)
        else:
            vllm = int(run.vllm_share * run.card)
        if run.beta and not adapters:  # with LoRA the reference is the policy without its adapter
            reference = _frozen_bytes(parameters, run, persistent)
    if reward_model is not None:
        scorer, rows = decoder_shape(reward_model), min(REWARD_ROWS, run.generated_rows)
        held = list_parameters(reward_model)
        if run.reward_on_policy_base:
            held = [parameter for parameter in held if parameter.trainable]
        reward = _frozen_bytes(held, run, 10 * scorer.hidden)
        reward += inference_bytes(scorer, rows, run.length, _loaded_itemsize(reward_model))
    return MemoryPlan(*states, activations, generation, vllm, reward, reference, overhead)


def layouts(run: Run) -> list[tuple[int, int, int]]:
    """
    Rows of a pass, tokens of each, and how many of these are sampled, in every way that a trainer may lay them out.

    Each row by itself, and, where prompts can be shared, one row of a prompt with all that follows it: fewer tokens,
    but longer rows, whose masks grow with the square. Which of the two a trainer takes is decided by its kernels.
    """
    found = [(run.rows, run.length, run.completion_length)]
    if run.prompt_length:
        each = run.rows_per_prompt
        own = (run.length - run.prompt_length) * each
        found.append((math.ceil(run.rows / each), run.prompt_length + own, run.completion_length * each))
    return found


def checkpoint_bytes(model: PreTrainedModel | PeftModel, run: Run) -> int:
    """
    Bytes of a checkpoint on the disk, of all processes together: the weights that are saved, which with LoRA are those
    that are trained, and the optimizer's states. With `save_total_limit` one more than that number lie there for a
    while.
    """
    parameters = list_parameters(model)
    if run.stage and run.bf16:
        parameters = in_bfloat16(parameters)
    trained = [parameter for parameter in parameters if parameter.trainable]
    saved = trained if isinstance(model, PeftModel) else parameters
    moments = sum(p.numel * 12 if run.stage else 2 * p.nbytes for p in trained)
    return sum(p.nbytes for p in saved) + moments


def _activations(
    decoder: Decoder,
    precision: Precision,
    run: Run,
    rows: int,
    length: int,
    sampled: int,
    lora_rank: int,
    adapter_weights: int,
) -> int:
    shape = (decoder, precision, rows, length)
    head = language_head_activations(*shape, sampled, lora_rank) if sampled else score_activations(*shape, lora_rank)
    return activation_bytes(*shape, run.gradient_checkpointing, head, lora_rank, adapter_weights)


def _without_adapters(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(base, PreTrainedModel)  # which PEFT types as a module
    return base


def _loaded_itemsize(model: PreTrainedModel | PeftModel) -> int:
    """Bytes an element of the type in which a model was loaded, which its embedding keeps."""
    return next(model.get_input_embeddings().parameters()).itemsize


def _generation_bytes(decoder: Decoder, precision: Precision, parameters: list[Parameter], run: Run) -> int:
    """Bytes that a policy's sampling holds: cache, a pass over the prompts, logits, and what ZeRO-3 gathers."""
    rows, prompt = run.generated_rows, run.length - run.completion_length
    total = cache_bytes(decoder, rows, run.length, precision.weights)
    total += inference_bytes(decoder, rows, prompt, precision.products)
    total += 4 * rows * decoder.vocabulary  # the last token's logits in float32
    if run.stage == 3:  # TRL's `ds3_gather_for_generation` puts the whole model together
        total += sum(p.nbytes for p in parameters)
    return total


def _frozen_bytes(parameters: list[Parameter], run: Run, persistent: int) -> int:
    """Bytes of a model that is not trained: partitioned under ZeRO-3 alone."""
    frozen = [parameter._replace(trainable=False) for parameter in parameters]
    if run.stage == 3:
        frozen = in_bfloat16(frozen) if run.bf16 else frozen
        return model_states(frozen, 3, run.gpus, persistent, run.offload).weights
    return model_states(frozen).weights


def _check(run: Run, lora: bool, load_in_4bit: bool) -> None:
    for name in ("rows", "length", "gpus"):
        if getattr(run, name) < 1:
            raise ValueError(f"`{name}` is {getattr(run, name)}. It must be 1 or more.")
    if load_in_4bit and not lora:
        raise ValueError(
            "4-bit weights cannot be trained themselves. Add `--lora-rank`, or leave out `--load-in-4bit`."
        )
    if run.offload and run.stage != 3:
        raise ValueError(f"Offloading is of ZeRO-3, but the stage is {run.stage}. Use `--zero 3`, or leave it out.")
    if run.prompt_length >= run.length:
        raise ValueError(
            f"Prompts of {run.prompt_length} tokens leave nothing of rows of {run.length} for the response. "
            "`--length` counts both: make it larger."
        )
    if run.reward_on_policy_base and not lora:
        raise ValueError("A reward model on the policy's base needs a policy that is an adapter. Add `--lora-rank`.")
    if run.completion_length >= run.length:
        raise ValueError(
            f"Completions of {run.completion_length} tokens leave nothing of rows of {run.length} for the prompt. "
            "`--length` counts both: make it larger."
        )
