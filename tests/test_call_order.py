"""The order in which TRL and Transformers call the methods that we override, on their own trainers.

Our overrides keep what passes by, or put something back, at the one moment that is right. Where a new version moves
that moment, a test here fails before a run is wrong in silence; the names themselves are in test_contract.py.
"""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from trl import RewardConfig, RewardTrainer, RLOOConfig, RLOOTrainer


def lengths(completions, **kwargs) -> list[float]:
    return [float(len(completion[0]["content"])) for completion in completions]


@pytest.fixture
def policy_trainer(reinforce_config, tiny_folder, chat_pairs):
    def make(peft_config=None, **options) -> RLOOTrainer:
        config, prompts = reinforce_config(RLOOConfig, **options), chat_pairs.select_columns(["prompt"])
        return RLOOTrainer(tiny_folder(), lengths, config, prompts, peft_config=peft_config)

    return make


def record(trainer, *names: str) -> list[str]:
    """A list to which the named methods of a trainer add their names when they are called."""
    calls: list[str] = []

    def noted(name, method):
        def call(*args, **kwargs):
            calls.append(name)
            return method(*args, **kwargs)

        return call

    for name in names:
        setattr(trainer, name, noted(name, getattr(trainer, name)))
    return calls


def generate(trainer) -> dict:
    trainer.model.train()
    return trainer._generate_and_score_completions([trainer.train_dataset[i // 2] for i in range(4)])


# policy/trainer: `_frozen_logps` holds the policy's first and then the reference's, `_rewards` those of this batch


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_log_probabilities_are_the_policys_then_the_references_and_then_come_the_rewards(policy_trainer, lora, beta):
    peft_config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]) if lora else None
    trainer, seen = policy_trainer(peft_config, beta=beta), []
    scores, logps = trainer._calculate_rewards, trainer._get_per_token_logps_and_entropies

    def run(model, *args, **kwargs):
        off = any(m.disable_adapters for m in model.modules() if isinstance(m, BaseTunerLayer))
        seen.append("reference" if off or model is not trainer.model else "policy")
        assert not torch.is_grad_enabled()
        return logps(model, *args, **kwargs)

    def reward(inputs, prompts, completions, completion_ids_list):
        seen.append("rewards")
        return scores(inputs, prompts, completions, completion_ids_list)

    trainer._get_per_token_logps_and_entropies, trainer._calculate_rewards = run, reward
    output = generate(trainer)
    assert seen == (["policy", "reference", "rewards"] if beta else ["policy", "rewards"])
    # what we read of the result, and what it lacks so that it has to be kept as it passes by
    assert {"prompt_ids", "prompt_mask", "completion_ids", "completion_mask"} < output.keys()
    assert output["advantages"].shape == output["old_logps"].shape == (4,)


def test_the_loss_is_computed_with_gradient_through_the_same_method(policy_trainer):
    trainer, seen = policy_trainer(max_steps=1, beta=0.0), []
    logps = trainer._get_per_token_logps_and_entropies
    trainer._get_per_token_logps_and_entropies = lambda *args, **kwargs: (
        seen.append((torch.is_grad_enabled(), kwargs.get("compute_entropy", False))),
        logps(*args, **kwargs),
    )[1]
    calls = record(trainer, "_generate_and_score_completions", "_compute_loss")
    trainer.train()
    assert calls == ["_generate_and_score_completions", "_compute_loss"]
    assert seen == [(False, False), (True, True)]


def test_the_last_advantages_in_the_log_are_those_of_the_batch(policy_trainer):
    trainer = policy_trainer()
    for _ in range(2):
        advantages = generate(trainer)["advantages"].tolist()
        assert list(trainer._logs["advantages"])[-4:] == advantages


def test_rewards_keep_their_name_when_the_function_is_replaced(policy_trainer):
    trainer = policy_trainer()
    trainer.reward_funcs = [lambda completions, **kwargs: [7.0] * len(completions)]
    generate(trainer)
    assert trainer._metrics["train"]["rewards/lengths/mean"] == [7.0]


# policy/trainer: `_prepare_inputs` sorts a buffer that is new, and `_resume_state` saves one that is not used up


def test_generations_are_buffered_until_every_step_and_iteration_has_had_them(policy_trainer):
    options = {"steps_per_generation": 2, "num_iterations": 2, "gradient_accumulation_steps": 1}
    trainer, seen = policy_trainer(max_steps=6, **options), []
    prepare = trainer._prepare_inputs

    def watch(batch):
        step, before = trainer._step, trainer._buffered_inputs
        inputs = prepare(batch)
        assert len(trainer._buffered_inputs) == 2
        assert inputs is trainer._buffered_inputs[step % 2]
        seen.append((step, trainer._buffered_inputs is not before))
        return inputs

    trainer._prepare_inputs = watch
    trainer.train()
    assert seen == [(0, True), (1, False), (2, False), (3, False), (4, True), (5, False)]
    trainer._buffered_inputs = None  # as after a checkpoint
    watch([trainer.train_dataset[i // 2] for i in range(8)])
    assert seen[-1] == (6, True)


# training/checkpoints: our own state is saved with the random states and put back with them

LOADS = ("_load_from_checkpoint", "_get_train_sampler", "_load_optimizer_and_scheduler", "_run_epoch")
LOADS += ("get_batch_samples", "_load_rng_state", "training_step")


@pytest.mark.parametrize("step", [2, 12])
def test_random_states_are_saved_last_and_loaded_before_the_first_step(policy_trainer, step):
    # 24 prompts, 2 a step: 12 steps are an epoch
    options = {"save_strategy": "steps", "save_steps": step, "max_steps": step + 1}
    whole = policy_trainer(**options)
    saves = ("_save_checkpoint", "_save", "_save_optimizer_and_scheduler", "_save_rng_state", "_push_from_checkpoint")
    calls = record(whole, *saves)
    whole.train()
    assert calls[:4] == ["_save_checkpoint", "_save", "_save_optimizer_and_scheduler", "_save_rng_state"]

    resumed = policy_trainer(**{**options, "save_strategy": "no"})
    calls = record(resumed, *LOADS)
    resumed.train(resume_from_checkpoint=str(Path(whole.args.output_dir, f"checkpoint-{step}")))
    expected = list(LOADS)
    if step == 12:  # at the beginning of an epoch nothing is skipped, so nothing has to be drawn before
        expected[4:6] = reversed(expected[4:6])
    assert calls == expected


def test_what_is_put_back_with_the_random_states_is_not_overwritten(policy_trainer):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 3}
    whole = policy_trainer(**options)
    whole.train()
    resumed, seen = policy_trainer(**{**options, "save_strategy": "no"}), []
    load, step = resumed._load_rng_state, resumed.training_step

    def restore(checkpoint):
        load(checkpoint)
        resumed._tr_loss, resumed._globalstep_last_logged, resumed._step = torch.tensor(5.0), 1, 40
        resumed._metrics["train"]["kept"].append(1.0)

    def look(*args):
        state = (resumed._tr_loss.item(), resumed._globalstep_last_logged, resumed._step)
        seen.append((*state, resumed._metrics["train"]["kept"]))
        return step(*args)

    resumed._load_rng_state, resumed.training_step = restore, look
    resumed.train(resume_from_checkpoint=str(Path(whole.args.output_dir, "checkpoint-2")))
    assert seen == [(5.0, 1, 40, [1.0])]
    assert resumed._metrics["train"] == {}  # `log` has taken all there was


# reward/trainer: the data are prepared once, and a step knows its pairs before the loss


def test_pairs_are_prepared_by_name_and_counted_before_the_loss(reward_config, tiny_folder, chat_pairs, monkeypatch):
    calls, prepare = [], RewardTrainer._prepare_dataset
    monkeypatch.setattr(
        RewardTrainer,
        "_prepare_dataset",
        lambda self, *args: (calls.append(args[3]), prepare(self, *args))[1],
    )
    pairs = chat_pairs.select(range(8))
    config = reward_config(RewardConfig, max_steps=1, gradient_accumulation_steps=2)
    trainer = RewardTrainer(tiny_folder(), config, train_dataset=pairs, eval_dataset=pairs)
    assert calls == ["train", "eval"]
    loss = trainer.compute_loss
    trainer._get_num_items_in_batch = lambda batches, device: calls.append(len(batches)) or 7

    def look(model, inputs, return_outputs=False, num_items_in_batch=None):
        calls.append(f"loss of {num_items_in_batch}")
        return loss(model, inputs, return_outputs)

    trainer.compute_loss = look
    trainer.train()
    assert calls[2:] == [2, "loss of 7", "loss of 7"]
