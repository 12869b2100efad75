import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GenerationConfig, MixtralConfig, MixtralForCausalLM
from trl import RLOOConfig, RLOOTrainer
from trl.trainer.utils import add_fused_lm_head

from toolkit import ReinforceTrainer
from toolkit.policy.passes import (
    decoder_of,
    policy_batch,
    prefill_once,
    prompts_together,
    response_log_probs,
    unpadded,
)

PROMPTS = [[5, 6, 7, 8], [5, 6, 7, 8], [9, 10], [5, 6, 7, 8], [9, 10], [11]]
RESPONSES = [[20, 21, 22], [30], [], [31, 32], [33, 34, 35], [36, 37]]


@pytest.fixture
def policy(tiny_folder):
    def make(architecture="qwen3", **options):
        model = AutoModelForCausalLM.from_pretrained(tiny_folder(architecture), **options).eval()
        add_fused_lm_head(model, temperature=0.7, outputs=("log_probs", "entropy"))
        return model

    return make


def test_rows_of_one_prompt_come_together_the_shorter_ones_first():
    ids, mask = torch.tensor([[7, 8], [0, 9], [7, 8], [0, 5]]), torch.tensor([[1, 1], [0, 1], [1, 1], [0, 1]])
    whole = {"prompt_ids": ids, "prompt_mask": mask, "place": torch.arange(4)}
    batches = [{key: value[:2] for key, value in whole.items()}, {key: value[2:] for key, value in whole.items()}]
    found = prompts_together(batches)
    assert [batch["place"].tolist() for batch in found] == [[3, 1], [0, 2]]  # within a prompt as they were
    assert found[1]["prompt_ids"].tolist() == [[7, 8], [7, 8]]


def nothing(completions, **_):
    return [0.0] * len(completions)


def padded(prompts, responses, pad_id=0):
    """As TRL lays them out: prompts padded on the left, responses on the right."""
    left, right = max(map(len, prompts)), max(map(len, responses))
    ids = [
        [pad_id] * (left - len(p)) + p + r + [pad_id] * (right - len(r))
        for p, r in zip(prompts, responses, strict=True)
    ]
    mask = [
        [0] * (left - len(p)) + [1] * len(p + r) + [0] * (right - len(r))
        for p, r in zip(prompts, responses, strict=True)
    ]
    return torch.tensor(ids), torch.tensor(mask), right


def tokens_run(model, work):
    """What `work` returns, and the tokens, padding included, of each forward pass that it made."""
    seen = []
    backbone = model.base_model
    hook = backbone.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("input_ids", args[0] if args else None).numel()),
        with_kwargs=True,
    )
    try:
        return work(), seen
    finally:
        hook.remove()


def test_layout_by_hand(policy):
    batch = policy_batch(policy(), [[5, 6], [5, 6]], [[7], [8, 9]], pad_token_id=0, share=True)
    # the prompt but its last token, and a branch of that token with each response but its last
    assert batch.inputs["input_ids"].tolist() == [[5, 6, 6, 8]]
    assert batch.inputs["shift_labels"].tolist() == [[7, 8, 9]]
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 1, 2]]
    assert batch.read.tolist() == [1, 2, 3]
    assert batch.index.tolist() == [[0, -1], [1, 2]]


def test_the_head_scores_what_is_read_alone(policy):
    model, seen = policy(), []
    model.register_forward_hook(lambda module, args, output: seen.append(output.log_probs.shape))
    options = {"width": 4, "batch_size": 6, "pad_token_id": 0, "share": True}
    response_log_probs(model, PROMPTS, RESPONSES, **options)
    empty, _ = response_log_probs(model, PROMPTS[:2], [[], []], **options)
    assert seen == [(1, sum(map(len, RESPONSES))), (1, 1)]
    assert empty.tolist() == [[0] * 4] * 2
    assert empty.requires_grad  # all processes go backward


def test_padding_is_taken_off():
    ids, mask, width = padded(PROMPTS, RESPONSES)
    assert unpadded(ids, mask, width) == (PROMPTS, RESPONSES)


