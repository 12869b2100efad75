"""Plans against real models: their parameters, what bitsandbytes takes, and what autograd keeps."""

from contextlib import nullcontext

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GemmaConfig, LlamaConfig, Qwen3Config
from transformers.integrations import replace_with_bnb_linear
from transformers.quantizers.base import get_keys_to_not_convert

from tests.planning import accounting
from toolkit import MultiScaleSettings
from toolkit.planning.memory import Precision, layer_activations, score_activations
from toolkit.planning.plan import (
    Run,
    build_model,
    decoder_shape,
    layouts,
    list_parameters,
    load_config,
    plan_memory,
)

BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32


def config_of(kind, hidden=128, layers=2, tied=False):
    return {"qwen3": Qwen3Config, "llama": LlamaConfig, "gemma": GemmaConfig}[kind](
        vocab_size=512,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden // 4,
        intermediate_size=3 * hidden,
        tie_word_embeddings=tied,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        num_labels=1,
        multi_scale={"scales": MultiScaleSettings().scales, "context": "gate", "segment_boundary_ids": [5]},
    )


def materialise(model):
    """The same model with weights on the CPU, in the same types."""
    model = model.to_empty(device="cpu")
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data.normal_(std=0.02) if tensor.is_floating_point() else tensor.data.zero_()
    return model.train()


