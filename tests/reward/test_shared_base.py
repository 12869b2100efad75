"""Policy, reference and reward model as adapters on one base: what they score, hold, train, save and refuse."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model, load_peft_weights
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from tests.helpers import logged
from toolkit import (
    MultiScaleRewardConfig,
    MultiScaleRewardTrainer,
    ReinforceTrainer,
    RewardFunction,
    SharedBaseRewardFunction,
)
from toolkit.reward.adapters import save_adapter_settings
from toolkit.sandbox.rows import sandbox_decoder, sandbox_tokenizer

FOUR_BITS = {"hidden_size": 64, "head_dim": 32}  # bitsandbytes packs 64 weights a row for the CPU


def nf4() -> BitsAndBytesConfig:
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)


def lora(task_type: str = "CAUSAL_LM", **options) -> LoraConfig:
    options = {"r": 2, "target_modules": "all-linear", "lora_dropout": 0.0, **options}
    return LoraConfig(task_type=task_type, **options)


@pytest.fixture(scope="module")
def reward_adapter(tiny_folder, cpu_options, chat_pairs, tmp_path_factory):
    """Folder of a reward model trained with LoRA for a few steps; made once."""
    made = {}

    def folder(architecture="qwen3", peft_config: LoraConfig | None = None, quantized=False, **options) -> str:
        key = (architecture, str(peft_config), quantized, *sorted(options.items()))
        if key not in made:
            made[key] = str(tmp_path_factory.mktemp("adapter"))
            config = MultiScaleRewardConfig(
                output_dir=made[key], context="gate", max_steps=3, learning_rate=3e-2, **cpu_options
            )
            base = tiny_folder(architecture, **options)
            peft_config = peft_config or lora("SEQ_CLS", r=4)
            quantization = nf4() if quantized else None
            trainer = MultiScaleRewardTrainer(
                base, config, chat_pairs, peft_config=peft_config, quantization_config=quantization
            )
            trainer.train()
            trainer.save_model()
        return made[key]

    return folder


def policy_on(base: str, peft_config: LoraConfig | None = None, **kwargs) -> PeftModel:
    """A policy whose own adapter says something of its own, which must not enter the reward."""
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, **kwargs), peft_config or lora())
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def trained(policy: PeftModel) -> list[torch.nn.Parameter]:
    return [parameter for parameter in policy.parameters() if parameter.requires_grad]


def says(model: PeftModel, tokenizer) -> torch.Tensor:
    ids = torch.tensor([tokenizer("Who wrote Faust? Goethe wrote it.")["input_ids"]])
    with torch.no_grad():
        return model(ids).logits


def assert_same_scores(first: RewardFunction, second: RewardFunction, pairs: Dataset) -> None:
    prompts, responses = pairs["prompt"][:8], [*pairs["chosen"][:4], *pairs["rejected"][4:8]]
    found, expected = first.score(prompts, responses), second.score(prompts, responses)
    assert torch.tensor([score.reward for score in expected]).std() > 0.05
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.reward, b.reward, rtol=1.3e-6, atol=1e-5)
        torch.testing.assert_close(a.prefix_values, b.prefix_values)
        torch.testing.assert_close(a.gate, b.gate)


# ---- the same rewards


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gpt_neox"])
def test_rewards_are_those_of_the_separate_model(reward_adapter, tiny_folder, chat_pairs, architecture):
    adapter = reward_adapter(architecture)
    shared = SharedBaseRewardFunction(adapter, batch_size=3)
    shared.attach(policy_on(tiny_folder(architecture)))
    assert_same_scores(shared, RewardFunction(adapter), chat_pairs)


def test_the_head_goes_where_the_policy_went_after_it_was_attached(reward_adapter, tiny_folder):
    shared, policy = SharedBaseRewardFunction(reward_adapter()), policy_on(tiny_folder())
    shared.attach(policy)
    policy.to("meta")  # which stands for a GPU
    shared.score_encoded([])
    assert {parameter.device.type for parameter in shared.model.parameters()} == {"meta"}
    assert shared.model.device.type == "meta"  # where inputs are sent


def test_four_bit_rewards_are_those_of_the_separate_model(reward_adapter, tiny_folder, chat_pairs):
    adapter, four_bits = reward_adapter(quantized=True, **FOUR_BITS), {"quantization_config": nf4()}
    shared = SharedBaseRewardFunction(adapter)
    policy = policy_on(tiny_folder(**FOUR_BITS), **four_bits)
    shared.attach(policy)
    assert_same_scores(shared, RewardFunction(adapter, model_init_kwargs=four_bits), chat_pairs)
    assert RewardFunction(adapter)(["Q:"], [" A."]) != pytest.approx(shared(["Q:"], [" A."]), abs=1e-4)
    # what TRL trains beside 4-bit weights is in bfloat16, and stays so
    kept = {name: p.dtype for name, p in policy.named_parameters() if "shared_reward" in name}
    assert len(kept) == 2 * 2 * 7
    assert set(kept.values()) == {torch.bfloat16}
    assert {parameter.dtype for parameter in shared.model.score.parameters()} == {torch.float32}


def test_four_bit_policies_keep_their_gradient_after_scoring(reward_adapter, tiny_folder, tokenizer):
    # bitsandbytes packs weights anew for evaluation on some CPUs, and nothing flows back through what it packed
    shared, policy = (
        SharedBaseRewardFunction(reward_adapter(**FOUR_BITS)),
        policy_on(tiny_folder(**FOUR_BITS), quantization_config=nf4()),
    )
    shared.attach(policy)
    ids = torch.tensor([tokenizer("Who wrote Faust?")["input_ids"]])
    before = torch.autograd.grad(policy(ids, labels=ids).loss, trained(policy))
    shared(["Q:"], [" A."])
    after = torch.autograd.grad(policy(ids, labels=ids).loss, trained(policy))
    assert all(map(torch.equal, before, after))


def test_policies_may_adapt_other_modules_than_the_reward_model(reward_adapter, tiny_folder, chat_pairs):
    reward_lora = lora("SEQ_CLS", r=8, lora_alpha=3, use_rslora=True, target_modules=["q_proj", "o_proj"])
    adapter = reward_adapter(peft_config=reward_lora, tie_word_embeddings=False)
    shared = SharedBaseRewardFunction(adapter)
    policy_lora = lora(target_modules=["o_proj", "down_proj"], modules_to_save=["embed_tokens"])
    policy = policy_on(tiny_folder(tie_word_embeddings=False), policy_lora)
    policy.get_input_embeddings().modules_to_save["default"].weight.data.mul_(2)
    shared.attach(policy)
    assert_same_scores(shared, RewardFunction(adapter), chat_pairs)


def test_two_reward_models_share_one_base(reward_adapter, tiny_folder, chat_pairs):
    adapters = reward_adapter(), reward_adapter(peft_config=lora("SEQ_CLS", r=2, target_modules=["q_proj"]))
    shared, policy = [SharedBaseRewardFunction(adapter) for adapter in adapters], policy_on(tiny_folder())
    for function in shared:
        function.attach(policy)
    for function, adapter in zip(shared, adapters, strict=True):
        assert_same_scores(function, RewardFunction(adapter), chat_pairs)


# ---- the policy is left as it was


def state(policy: PeftModel) -> tuple:
    modes = {name: module.training for name, module in policy.named_modules()}
    return policy.active_adapters, {name: p.requires_grad for name, p in policy.named_parameters()}, modes


@pytest.mark.parametrize("outcome", ["scored", "raised"])
def test_the_policy_is_left_as_it_was(reward_adapter, tiny_folder, tokenizer, outcome):
    shared, policy = SharedBaseRewardFunction(reward_adapter()), policy_on(tiny_folder())
    alone, trainable = says(policy, tokenizer), [name for name, p in policy.named_parameters() if p.requires_grad]
    random = torch.get_rng_state()
    shared.attach(policy)
    assert torch.equal(random, torch.get_rng_state())
    assert [name for name, p in policy.named_parameters() if p.requires_grad] == trainable
    assert torch.equal(says(policy, tokenizer), alone)

    policy.train()
    policy.get_base_model().model.layers[1].eval()
    frozen = next(p for name, p in policy.named_parameters() if "lora_A.default" in name)
    frozen.requires_grad_(False)
    before = state(policy)
    if outcome == "scored":
        shared(["Q:"], [" A."])
    else:
        shared.model.score.token = None
        with pytest.raises(AttributeError):
            shared(["Q:"], [" A."])
    assert state(policy) == before
    assert torch.equal(says(policy.eval(), tokenizer), alone)
    with policy.disable_adapter():  # the reference
        reference = says(policy, tokenizer)
    base = AutoModelForCausalLM.from_pretrained(tiny_folder())
    torch.testing.assert_close(reference, says(base, tokenizer))


# ---- memory


def held_bytes(*models: torch.nn.Module) -> int:
    tensors = [t for model in models for t in (*model.parameters(), *model.buffers())]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def test_one_copy_of_the_weights_is_held(tmp_path, cpu_options, reinforce_config):
    # TRL's own way: a policy with LoRA, its reference by disabling that, and a reward model of the same size
    base, prompts = str(tmp_path / "base"), Dataset.from_list([{"prompt": "Q:", "chosen": " 1.", "rejected": " 2."}])
    sandbox_decoder(hidden_size=128, layers=4, heads=2).save_pretrained(base)
    sandbox_tokenizer().save_pretrained(base)
    AutoModelForSequenceClassification.from_pretrained(base, num_labels=1).save_pretrained(tmp_path / "stock")
    sandbox_tokenizer().save_pretrained(tmp_path / "stock")
    config = MultiScaleRewardConfig(output_dir=str(tmp_path / "adapter"), context="gate", **cpu_options)
    trainer = MultiScaleRewardTrainer(base, config, prompts, peft_config=lora("SEQ_CLS"))
    trainer.save_model()

    prompts = prompts.select_columns(["prompt"])
    stock = RLOOTrainer(
        base, str(tmp_path / "stock"), reinforce_config(RLOOConfig), train_dataset=prompts, peft_config=lora()
    )
    ours = ReinforceTrainer(
        base,
        SharedBaseRewardFunction(str(tmp_path / "adapter")),
        reinforce_config(),
        train_dataset=prompts,
        peft_config=lora(),
    )
    assert stock.ref_model is ours.ref_model is None
    (stock_reward,), (function,) = stock.reward_funcs, ours.reward_funcs
    assert held_bytes(ours.model, function.model) <= 0.6 * held_bytes(stock.model, stock_reward)


# ---- training


@pytest.fixture
def trainer_with(reinforce_config, tiny_folder, reward_adapter, chat_pairs):
    """A trainer that scores with the adapter, either way."""

    def make(share: bool, quantized: bool = False, **options) -> ReinforceTrainer:
        shape = FOUR_BITS if quantized else {}
        adapter, four_bits = reward_adapter(**shape), {"quantization_config": nf4()} if quantized else {}
        more = {"baseline": "moving_average", "prefix_baseline": True, "normalize_rewards": True, "beta": 0.05}
        return ReinforceTrainer(
            tiny_folder(**shape),
            SharedBaseRewardFunction(adapter) if share else RewardFunction(adapter, model_init_kwargs=four_bits),
            reinforce_config(**{"max_steps": 4, **more, **options}),
            train_dataset=chat_pairs.select_columns(["prompt"]).select(range(20)),
            peft_config=lora(lora_dropout=0.1),
            **four_bits,
        )

    return make


# TRL turns checkpointing off for generation by a name that Transformers deprecates.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_:FutureWarning")
@pytest.mark.parametrize(
    "options",
    # Beside 4 bits the adapters are bfloat16: what a processor rounds in another order moves one by a whole step, and
    # then the samples, so that only the first updates compare.
    [{}, {"activation_checkpointing": True, "disable_dropout": False}, {"quantized": True, "max_steps": 2}],
    ids=["plain", "checkpointing and dropout", "4 bits"],
)
def test_training_is_that_with_the_separate_model(trainer_with, options):
    shared = trainer_with(True, **options)
    shared.train()
    separate = trainer_with(False, **options)
    separate.train()
    for key in ("loss", "grad_norm", "reward", "kl", "prefix/explained"):
        assert len(logged(separate, key)) == options.get("max_steps", 4)
        assert logged(shared, key) == pytest.approx(logged(separate, key), rel=1e-5, abs=1e-6), key
    trained_by_separate = dict(separate.model.named_parameters())
    for name, parameter in shared.model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter, trained_by_separate[name])


@pytest.mark.parametrize(("trainer_class", "config_class"), [(RLOOTrainer, RLOOConfig), (GRPOTrainer, GRPOConfig)])
def test_trls_trainers_take_it_once_attached(
    reinforce_config, tiny_folder, reward_adapter, chat_pairs, trainer_class, config_class
):
    rewards = {}
    for function in (SharedBaseRewardFunction(reward_adapter()), RewardFunction(reward_adapter())):
        trainer = trainer_class(
            model=tiny_folder(),
            reward_funcs=function,
            args=reinforce_config(config_class, max_steps=2),
            train_dataset=chat_pairs.select_columns(["prompt"]),
            peft_config=lora(),
        )
        if isinstance(function, SharedBaseRewardFunction):
            function.attach(trainer.model)
            function.attach(trainer.model)  # once more changes nothing
            assert len(trainer.model.peft_config) == 2
        trainer.train()
        rewards[type(function)] = logged(trainer, "reward")
    assert len(rewards[RewardFunction]) == 2
    assert rewards[SharedBaseRewardFunction] == pytest.approx(rewards[RewardFunction], abs=1e-5)


# ---- saving and resuming


def test_saved_policies_do_not_have_the_reward_adapter(trainer_with, tmp_path):
    trainer = trainer_with(True, max_steps=2, save_strategy="steps", save_steps=2)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    plain = trainer_with(False, max_steps=1)
    plain.save_model(str(tmp_path / "plain"))
    expected = load_peft_weights(str(tmp_path / "plain"), device="cpu")
    for folder in (tmp_path / "saved", Path(trainer.args.output_dir, "checkpoint-2")):
        assert not [path for path in folder.iterdir() if path.is_dir()]
        weights = load_peft_weights(str(folder), device="cpu")
        assert weights.keys() == expected.keys()
        for name, parameter in trainer.model.named_parameters():
            if parameter.requires_grad:
                assert torch.equal(weights[name.replace(".default", "")], parameter)


def test_a_resumed_run_is_the_undisturbed_one(trainer_with):
    # step 3 is in the middle of a generation that serves two steps
    options = {"save_strategy": "steps", "save_steps": 1, "steps_per_generation": 2, "max_steps": 6}
    whole = trainer_with(True, **options)
    whole.train()
    resumed = trainer_with(True, **options)
    resumed.train(resume_from_checkpoint=str(Path(whole.args.output_dir, "checkpoint-3")))
    expected = dict(whole.model.named_parameters())
    assert any("shared_reward" in name for name in expected)
    for name, parameter in resumed.model.named_parameters():
        assert torch.equal(parameter, expected[name]), name
        assert parameter.requires_grad == expected[name].requires_grad
    for key in ("loss", "grad_norm", "reward", "kl", "baseline", "prefix/explained", "num_tokens"):
        assert logged(resumed, key) == logged(whole, key), key


# ---- what is refused


def test_scoring_before_it_is_attached_says_what_to_do(reward_adapter):
    with pytest.raises(ValueError, match=r"has no base yet.*call `attach\(trainer\.model\)` once the trainer is made"):
        SharedBaseRewardFunction(reward_adapter())(["Q:"], [" A."])


def test_a_policy_that_is_trained_whole_is_refused(reward_adapter, tiny_folder, reinforce_config, chat_pairs):
    with pytest.raises(ValueError, match=r"The policy is a Qwen3ForCausalLM of which every weight.*`peft_config`"):
        ReinforceTrainer(
            tiny_folder(),
            SharedBaseRewardFunction(reward_adapter()),
            reinforce_config(),
            train_dataset=chat_pairs.select_columns(["prompt"]),
        )


def test_another_base_is_refused_and_both_are_named(reward_adapter, tiny_folder):
    other = tiny_folder(num_hidden_layers=1)
    message = f"was trained on '{tiny_folder()}', and the policy's base is '{other}'. Begin the policy from"
    with pytest.raises(ValueError) as error:
        SharedBaseRewardFunction(reward_adapter()).attach(policy_on(other))
    assert message in str(error.value)


def copy_with(folder: str, copy: Path, **changes) -> str:
    """An adapter with other entries in its configuration."""
    shutil.copytree(folder, copy)
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    return str(copy)


def test_an_adapter_that_reads_fewer_layers_is_refused(reward_adapter, tiny_folder):
    shared = SharedBaseRewardFunction(reward_adapter())
    shared.settings.num_hidden_layers = 1
    with pytest.raises(ValueError, match=r"reads its base after 1 layers, and the policy's base runs all 2"):
        shared.attach(policy_on(tiny_folder()))


def test_another_revision_is_refused(reward_adapter, tiny_folder, tmp_path):
    function = SharedBaseRewardFunction(copy_with(reward_adapter(), tmp_path / "adapter", revision="v1"))
    with pytest.raises(ValueError, match=r"on '.*', revision 'v1', and the policy's base is '.*', revision 'v2'"):
        function.attach(policy_on(tiny_folder(), lora(revision="v2")))
    function.attach(policy_on(tiny_folder(), lora(revision="v1")))


def test_the_same_folder_by_another_path_is_the_same_base(reward_adapter, tiny_folder, tmp_path, monkeypatch):
    folder = Path(tiny_folder())
    monkeypatch.chdir(folder.parent)
    SharedBaseRewardFunction(reward_adapter()).attach(policy_on(f"./{folder.name}/"))


def test_a_base_that_has_changed_is_refused_and_left_alone(reward_adapter, tiny_folder, tokenizer):
    policy = policy_on(tiny_folder(num_hidden_layers=1))
    policy.get_base_model().config._name_or_path = tiny_folder()
    policy.get_base_model().name_or_path = tiny_folder()
    before = says(policy, tokenizer)
    with pytest.raises(ValueError, match=r"layers\.1\..* is \(.*\) in the adapter's file and missing on the base"):
        SharedBaseRewardFunction(reward_adapter()).attach(policy)
    assert list(policy.peft_config) == ["default"]
    assert torch.equal(says(policy, tokenizer), before)


def test_a_whole_reward_model_is_refused(reward_folder):
    with pytest.raises(ValueError, match=r"is a whole model and not an adapter.*Use RewardFunction\("):
        SharedBaseRewardFunction(reward_folder())


@pytest.mark.parametrize("option", ["device", "model_init_kwargs"])
def test_what_is_the_bases_is_not_taken_twice(reward_adapter, option):
    with pytest.raises(ValueError, match=rf"\['{option}'\] are of the base, which is the policy's"):
        SharedBaseRewardFunction(reward_adapter(), **{option: None})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bias": "all"}, r"trains biases of the base \(`bias='all'`\)"),
        ({"init_lora_weights": "pissa"}, r"takes a part out of the base's weights \(`init_lora_weights='pissa'`\)"),
        ({"modules_to_save": ["score", "embed_tokens"]}, r"beside the head \(`modules_to_save=\['embed_tokens'\]`\)"),
        ({"trainable_token_indices": [1, 2]}, r"embeddings of its own \(`trainable_token_indices`\)"),
        ({"layer_replication": [[0, 1], [0, 2]]}, r"repeats layers of the base"),
    ],
)
def test_adapters_that_change_the_base_are_refused(reward_adapter, tiny_folder, tmp_path, change, message):
    folder = copy_with(reward_adapter(), tmp_path / "adapter", **change)
    with pytest.raises(ValueError, match=f"The reward adapter '{folder}' .*{message}.*Use RewardFunction"):
        SharedBaseRewardFunction(folder)
    if change.keys() & {"bias", "init_lora_weights"}:
        policy = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_folder()), lora())
        for key, value in change.items():
            setattr(policy.peft_config["default"], key, value)
        with pytest.raises(ValueError, match=f"The policy's adapter .*{message}.*Train the policy with plain LoRA"):
            SharedBaseRewardFunction(reward_adapter()).attach(policy)


def test_an_adapter_without_its_head_is_refused(tiny_folder, reward_model, tokenizer, tmp_path):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_folder()), lora())
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    save_adapter_settings(reward_model().settings, str(tmp_path))
    with pytest.raises(
        ValueError, match=r"The head of the reward adapter.*'gate'.*Train it with `task_type='SEQ_CLS'`"
    ):
        SharedBaseRewardFunction(str(tmp_path))