@pytest.mark.parametrize("batch_size", [6, 2])
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("architecture", ["qwen3", "gpt2"])
def test_log_probabilities_are_those_of_each_response_alone(policy, architecture, share, batch_size):
    model = policy(architecture)
    options = {"width": 4, "batch_size": batch_size, "pad_token_id": 0, "share": share}
    logps, entropies = response_log_probs(model, PROMPTS, RESPONSES, **options)
    assert logps.shape == entropies.shape == (6, 4)
    for i, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1] / 0.7
        exact = logits.log_softmax(-1)
        expected = exact.gather(1, torch.tensor(response, dtype=torch.long)[:, None])[:, 0]
        torch.testing.assert_close(logps[i, : len(response)], expected)
        torch.testing.assert_close(entropies[i, : len(response)], -(exact.exp() * exact).sum(-1))
        assert not logps[i, len(response) :].any()


def test_gradient_is_that_of_trls_pass(policy, tiny_folder, tmp_path, cpu_options, tokenizer):
    options = {"num_generations": 2, "per_device_train_batch_size": 2, "temperature": 0.7}
    config = RLOOConfig(str(tmp_path), **options, **cpu_options)
    trainer = RLOOTrainer(tiny_folder(), len, config, Dataset.from_list([{"prompt": "a"}] * 2))
    ids, mask, width = padded(PROMPTS, RESPONSES)
    weights = torch.linspace(-1, 1, 6 * width).view(6, width) * mask[:, -width:]
    theirs, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, width)
    (theirs * weights).sum().backward()
    model = policy()
    options = {"width": width, "batch_size": 6, "pad_token_id": 0, "share": True}
    (ours, _), seen = tokens_run(model, lambda: response_log_probs(model, PROMPTS, RESPONSES, **options))
    (ours * weights).sum().backward()
    torch.testing.assert_close(ours, theirs * mask[:, -width:])
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, trainer.model.get_parameter(name).grad, atol=1e-5, rtol=1e-4)
    assert sum(seen) < ids.numel()


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("architecture", ["qwen3", "gpt2"])
def test_generation_from_one_prefill_is_generation(policy, architecture, lora):
    base = policy(architecture)
    if lora:
        options = {"target_modules": "all-linear", "fan_in_fan_out": architecture == "gpt2"}
        peft_config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **options)
        model = get_peft_model(base, peft_config).eval()
    else:
        model = base
    prompts = [row for row in PROMPTS for _ in range(3)]
    ids, mask, _ = padded(prompts, [[0]] * len(prompts))
    config = GenerationConfig(
        do_sample=True, top_k=0, max_new_tokens=9, pad_token_id=0, eos_token_id=7, disable_compile=True
    )

    def sample():
        torch.manual_seed(1)
        with torch.no_grad():
            return model.generate(input_ids=ids[:, :-1], attention_mask=mask[:, :-1], generation_config=config)

    plain, seen_plain = tokens_run(base, sample)
    prefill_once(base)
    shared, seen = tokens_run(base, sample)
    assert torch.equal(plain, shared)
    assert seen_plain[0] == 18 * 4
    assert seen[0] == 3 * 3  # three distinct prompts; the last token is run for every row
    assert seen[1] == 18


