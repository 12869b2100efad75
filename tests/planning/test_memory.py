"""The arithmetic of memory: figures of the papers, figures worked by hand, and laws."""

import pytest

from toolkit.planning.memory import (
    Decoder,
    Parameter,
    Precision,
    activation_bytes,
    cache_bytes,
    framework_overhead,
    fullest_partition,
    host_bytes,
    in_bfloat16,
    language_head_activations,
    layer_activations,
    model_states,
    nf4_bytes,
    score_activations,
)

QWEN3_8B = Decoder(36, 4096, 32, 8, 128, 12288, 151936, linear_inputs=36864, query_norm=True)
# 100 matrices, 50 of them adapters of a few thousand weights, and 20 vectors of norms.
MODEL = [
    *(Parameter(4_000_003, 4, True) for _ in range(100)),
    *(Parameter(6_001, 4, True) for _ in range(50)),
    *(Parameter(2_000, 4, True, decays=False) for _ in range(20)),
]


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_figure_1_of_the_zero_paper(stage, gigabytes):
    # 7.5 billion parameters on 64 GPUs: 16, 4 + 12/64, 2 + 14/64 and 16/64 bytes a parameter. Without DeepSpeed, 16
    # bytes are float32 weights, gradients and two moments under autocast.
    parameters = [Parameter(1_000_000, 4, True)] * 7500
    if stage:
        parameters = in_bfloat16(parameters)
    assert sum(model_states(parameters, stage, 64)) / 1e9 == pytest.approx(gigabytes, abs=0.06)


def test_nf4_takes_4_5_bits_and_4_127_when_its_constants_are_quantised():
    # 4096 x 4096 weights: 8,388,608 bytes of halves, 262,144 constants of 4 bytes, or of 1 byte with 1024 of 4 bytes
    assert nf4_bytes(4096 * 4096) == 8_388_608 + 262_144 * 4
    assert nf4_bytes(4096 * 4096, double_quantisation=True) == 8_388_608 + 262_144 + 1024 * 4
    assert nf4_bytes(10**9) * 8 / 10**9 == pytest.approx(4.5)
    assert nf4_bytes(10**9, double_quantisation=True) * 8 / 10**9 == pytest.approx(4.127, abs=1e-3)


def test_cache_of_a_qwen3_8b():
    # 2 (keys, values) x 36 layers x 8 heads x 128 x 2 bytes = 147,456 bytes a token
    assert cache_bytes(QWEN3_8B, rows=1, length=1, itemsize=2) == 147_456
    assert cache_bytes(QWEN3_8B, rows=64, length=1024, itemsize=2) == 64 * 1024 * 147_456


def test_plain_training_holds_types_as_they_are():
    parameters = [Parameter(1000, 4, True), Parameter(1000, 2, True), Parameter(1000, 2, False)]
    assert model_states(parameters) == (4000 + 2000 + 2000, 4000 + 2000, 2 * (4000 + 2000))


def test_states_of_stage_1_and_2_by_hand():
    # decayed 10 + 5 = 15, padded to 16; not decayed 3, padded to 4; frozen 7. On two GPUs a float32 master and two
    # moments of half of 20. The first partition of 8 touches only the tensor of 10, the second both: 15.
    parameters = [
        Parameter(10, 4, True),
        Parameter(3, 4, True, decays=False),
        Parameter(7, 4, False),
        Parameter(5, 4, True),
    ]
    assert model_states(parameters, 1, 2) == (4 * (16 + 4 + 7), 4 * 18, 12 * 10)
    assert model_states(parameters, 2, 2) == (4 * (16 + 4 + 7), 4 * (15 + 3), 12 * 10)
    half = in_bfloat16(parameters)
    assert model_states(half, 1, 2) == (2 * (16 + 4 + 7), 2 * 18, 12 * 10)
    # those of a backward pass, and all in float32 in the buffers; or the own half of the buffers
    assert model_states(half, 1, 2, float32_gradients=True).gradients == 2 * 18 + 4 * 20
    assert model_states(half, 2, 2, float32_gradients=True).gradients == 4 * 10
    for stage in (1, 2, 3):  # float32 weights have such gradients anyway
        assert model_states(parameters, stage, 2, float32_gradients=True) == model_states(parameters, stage, 2)


def test_states_of_stage_3_by_hand():
    # pieces of 10, 3, 7 on two GPUs: 5, 2, 4; the tensor of 3 stays whole as well
    parameters = [Parameter(10, 2, True), Parameter(3, 2, True, decays=False), Parameter(7, 2, False)]
    assert model_states(parameters, 3, 2, persistent=3) == (2 * (5 + 2 + 4 + 3), 2 * (5 + 2), 12 * (5 + 2))
    assert model_states(parameters, 3, 2, persistent=3, offload=True) == (2 * 3, 0, 0)
    assert model_states(parameters, 3, 1, persistent=3).weights == 2 * (10 + 3 + 7)  # one GPU has it whole already
    assert model_states(parameters, 3, 2, float32_gradients=True).gradients == 4 * (5 + 2)
    assert host_bytes(parameters, 2) == 2 * (5 + 2 + 4) + (5 + 2) * (4 + 8 + 4 + 4)


def test_four_bits_stay_four_bits_under_zero():
    parameters = in_bfloat16([Parameter(6400, 4, False, quantised=True), Parameter(100, 4, True)])
    assert model_states(parameters, 2, 2).weights == 3200 + 400 + 2 * 100
    assert model_states(parameters, 3, 2).weights == 1600 + 200 + 2 * 50


