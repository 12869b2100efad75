"""What training holds on one GPU, in bytes, from counts alone: weights, gradients, optimizer, activations, cache."""

import math
from typing import NamedTuple

# Defaults of DeepSpeed 0.19 (`runtime/zero/config.py`), in elements.
MAX_LIVE_PARAMETERS = 1_000_000_000
SUB_GROUP = 1_000_000_000

# Assumed, not derived: the CUDA context with the kernels and workspaces of cuBLAS, and NCCL's channels.
CUDA_CONTEXT = 1_000_000_000
NCCL_CHANNELS = 500_000_000

# Tiles in which TRL's language-model head works (`trl/kernels/chunked_logprob.py`), in tokens and vocabulary entries.
HEAD_TILE_TOKENS, HEAD_TILE_VOCABULARY = 4096, 32768


class Parameter(NamedTuple):
    """One tensor of weights."""

    numel: int
    itemsize: int  # bytes an element, where it is not in 4 bits
    trainable: bool
    decays: bool = True  # whether the optimizer decays it: DeepSpeed flattens the two groups apart
    quantised: bool = False  # held in 4 bits
    double_quantised: bool = False

    @property
    def nbytes(self) -> int:
        return nf4_bytes(self.numel, self.double_quantised) if self.quantised else self.numel * self.itemsize


class ModelStates(NamedTuple):
    """What stays on one GPU from step to step, in bytes."""

    weights: int
    gradients: int
    optimizer: int