def test_other_calls_of_generate_are_transformers_own(policy):
    model = policy()
    expected = model.generate(torch.tensor([PROMPTS[0]]), max_new_tokens=4, do_sample=False, pad_token_id=0)
    beams = GenerationConfig(num_beams=2, max_new_tokens=4, pad_token_id=0)
    ids, mask, _ = padded(PROMPTS, [[0]] * 6)
    inputs = {"input_ids": ids[:, :-1], "attention_mask": mask[:, :-1], "generation_config": beams}
    searched = model.generate(**inputs)
    prefill_once(model)
    found = model.generate(torch.tensor([PROMPTS[0]]), max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert torch.equal(found, expected)
    assert torch.equal(model.generate(**inputs), searched)


def test_generation_without_a_cache_is_transformers_own(policy):
    model = policy()
    ids, mask, _ = padded(PROMPTS, [[0]] * 6)
    config = GenerationConfig(max_new_tokens=4, do_sample=False, pad_token_id=0)
    inputs = {"input_ids": ids[:, :-1], "attention_mask": mask[:, :-1], "generation_config": config}
    expected = model.generate(**inputs)
    prefill_once(model)
    model.generation_config.use_cache = False
    assert torch.equal(model.generate(**inputs), expected)


@pytest.mark.parametrize("architecture", ["qwen3", "gpt2"])
def test_a_trainer_runs_a_prompt_once_in_generation(reinforce_config, tiny_folder, chat_pairs, architecture):
    prompts, config = chat_pairs.select_columns("prompt"), reinforce_config(num_generations=4, max_steps=1)
    trainer = ReinforceTrainer(tiny_folder(architecture), nothing, config, train_dataset=prompts)
    rows: list[int] = []
    trainer._decoder.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(args[0] if args else kwargs["input_ids"])), with_kwargs=True
    )
    trainer.model.train()
    trainer._generate([trainer.train_dataset[i // 4]["prompt"] for i in range(8)])
    assert rows[:2] == [2, 8]  # two distinct prompts, and then a token for each of eight responses


@pytest.mark.parametrize(("beta", "passes"), [(0.0, 0), (0.1, 2)])
def test_no_pass_without_use(reinforce_config, tiny_folder, reward_folder, chat_pairs, beta, passes):
    config = reinforce_config(beta=beta, max_steps=1)
    prompts = chat_pairs.select_columns("prompt")
    trainer = ReinforceTrainer(tiny_folder(), nothing, config, train_dataset=prompts)
    batch = [trainer.train_dataset[i // 2] for i in range(4)]
    trainer.model.train()
    models = [trainer.model] + ([trainer.ref_model] if trainer.ref_model is not None else [])
    fused = []
    for model in models:
        model.register_forward_pre_hook(
            lambda module, args, kwargs: fused.append(kwargs.get("fused_lm_head", False)), with_kwargs=True
        )
    output = trainer._generate_and_score_completions(batch)
    assert sum(fused) == passes
    assert output["advantages"].shape == output["completion_ids"].shape


@pytest.mark.parametrize("steps_per_generation", [1, 2])
def test_responses_to_a_prompt_come_together(reinforce_config, tiny_folder, chat_pairs, steps_per_generation):
    config = reinforce_config(
        gradient_accumulation_steps=2, steps_per_generation=steps_per_generation, per_device_train_batch_size=4,
        num_generations=4, beta=0.0, max_steps=1,
    )  # fmt: skip
    prompts = chat_pairs.select_columns("prompt")
    trainer = ReinforceTrainer(tiny_folder(), nothing, config, train_dataset=prompts)
    trainer.model.train()
    rows = [trainer.train_dataset[i // 4] for i in range(4 * steps_per_generation)]
    for step in range(steps_per_generation):
        trainer._step = step
        batch = trainer._prepare_inputs(rows)
        assert len(batch["prompt_ids"].unique(dim=0)) == 1


@pytest.mark.filterwarnings("ignore")  # torch's compiler looks at what is deprecated
def test_a_compiled_policy_with_adapters_is_read_as_without(policy, monkeypatch):
    monkeypatch.delenv("TORCHDYNAMO_DISABLE")
    adapted = get_peft_model(policy(), LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)).eval()
    options = {"width": 4, "batch_size": 6, "pad_token_id": 0, "share": True}
    compiled = torch.compile(adapted, backend="eager")
    found, expected = (response_log_probs(each, PROMPTS, RESPONSES, **options)[0] for each in (compiled, adapted))
    torch.testing.assert_close(found, expected)
    assert decoder_of(compiled) is decoder_of(adapted)
    assert compiled._orig_mod is adapted


def test_routers_that_tell_their_logits_share_prompts(policy):
    small = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}
    model = MixtralForCausalLM(MixtralConfig(output_router_logits=True, **small)).eval()
    add_fused_lm_head(model)
    options = {"width": 4, "batch_size": 6, "pad_token_id": 0}
    shared, alone = (response_log_probs(model, PROMPTS, RESPONSES, share=s, **options)[0] for s in (True, False))
    torch.testing.assert_close(shared, alone)