@pytest.mark.parametrize(
    ("sizes", "gpus", "most"), [([6, 2, 4], 2, 6), ([7, 2, 3], 2, 12), ([12], 4, 12), ([5], 1, 5), ([], 3, 0)]
)
def test_fullest_partition_counts_tensors_across_a_border_whole(sizes, gpus, most):
    assert fullest_partition(sizes, gpus) == most


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("bf16", [False, True])
def test_more_gpus_never_cost_more(stage, bf16):
    parameters = in_bfloat16(MODEL) if bf16 else MODEL
    sums = [sum(model_states(parameters, stage, gpus, persistent=5000)) for gpus in (1, 2, 4, 8, 16, 64)]
    assert sums == sorted(sums, reverse=True)


@pytest.mark.parametrize("gpus", [4, 8, 64])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_each_stage_costs_less_than_the_one_before_on_four_gpus_and_more(gpus, itemsize):
    parameters = [parameter._replace(itemsize=itemsize) for parameter in MODEL]
    sums = [sum(model_states(parameters, stage, gpus, persistent=5000)) for stage in range(4)]
    assert sums == sorted(sums, reverse=True)


def test_the_float32_copy_makes_zero_dearer_than_none_on_few_gpus():
    # float32: 4 + 4 + 8 bytes a parameter without, 4 + 4 + 12 / N with stage 1, even at N = 1.5
    float32 = [Parameter(1000, 4, True)]
    assert sum(model_states(float32)) == 16_000
    assert sum(model_states(float32, 1, 1)) == 20_000
    assert sum(model_states(float32, 1, 2)) == 14_000
    # bfloat16 throughout: 2 + 2 + 4 without, 2 + 2 + 12 / N with, even at N = 3
    bfloat16 = [Parameter(1200, 2, True)]
    assert sum(model_states(bfloat16)) == 1200 * 8
    assert sum(model_states(bfloat16, 1, 2)) == 1200 * 10
    assert sum(model_states(bfloat16, 1, 3)) == 1200 * 8


def test_overhead_by_hand():
    parameters = [Parameter(1000, 4, True), Parameter(500, 4, False)]
    assert framework_overhead(parameters, 0, 1, 0, 0) == (10**9, 0, 0, 0)
    assert framework_overhead(parameters, 0, 2, 0, 0)[1:] == (4000, 0, 0)  # buckets as large as the gradients
    # two buckets of 10; at the step a float32 copy of 500 gradients and the copied flat ones
    assert framework_overhead(parameters, 2, 2, 0, 10)[1:] == (80, 0, 500 * 8 - 80)
    assert framework_overhead(parameters, 2, 2, 0, 10, activations=4000)[1:] == (80, 0, 0)
    # one bucket, and both tensors put together
    assert framework_overhead(parameters, 3, 2, 0, 10)[1:] == (40, 6000, 0)
    assert framework_overhead(parameters, 3, 2, 600, 10, offload=True)[1:] == (40, 4000, 0)


def test_activations_of_a_layer_by_hand():
    # bfloat16, h = 4, two heads of 2 and one of keys, f = 6, T = 5: norms 2 (16 + 8 + 4) = 56; what maps read
    # 8 + 8 + 12 = 28; attention 4 x 8 + 8 + 10 = 50; the MLP's branches 3 x 12 = 36
    decoder = Decoder(layers=3, hidden=4, heads=2, kv_heads=1, head_dim=2, intermediate=6, vocabulary=9)
    precision = Precision(weights=2, autocast=False)
    assert layer_activations(decoder, precision, rows=3, length=5) == 15 * (56 + 28 + 50 + 36)
    # norms of queries and keys: 4 + 2 bytes of each of 4 + 2 elements, 4 of each of three statistics
    normed = decoder._replace(query_norm=True)
    assert layer_activations(normed, precision, 3, 5) == 15 * (170 + 36 + 12)
    # eager attention stores 2 heads of 5 scores in 6 bytes each for the mask and the softmax's sums
    assert layer_activations(decoder._replace(stored_scores=True), precision, 3, 5) == 15 * (170 - 18 + 60)
    # the last norm, and hidden states in float32
    head = score_activations(decoder, precision, 3, 5)
    assert head == 15 * (28 + 16)
    # the rotary embedding 8, the mask 5; with checkpointing a residual of 8 a layer and one layer
    assert activation_bytes(decoder, precision, 3, 5, False, head) == 15 * (13 + 3 * 170 + 44)
    # with the gradients of two activations as wide as the MLP
    assert activation_bytes(decoder, precision, 3, 5, True, head) == 15 * (13 + 3 * 8 + 170 + 2 * 6 * 2)


def test_language_head_never_holds_all_logits():
    # 8 rows of 512 scored tokens: hidden states in 2 bytes and their gradients in 4, one tile of 4096 x 32768
    precision = Precision(2, False)
    norm = 8 * 1024 * (4096 * 6 + 4)
    lora = language_head_activations(QWEN3_8B, Precision(2, False, 2), 8, 1024, 512, rank=8)
    assert lora == 8 * 1024 * (4096 * 4 + 4) + 4096 * 4096 * 6 + 4096 * 32768 * 2
    full = language_head_activations(QWEN3_8B, precision, 8, 1024, 512)
    assert full == norm + 4096 * 4096 * 6 + 4096 * 32768 * 2 + 4 * 151936 * 4096
    assert lora < 8 * 512 * 151936 * 2


@pytest.mark.parametrize("precision", [Precision(2, False, 2), Precision(2, True, 2), Precision(4, False, 4)])
def test_lora_keeps_no_more_than_full_fine_tuning_but_its_own_outputs(precision):
    full = layer_activations(QWEN3_8B, precision._replace(adapters=0), 2, 64)
    assert layer_activations(QWEN3_8B, precision, 2, 64, rank=8) - 2 * 64 * 7 * 8 * precision.products <= full