class Decoder(NamedTuple):
    """Shape of a dense decoder. All linear figures are of one layer."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    linears: int = 7  # linear maps; two of them write to the residual stream, the others read a norm's output
    linear_inputs: int = 0  # their input widths, summed
    linear_weights: int = 0  # their weights, summed, without adapters
    norms: int = 2  # as wide as the residual stream
    gated: bool = True  # SwiGLU and its kin; otherwise one map up, one down
    query_norm: bool = False  # queries and keys are normed head by head
    layer_norm: bool = False  # LayerNorm; otherwise RMSNorm
    stored_scores: bool = False  # eager attention, of architectures that SDPA cannot do


class Precision(NamedTuple):
    """Bytes an element in the forward pass."""

    weights: int  # of the weights outside linear maps, and so of the residual stream
    autocast: bool  # whether matrix products run in bfloat16 whatever the weights are
    adapters: int = 0  # of LoRA's matrices; 0 in full fine-tuning

    @property
    def products(self) -> int:
        return 2 if self.autocast else self.weights

    @property
    def adapter_products(self) -> int:
        return 2 if self.autocast else self.adapters


class Overhead(NamedTuple):
    """What the frameworks hold beside the model, in bytes."""

    context: int  # CUDA context and communication library, assumed
    buckets: int  # buffers in which gradients are reduced
    gathered: int  # parameters that ZeRO-3 has put together for use, at most
    step: int  # what the optimizer step needs for a moment beyond what activations leave free


def nf4_bytes(numel: int, double_quantisation: bool = False) -> int:
    """
    Bytes of a weight matrix in 4-bit NormalFloat with one constant for every 64 weights.

    Section 3 of https://huggingface.co/papers/2305.14314: 4 bits a weight and 32 / 64 = 0.5 bits of constants; with
    double quantisation the constants take 8 bits and one second constant for every 256 of them 32 bits, which is
    8 / 64 + 32 / (64 * 256) = 0.127 bits a weight.
    """
    constants = math.ceil(numel / 64)
    constant_bytes = constants + 4 * math.ceil(constants / 256) if double_quantisation else 4 * constants
    return math.ceil(numel / 2) + constant_bytes


def in_bfloat16(parameters: list[Parameter]) -> list[Parameter]:
    """The weights as DeepSpeed holds them in bfloat16: all cast, frozen ones and heads included, but not 4 bits."""
    return [p if p.quantised else p._replace(itemsize=2) for p in parameters]


def model_states(
    parameters: list[Parameter],
    stage: int = 0,
    gpus: int = 1,
    persistent: int = 0,
    offload: bool = False,
    float32_gradients: bool = False,
) -> ModelStates:
    r"""
    Weights, gradients and AdamW's states on one GPU.

    Section 3 of https://huggingface.co/papers/1910.02054, with $\Psi$ parameters on $N$ GPUs: $2\Psi$ weights,
    $2\Psi$ gradients and $12\Psi$ of float32 weights and two moments; stage 1 divides the last by $N$, stage 2 the
    gradients, too, stage 3 everything. What DeepSpeed 0.19 holds differs in places, and is what is counted:

    - Stage 0 is plain data parallelism without DeepSpeed: gradients and both moments in each parameter's own type.
    - DeepSpeed keeps a float32 copy of what is trained even where that is float32: $4\Psi + 4\Psi + 12\Psi / N$.
    - Stages 1 and 2 hold trainable weights in flat buffers, one a group of weight decay, padded to a multiple of
      $2N$; frozen weights are whole on every GPU. Stage 1 accumulates whole gradients. Stage 2 keeps the whole
      gradient of a tensor that lies across the border of two partitions; the fullest GPU counts.
    - Stage 3 cuts every tensor, frozen ones included, into $N$ pieces, rounded up. Small ones also stay whole.
    - `offload`, of weights and optimizer under stage 3, leaves only the small whole ones.
    - With `float32_gradients` those of bfloat16 weights add up in float32: in stage 1 whole ones, beside those that a
      backward pass has made; in stage 2 those of the own partition alone, to the element.

    Args:
        parameters (`list[Parameter]`):
            All weights in the model's order, [`in_bfloat16`] for DeepSpeed's bfloat16.
        stage (`int`, *optional*, defaults to 0), gpus (`int`, *optional*, defaults to 1):
            ZeRO stage, from 0 to 3, and number of GPUs.
        persistent (`int`, *optional*, defaults to 0):
            Most elements of a tensor that ZeRO-3 keeps whole: DeepSpeed's `stage3_param_persistence_threshold`.
        offload (`bool`, *optional*, defaults to `False`):
            Whether ZeRO-3 keeps weights and optimizer on the CPU.
        float32_gradients (`bool`, *optional*, defaults to `False`):
            Whether DeepSpeed's `grad_accum_dtype` is float32, as in the files of `deepspeed_configs/`.

    Returns:
        [`ModelStates`]
    """
    trainable = [p for p in parameters if p.trainable]
    own = sum(p.numel * p.itemsize for p in trainable)
    if stage == 0:
        return ModelStates(sum(p.nbytes for p in parameters), own, 2 * own)
    size = _trained_itemsize(parameters)
    mixed = float32_gradients and size < 4
    if stage == 3:
        plain = [p for p in parameters if not p.quantised]
        # On one GPU the only piece is already whole.
        small = sum(p.nbytes for p in plain if p.numel <= persistent) if gpus > 1 or offload else 0
        if offload:
            return ModelStates(small, 0, 0)
        packed = sum(math.ceil(p.nbytes / gpus) for p in parameters if p.quantised)
        pieces = sum(math.ceil(p.numel / gpus) * p.itemsize for p in plain)
        return ModelStates(
            weights=packed + pieces + small,
            gradients=sum(math.ceil(p.numel / gpus) * (4 if mixed else p.itemsize) for p in trainable),
            optimizer=sum(math.ceil(p.numel / gpus) for p in trainable) * 12,
        )
    frozen = sum(p.nbytes for p in parameters if not p.trainable)
    groups = [[p.numel for p in trainable if p.decays is decays] for decays in (True, False)]
    padded = sum(math.ceil(sum(group) / (2 * gpus)) * 2 * gpus for group in groups)
    if stage == 1:
        held = own + (4 * padded if mixed else 0)
    else:
        held = padded // gpus * 4 if mixed else sum(fullest_partition(group, gpus) for group in groups) * size
    return ModelStates(frozen + padded * size, held, padded // gpus * 12)


def host_bytes(parameters: list[Parameter], gpus: int) -> int:
    """
    Bytes that ZeRO-3 with `offload` holds on the CPU for each GPU: its pieces of the weights; and of what is trained
    float32 weights and two moments, the gradients as they add up, in float32, and those of the step.
    """
    share = sum(math.ceil(p.numel / gpus) for p in parameters if p.trainable)
    return model_states(parameters, 3, gpus).weights + share * (12 + 4 + 4)


def fullest_partition(numels: list[int], gpus: int) -> int:
    """
    Elements of all tensors that touch a partition, where most do. Tensors of so many elements are laid end to end, in
    their order, and cut into a part for each GPU.
    """
    part = math.ceil(sum(numels) / (2 * gpus)) * 2
    touching, start = [0] * gpus, 0
    for numel in numels:
        for rank in range(start // part, (start + numel - 1) // part + 1):
            touching[rank] += numel
        start += numel
    return max(touching)


def _trained_itemsize(parameters: list[Parameter]) -> int:
    """Bytes an element of what is trained, in which DeepSpeed also holds gradients and buffers."""
    return max((p.itemsize for p in parameters if p.trainable), default=4)


def framework_overhead(
    parameters: list[Parameter],
    stage: int,
    gpus: int,
    persistent: int,
    bucket: int,
    offload: bool = False,
    activations: int = 0,
) -> Overhead:
    """
    CUDA context, buffers of communication, and what the optimizer step needs for a moment.

    Plain data parallelism on several GPUs reduces gradients in buckets that together are as large as they are
    (`gradient_as_bucket_view=False`, the default of torch and accelerate). DeepSpeed allocates its buckets whole,
    however small the model: two in stages 1 and 2 with `overlap_comm`, one in stage 3. ZeRO-3 keeps up to
    `MAX_LIVE_PARAMETERS` elements put together for use. At the step the partition's gradients, which have added up in
    float32, are laid end to end, by stage 3 no more than `SUB_GROUP` elements at a time; those of bfloat16 weights lie
    so from the beginning in stages 1 and 2. Activations are gone by then, so only what exceeds them counts. torch's
    AdamW is the fused one, without copies.

    Args:
        parameters (`list[Parameter]`), stage (`int`), gpus (`int`), persistent (`int`), offload (`bool`):
            As in [`model_states`]. With `offload` the step is taken on the CPU.
        bucket (`int`):
            Elements of DeepSpeed's `reduce_bucket_size`.
        activations (`int`, *optional*, defaults to 0):
            Bytes of activations, free at the step.

    Returns:
        [`Overhead`]
    """
    context = CUDA_CONTEXT + (NCCL_CHANNELS if gpus > 1 else 0)
    trainable = [p for p in parameters if p.trainable]
    if stage == 0:
        return Overhead(context, sum(p.numel * p.itemsize for p in trainable) if gpus > 1 else 0, 0, 0)
    size = _trained_itemsize(parameters)
    share, gathered = math.ceil(sum(p.numel for p in trainable) / gpus), 0
    if stage == 3:
        large = sum(p.numel for p in parameters if p.numel > persistent and not p.quantised)
        gathered, share = min(large, MAX_LIVE_PARAMETERS) * size, 0 if offload else min(share, SUB_GROUP)
    buckets = (1 if stage == 3 else 2) * bucket * size
    copies = 4 + size if size == 4 else 4 if stage == 3 else 0  # bytes an element
    return Overhead(context, buckets, gathered, max(0, share * copies - activations - buckets - gathered))


def layer_activations(decoder: Decoder, precision: Precision, rows: int, length: int, rank: int = 0) -> int:
    """
    Bytes that one decoder layer keeps for its backward pass.

    Equation (2) of https://huggingface.co/papers/2205.05198 counts $sbh(34 + 5as/h)$ for GPT-3's layer in 16 bits.
    The same count for today's layers, with $c$ bytes in matrix products and $w$ in the residual stream, a token:

    - RMSNorm: its input in float32 (a copy under 16 bits), $4h$, and, where its weight is trained, the normed input,
      $wh$; LayerNorm: its input, $wh$. The statistics: 4 and 8.
    - what linear maps read: attention's and the MLP's input, $ch$ each. Where a type must be changed on the way each
      map makes its own copy. A frozen map keeps nothing, but LoRA's first matrix does.
    - attention: queries, keys, values and output, $c \\cdot heads \\cdot dim$ each, since keys and values are repeated
      for every head as soon as a batch is padded; the logarithm of each softmax's sum, $4 \\cdot heads$; the causal
      mask of the row as numbers to add, $cT$. No $T \\times T$ scores a head: SDPA computes them anew. Eager attention
      keeps them instead of the last two, $heads \\cdot T$ in float32 and, under 16 bits, once more.
    - norms of queries and keys, as RMSNorm above.
    - MLP: gate, its activation, the other branch and their product, $cf$ each; without a gate two of them.
    - LoRA: the output of each map's first matrix, $c \\cdot rank$.

    No dropout: TRL turns it off in reward models, `ReinforceConfig` in policies.

    `rows` have `length` tokens each, padding included; `rank` is that of LoRA on all linear maps, 0 in full
    fine-tuning.
    """
    h, c = decoder.hidden, precision.products
    queries, keys = decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    norms = decoder.norms * _norm(decoder, precision, rank)
    if rank:
        shared = precision.weights == precision.adapters == precision.adapter_products
        product = decoder.intermediate * c
        reads = 2 * h * c + product if shared else decoder.linear_inputs * precision.adapter_products
        reads += decoder.linears * rank * precision.adapter_products
    else:
        reads = (2 if precision.weights == c else decoder.linears - 2) * h * c + decoder.intermediate * c
    attention = 4 * queries * c
    if decoder.stored_scores:
        attention += decoder.heads * length * (4 if c == 4 else 4 + c)
    else:
        attention += 4 * decoder.heads + length * c
    if decoder.query_norm:
        attention += (4 + (0 if rank else c)) * (queries + keys) + 4 * (decoder.heads + decoder.kv_heads)
    branches = (3 if decoder.gated else 1) * decoder.intermediate * c
    return rows * length * (norms + reads + attention + branches)


def _norm(decoder: Decoder, precision: Precision, rank: int) -> int:
    if decoder.layer_norm:
        return decoder.hidden * precision.weights + 8
    return decoder.hidden * (4 + (0 if rank else precision.weights)) + 4


def score_activations(decoder: Decoder, precision: Precision, rows: int, length: int, rank: int = 0) -> int:
    """Bytes that the last norm and the multi-scale head keep, which reads hidden states in float32: $4h$ a token."""
    return rows * length * (_norm(decoder, precision, rank) + 4 * decoder.hidden)


def language_head_activations(
    decoder: Decoder, precision: Precision, rows: int, length: int, scored: int, rank: int = 0
) -> int:
    """
    Bytes that the last norm and TRL's language-model head keep and work in, where `scored` tokens of a row count.

    TRL never holds all logits: it keeps the scored tokens' hidden states and works in tiles of the logits, with the
    gradients of the hidden states and, in full fine-tuning, of the head's weights in float32.
    """
    scored, h = rows * scored, decoder.hidden
    tile = min(scored, HEAD_TILE_TOKENS) * HEAD_TILE_VOCABULARY * precision.products  # however small the vocabulary
    gradients = 4 * scored * h + (0 if rank else 4 * decoder.vocabulary * h)
    return rows * length * _norm(decoder, precision, rank) + scored * h * precision.weights + tile + gradients


def activation_bytes(
    decoder: Decoder,
    precision: Precision,
    rows: int,
    length: int,
    checkpointing: bool,
    head: int,
    rank: int = 0,
    adapter_weights: int = 0,
) -> int:
    """
    Bytes of activations at their most.

    With checkpointing, one residual stream a layer, $wh$ a token, and then the head's or one layer's whole
    activations with the gradients of two as wide as the MLP, $2cf$, whichever is more; without it, the head's and
    every layer's. Beside them the rotary embedding and the
    boolean mask. Autocast also keeps a bfloat16 copy of each float32 matrix: of trained ones through the forward
    pass, of frozen ones as long as the layer's activations.

    Args:
        decoder ([`Decoder`]), precision ([`Precision`]), rows (`int`), length (`int`), rank (`int`):
            As in [`layer_activations`].
        checkpointing (`bool`):
            Gradient checkpointing, TRL's default.
        head (`int`):
            Bytes of [`score_activations`] or [`language_head_activations`].
        adapter_weights (`int`, *optional*, defaults to 0):
            Weights of LoRA's matrices in all layers.

    Returns:
        `int`
    """
    tokens = rows * length
    layer = layer_activations(decoder, precision, rows, length, rank)
    common = tokens * (2 * precision.weights * decoder.head_dim + length)
    if precision.autocast and precision.weights == 4:
        # decoder.linear_weights is 0 where they are in 4 bits
        if rank:
            layer += 2 * decoder.linear_weights
        else:
            common += 2 * decoder.layers * decoder.linear_weights
    if precision.autocast and precision.adapters == 4:
        common += 2 * adapter_weights
    if checkpointing:
        # As the layer is gone through backwards, the gradients of its two widest activations come on top
        layer += 2 * tokens * decoder.intermediate * precision.products
        return common + decoder.layers * tokens * decoder.hidden * precision.weights + max(layer, head)
    return common + decoder.layers * layer + head


def cache_bytes(decoder: Decoder, rows: int, length: int, itemsize: int) -> int:
    """
    Bytes of the cache of `rows` that are generated at once, of `length` tokens, prompt included.

    $2 \\cdot layers \\cdot kv\\_heads \\cdot dim$ elements a token: keys and values of every layer and key-value head.
    """
    return 2 * decoder.layers * decoder.kv_heads * decoder.head_dim * rows * length * itemsize


def inference_bytes(decoder: Decoder, rows: int, length: int, itemsize: int) -> int:
    """Bytes that a forward pass without gradient works in: one layer's MLP, its widest place, residual and mask."""
    wide = (3 if decoder.gated else 2) * decoder.intermediate + 2 * decoder.hidden
    return rows * length * (wide * itemsize + length)