def kept_by_autograd(model, rows, length, autocast):
    """Bytes of the distinct storages that autograd saves in a forward pass, the model's own apart."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage  # held, so that no other takes its place
        return tensor

    input_ids = torch.randint(6, 512, (rows, length))
    attention_mask = torch.ones_like(input_ids)
    attention_mask[0, -3:] = 0
    cast = torch.autocast("cpu", dtype=BFLOAT16) if autocast else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), cast:
        model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=torch.arange(length).expand(rows, -1),  # with which a mask is made
            response_start=torch.full((rows,), length // 3),
            use_cache=False,
        )
    return sum(storage.nbytes() for storage in saved.values())


@pytest.mark.parametrize(
    ("kind", "hidden", "layers", "length"), [("qwen3", 128, 2, 48), ("qwen3", 192, 3, 80), ("llama", 128, 3, 64)]
)
@pytest.mark.parametrize("rank", [0, 8])
@pytest.mark.parametrize(
    ("dtype", "autocast"), [(FLOAT32, False), (BFLOAT16, False), (BFLOAT16, True), (FLOAT32, True)]
)
def test_activations_are_what_autograd_keeps(kind, dtype, autocast, rank, hidden, layers, length):
    # Within 1%: a few dozen bytes a token of the mix of scales are left out. The CPU's attention, like the GPU's flash
    # and memory-efficient kernels, keeps no scores, but queries, keys, values, output and the mask in numbers; the
    # flash kernel takes no mask, and a batch without padding then needs neither that nor repeated keys and values.
    model = build_model(config_of(kind, hidden, layers), True, dtype, rank)
    run = Run(rows=3, length=length, bf16=autocast, gradient_checkpointing=False)
    plan = plan_memory(model, run)
    model = materialise(model)
    if rank:
        model.enable_input_require_grads()  # without it the first norm would keep nothing
    assert plan.activations == pytest.approx(kept_by_autograd(model, 3, length, autocast), rel=0.01)


@pytest.mark.parametrize(("hidden", "layers", "length"), [(128, 2, 48), (192, 3, 80)])
@pytest.mark.parametrize("rank", [0, 8])
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_checkpointing_keeps_a_residual_of_each_layer(dtype, rank, hidden, layers, length):
    model = build_model(config_of("qwen3", hidden, layers), True, dtype, rank)
    run = Run(rows=3, length=length, bf16=False)
    decoder, plan = decoder_shape(model), plan_memory(model, run)
    # The plan has one whole layer for the recomputation; before the backward pass the head's are there instead, and
    # the rotary embedding and the mask are held by the checkpoints, where the hooks do not see them.
    precision = plan_precision(dtype, rank)
    unseen = 3 * length * (2 * dtype.itemsize * decoder.head_dim + length)
    before = plan.activations - layer_activations(decoder, precision, 3, length, rank) - unseen
    before -= 2 * 3 * length * decoder.intermediate * dtype.itemsize  # gradients, which come later
    before += score_activations(decoder, precision, 3, length, rank)
    model = materialise(model)
    model.activation_checkpointing_enable()
    if rank:
        model.enable_input_require_grads()
    assert before == pytest.approx(kept_by_autograd(model, 3, length, False), rel=0.025)


@pytest.mark.parametrize(("kind", "dtype", "checkpointing"), [("qwen3", FLOAT32, True), ("llama", BFLOAT16, True)])
def test_peak_of_a_forward_and_backward_pass_is_the_plans(kind, dtype, checkpointing):
    # All that lives at once beside parameters and their gradients. Gradients of activations, which the plan leaves
    # out, come as the activations that they follow go, and a weight's gradient is there once more: within 15% here,
    # and within 5% of deeper models on longer rows.
    model = build_model(config_of(kind, layers=4), True, dtype)
    plan = plan_memory(model, Run(rows=2, length=256, bf16=False, gradient_checkpointing=checkpointing))
    model = materialise(model)
    if checkpointing:
        model.activation_checkpointing_enable()
    attention_mask = torch.ones(2, 256, dtype=torch.long)
    attention_mask[0, -3:] = 0
    batch = {"input_ids": torch.randint(6, 512, (2, 256)), "response_start": torch.tensor([90, 90])}
    batch["position_ids"] = torch.arange(256).expand(2, -1)
    tracker = MemTracker()
    tracker.track_external(model)
    with tracker:
        model(**batch, attention_mask=attention_mask, use_cache=False).logits.sum().backward()
    (peak,) = tracker.get_tracker_snapshot("peak").values()
    beside = sum(size for kind, size in peak.items() if str(kind).rpartition(".")[2] in ("ACT", "TEMP"))
    assert plan.activations == pytest.approx(beside, rel=0.15)


@pytest.mark.parametrize("reward", [True, False])
@pytest.mark.parametrize("way", accounting.WAYS)
def test_a_plan_is_within_a_tenth_of_what_pytorch_counts(reward, way):
    # `python -m tests.planning.accounting` does so for 0.6B, 8B and 32B
    shape = accounting.Shape(512, 12, 8, 4, 64, 1536, 4096, tied=False)
    run = Run(rows=4, length=512, completion_length=0 if reward else 511)
    planned, counted = accounting.compare(shape, reward, way, run)
    assert planned == pytest.approx(counted, rel=0.1)


def test_rows_that_share_a_prompt_may_be_laid_out_in_two_ways():
    # two pairs of prompts of 10 tokens and responses of 30: four rows of 40, or two of 10 + 30 + 30
    run = Run(rows=4, length=40, prompt_length=10)
    assert layouts(run) == [(4, 40, 0), (2, 70, 0)]
    # six samples of two prompts, four of each: one row of 10 + 4 x 30 and one not full
    assert layouts(run._replace(rows=6, completion_length=30, rows_per_prompt=4)) == [(6, 40, 30), (2, 130, 120)]
    model = build_model(config_of("qwen3"), True)
    # long responses after short prompts: their mask of pairs is the larger one
    apart, shared = Run(rows=8, length=500), Run(rows=8, length=500, prompt_length=1)
    assert plan_memory(model, shared).activations > plan_memory(model, apart).activations
    assert plan_memory(model, shared._replace(prompt_length=490)).activations == plan_memory(model, apart).activations


def test_vllm_takes_its_share_of_the_card_and_gives_it_back_where_it_sleeps():
    model = build_model(config_of("qwen3"), False)
    run = Run(length=64, completion_length=16, generated_rows=2, card=10**9)
    own = plan_memory(model, run)
    awake = plan_memory(model, run._replace(vllm_share=0.3))
    asleep = plan_memory(model, run._replace(vllm_share=0.3, vllm_sleeps=True))
    elsewhere = plan_memory(model, run._replace(vllm_share=0.0))
    assert (awake.generation, awake.vllm) == (0, 3 * 10**8)
    assert awake.total - elsewhere.total == 3 * 10**8
    assert (asleep.generation, asleep.vllm) == (3 * 10**8, 0)
    assert asleep.total == elsewhere.total - elsewhere.activations + 3 * 10**8
    assert own.generation > 0 == elsewhere.generation


def test_a_reward_adapter_on_the_policys_base_holds_no_base():
    config = config_of("qwen3")
    policy, reward = build_model(config, False, BFLOAT16, 8), build_model(config, True, BFLOAT16, 8)
    run = Run(length=64, completion_length=16, generated_rows=2)
    apart, shared = (
        plan_memory(policy, run._replace(reward_on_policy_base=base), reward).reward_model for base in (False, True)
    )
    assert apart - shared == sum(p.nbytes for p in reward.parameters() if not p.requires_grad)
    with pytest.raises(ValueError, match="Add `--lora-rank`"):
        plan_memory(build_model(config, False), run._replace(reward_on_policy_base=True), reward)


def plan_precision(dtype, rank):
    return Precision(dtype.itemsize, False, 4 if rank else 0)


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_those_of_the_real_model(tied):
    config = config_of("qwen3", tied=tied)
    real = AutoModelForCausalLM.from_config(config)
    listed = list_parameters(build_model(config, False))
    assert [p.numel for p in listed] == [p.numel() for p in real.parameters()]
    assert all(p.trainable and p.itemsize == 4 for p in listed)
    # embedding, per layer attention 128 (128 + 64 + 64 + 128), MLP 3 x 128 x 384, norms 2 x 128 + 2 x 32; last norm
    layer = 128 * 384 + 3 * 128 * 384 + 320
    assert sum(p.numel for p in listed) == 512 * 128 * (1 if tied else 2) + 2 * layer + 128


def test_lora_trains_adapters_on_every_linear_map_and_a_float32_head():
    model = build_model(config_of("qwen3"), True, BFLOAT16, lora_rank=8)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    # of each layer 8 x (inputs + outputs): q 256, k and v 192 each, o 256, gate, up and down 512 each
    adapters = sum(p.numel() for name, p in trained.items() if "lora_" in name)
    assert adapters == 2 * 8 * (256 + 192 + 192 + 256 + 3 * 512)
    head = [p for name, p in trained.items() if "lora_" not in name]
    assert sum(p.numel() for p in head) == 6 * 128 + 3  # three scales, three rows of the gate and their biases
    assert {p.dtype for p in trained.values()} == {FLOAT32}
    plan = plan_memory(model, Run())
    assert plan.gradients == 4 * (adapters + 6 * 128 + 3)
    assert plan.optimizer == 2 * plan.gradients


@pytest.mark.parametrize(
    ("options", "dtype"),
    [({}, FLOAT32), ({"load_in_4bit": True}, BFLOAT16), ({"keep_adapter_dtype": True}, BFLOAT16)],
)
def test_adapters_have_the_type_that_trl_gives_them(options, dtype):
    model = build_model(config_of("llama"), False, BFLOAT16, lora_rank=8, **options)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {dtype}


@pytest.mark.parametrize("kind", ["qwen3", "gemma"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("reward", [False, True])
def test_four_bits_are_the_layers_that_bitsandbytes_replaces(kind, tied, reward):
    config = config_of(kind, tied=tied)
    replaced = build_model(config, reward, BFLOAT16)
    kept = [*get_keys_to_not_convert(replaced), "score"]
    replace_with_bnb_linear(replaced, kept, BitsAndBytesConfig(load_in_4bit=True))
    packed = [module for module in replaced.modules() if type(module).__name__ == "Linear4bit"]
    model = build_model(config, reward, BFLOAT16, lora_rank=8, load_in_4bit=True)
    quantised = [p.numel for p in list_parameters(model, load_in_4bit=True) if p.quantised]
    assert quantised == [module.in_features * module.out_features for module in packed]
    assert len(quantised) == 14


def test_four_bits_make_weights_small_and_leave_the_rest():
    config = config_of("llama")
    full = build_model(config, False, BFLOAT16, lora_rank=8)
    packed = build_model(config, False, BFLOAT16, lora_rank=8, load_in_4bit=True)
    plain, four = plan_memory(full, Run()), plan_memory(packed, Run(), load_in_4bit=True)
    double = plan_memory(packed, Run(), load_in_4bit=True, double_quantisation=True)
    matrices = 2 * (128 * 384 + 3 * 128 * 384)
    adapters = sum(p.numel() for p in full.parameters() if p.requires_grad)
    # two bytes a weight become 4.5 bits, and four bytes of an adapter's weight two
    assert plain.weights - four.weights == matrices * 2 - matrices * 9 // 16 + 2 * adapters
    assert four.weights > double.weights
    assert four.optimizer == plain.optimizer // 2


def test_shape_is_read_off_the_first_layer():
    shape = decoder_shape(build_model(config_of("qwen3"), True, lora_rank=8))
    assert (shape.layers, shape.hidden, shape.heads, shape.kv_heads, shape.head_dim) == (2, 128, 4, 2, 32)
    assert (shape.intermediate, shape.linears, shape.norms) == (384, 7, 2)
    assert shape.linear_inputs == 6 * 128 + 384
    assert shape.linear_weights == 128 * 384 + 3 * 128 * 384
    assert (shape.gated, shape.query_norm, shape.layer_norm, shape.stored_scores) == (True, True, False, False)


def test_total_has_the_larger_of_generation_and_activations():
    model, reward = build_model(config_of("qwen3"), False), build_model(config_of("llama"), True)
    run = Run(rows=2, length=64, stage=2, gpus=4, completion_length=16, generated_rows=8, beta=0.1)
    plan = plan_memory(model, run, reward)
    assert all(plan._replace(vllm=1))
    assert plan.generation > 0
    frozen = plan.reward_model + plan.reference_model + sum(plan.overhead)
    states = plan.weights + plan.gradients + plan.optimizer
    assert plan.total == states + frozen + max(plan.activations, plan.generation)


def test_reward_training_has_no_generation_and_no_other_model():
    plan = plan_memory(build_model(config_of("qwen3"), True), Run())
    assert (plan.generation, plan.reward_model, plan.reference_model) == (0, 0, 0)


def test_reference_is_a_copy_that_lora_and_no_divergence_save():
    run = Run(length=64, completion_length=16, generated_rows=2, beta=0.05)
    config = config_of("qwen3")
    full = build_model(config, False)
    assert plan_memory(full, run).reference_model == plan_memory(full, run).weights
    assert plan_memory(full, run._replace(beta=0.0)).reference_model == 0
    assert plan_memory(build_model(config, False, lora_rank=8), run).reference_model == 0
    # whole, in bfloat16, under stage 2; in pieces under stage 3
    assert plan_memory(full, run._replace(stage=2, gpus=8)).reference_model == sum(
        2 * p.numel() for p in full.parameters()
    )
    divided = plan_memory(full, run._replace(stage=3, gpus=8))
    assert divided.reference_model == divided.weights


def test_generation_gathers_the_whole_model_under_zero_3_alone():
    model = build_model(config_of("qwen3"), False, BFLOAT16)
    run = Run(length=64, completion_length=16, generated_rows=2, gpus=2)
    whole = sum(2 * p.numel() for p in model.parameters())
    assert plan_memory(model, run._replace(stage=3)).generation - plan_memory(model, run).generation == whole
    # a cache of 2 x 2 layers x 2 heads x 32 x 2 bytes a token, the prompt's pass, the last logits
    cache, prompt, logits = 2 * 64 * 512, 2 * 48 * (2 * (3 * 384 + 2 * 128) + 48), 2 * 512 * 4
    assert plan_memory(model, run).generation == cache + prompt + logits


@pytest.mark.parametrize("stage", range(4))
def test_lora_never_costs_more_than_full_fine_tuning(stage):
    config = config_of("llama", hidden=256)
    run = Run(rows=2, length=32, stage=stage, gpus=4)
    full = plan_memory(build_model(config, True), run)
    lora = plan_memory(build_model(config, True, lora_rank=8, keep_adapter_dtype=stage == 3), run)
    assert sum(lora[:3]) < sum(full[:3])


def test_deepspeed_casts_everything_to_bfloat16_unless_the_run_is_float32():
    model = build_model(config_of("qwen3"), True)
    count = sum(p.numel() for p in model.parameters())
    vectors = count - sum(p.numel() for p in model.parameters() if p.ndim > 1)
    padding = -(count - vectors) % 4 + -vectors % 4
    for bf16, size in ((True, 2), (False, 4)):
        plan = plan_memory(model, Run(stage=1, gpus=2, bf16=bf16))
        # bfloat16 gradients add up in float32 beside themselves
        gradients = size * count + (4 * (count + padding) if bf16 else 0)
        assert plan[:3] == (size * (count + padding), gradients, 6 * (count + padding))


def test_threshold_of_whole_tensors_is_ten_widths():
    model = build_model(config_of("qwen3"), True, BFLOAT16)
    run = Run(stage=3, gpus=2)
    sizes = [p.numel() for p in model.parameters()]
    pieces = sum(-(-size // 2) for size in sizes)
    whole = sum(size for size in sizes if size <= 1280)
    assert 0 < whole < sum(sizes)
    assert plan_memory(model, run).weights == 2 * (pieces + whole)


def test_adapters_folder_means_its_base_model(tmp_path):
    config_of("llama").save_pretrained(tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        f'{{"peft_type": "LORA", "base_model_name_or_path": "{tmp_path / "base"}"}}'
    )
    assert load_config(str(tmp_path / "adapter")).model_type == "llama"


@pytest.mark.parametrize(
    ("run", "four_bits", "message"),
    [
        (Run(rows=0), False, "`rows` is 0"),
        (Run(gpus=0), False, "`gpus` is 0"),
        (Run(offload=True, stage=2), False, "the stage is 2"),
        (Run(length=64, completion_length=64), False, "64 tokens leave nothing"),
        (Run(), True, "Add `--lora-rank`"),
    ],
)
def test_what_does_not_go_together_is_refused(run, four_bits, message):
    with pytest.raises(ValueError, match=message):
        plan_memory(build_model(config_of("llama"), False), run, load_in_4bit=four_bits)
