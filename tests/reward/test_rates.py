"""Heads of several rates at once are those of trainings of their own."""

import copy

import pytest
import torch
from transformers import SchedulerType

from toolkit import MultiScaleRewardTrainer, RewardFunction, evaluate_pairs
from toolkit.reward import layers as layers_module
from toolkit.reward.rates import (
    Candidate,
    best_candidate,
    cross_validate,
    prompt_folds,
    ranked_right,
    take_candidate,
    train_heads,
    training_states,
)
from toolkit.stats.intervals import Interval, wilson_interval

RATES = [1e-3, 3e-2]


@pytest.fixture
def frozen(reward_config, tiny_folder, chat_pairs):
    pairs = chat_pairs.add_column("strength", [1.0 + i % 3 for i in range(len(chat_pairs))]).select(range(22))

    def make(pairs=pairs, model=None, **options):
        defaults = {"max_steps": -1, "num_train_epochs": 2, "gradient_accumulation_steps": 2, "weight_decay": 0.1}
        defaults |= {"lr_scheduler_type": "cosine", "warmup_steps": 2, "max_grad_norm": 0.5}
        args = reward_config(**{"freeze_decoder": True, **defaults, **options})
        return MultiScaleRewardTrainer(model or tiny_folder(), args, pairs)

    return make


@pytest.mark.parametrize(
    "options",
    [
        {"seed": 3},
        {"context": "none", "loss_type": "pointwise", "center_rewards_coefficient": 0.1},
        {"scales": ["response"], "context": "head", "data_seed": 5, "dataloader_drop_last": True},
        {"scales": ["token"], "context": "none", "max_steps": 5, "train_sampling_strategy": "sequential"},
    ],
    ids=["gate", "none", "head", "token"],
)
def test_a_head_is_that_of_the_trainers_own_training(frozen, options):
    trainer = frozen(**options)
    before = copy.deepcopy(trainer.model.state_dict())
    own = trainer.args.seed if trainer.args.data_seed is None else trainer.args.data_seed
    # 21 pairs: two steps of two batches of four an epoch, and one of a batch of four and one of a single pair
    kept = prompt_folds(training_states(trainer).prompts, 22, own) != 1
    fold = training_states(trainer).select(kept)
    heads = train_heads(trainer, fold, RATES, [own])
    torch.testing.assert_close(trainer.model.state_dict(), before, atol=0, rtol=0)
    for i, rate in enumerate(RATES):
        pairs = trainer.train_dataset.select(kept.nonzero().flatten().tolist())
        alone = frozen(pairs=pairs, learning_rate=rate, **options)
        alone.train()
        moved = dict(alone.model.named_parameters())
        for name, value in heads.items():
            torch.testing.assert_close(value[i, 0], moved[name].detach(), atol=1e-5, rtol=1e-4)
        if rate == RATES[-1]:  # far enough for the comparison to tell
            assert any((moved[name] - before[name]).abs().max() > 0.02 for name in heads)


def test_seeds_are_trainings_of_their_own(frozen):
    trainer = frozen()
    pairs = training_states(trainer)
    both = train_heads(trainer, pairs, RATES, [4, 9])
    for k, seed in enumerate([4, 9]):
        alone = train_heads(trainer, pairs, RATES, [seed])
        for name, value in alone.items():
            torch.testing.assert_close(both[name][:, k], value[:, 0], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(both["score.token"][:, 0], both["score.token"][:, 1], atol=1e-5)
    # A pair counts by the share of heads that rank it right
    each = [ranked_right(trainer, pairs, {name: value[:, k : k + 1] for name, value in both.items()}) for k in (0, 1)]
    torch.testing.assert_close(ranked_right(trainer, pairs, both), (each[0] + each[1]) / 2)


def test_accuracy_is_of_pairs_that_a_head_has_not_seen(frozen):
    trainer, judge = frozen(), frozen()
    found = cross_validate(trainer, RATES, folds=4, seeds=[7])
    pairs = training_states(trainer)
    part, right = prompt_folds(pairs.prompts, 4, trainer.args.seed), 0
    for fold in range(4):
        heads = train_heads(trainer, pairs.select(part != fold), RATES[1:], [7])
        for name, value in heads.items():
            judge.model.get_parameter(name).data = value[0, 0]
        held_out = trainer.train_dataset.select((part == fold).nonzero().flatten().tolist())
        right += judge.evaluate(held_out)["eval_accuracy"] * len(held_out)
    layers = trainer.model.config.num_hidden_layers
    assert found[layers, RATES[1]] == pytest.approx(wilson_interval(right, 22))
    assert list(found) == [(layers, rate) for rate in RATES]
    assert 0 < found[layers, RATES[1]].value < 1


@pytest.mark.parametrize("architecture", ["qwen3", "gpt2", "gpt_neox"])
def test_layers_are_those_of_decoders_that_end_there(frozen, tiny_folder, architecture):
    both = frozen(model=tiny_folder(architecture), layers=[2, 1], learning_rates=RATES)
    for number in (1, 2):
        alone = frozen(model=tiny_folder(architecture), num_hidden_layers=number)
        states = both.data_collator.table.layers[number]
        torch.testing.assert_close(states, alone.data_collator.table.states)
    found = cross_validate(both, RATES)
    assert list(found) == [(layer, rate) for layer in (1, 2) for rate in RATES]
    assert found[2, RATES[0]] == cross_validate(alone, RATES)[2, RATES[0]]


def test_the_layer_that_is_taken_is_trained_and_saved(frozen, chat_pairs, tmp_path):
    both, alone = frozen(layers=[1, 2], learning_rates=RATES), frozen(num_hidden_layers=1, learning_rate=RATES[1])
    take_candidate(both, Candidate(1, RATES[1]))
    for trainer in (both, alone):
        trainer.train()
    torch.testing.assert_close(both.model.state_dict(), alone.model.state_dict())
    both.save_model(str(tmp_path))
    found = evaluate_pairs(RewardFunction(str(tmp_path)), chat_pairs.select(range(22)))
    assert RewardFunction(str(tmp_path)).model.config.num_hidden_layers == 1
    torch.testing.assert_close(found.chosen, torch.tensor(alone.predict(alone.train_dataset).predictions[0]))


def test_a_layer_that_is_not_the_cut_decoders_is_refused(frozen, monkeypatch):
    monkeypatch.setattr(layers_module, "final_norm", lambda backbone: torch.nn.Identity())
    with pytest.raises(ValueError, match=r"Layer 1 of .* is [0-9]+% off what the decoder gives that ends there\. Set"):
        take_candidate(frozen(layers=[1, 2], learning_rates=RATES), Candidate(1, RATES[0]))


def test_pairs_of_a_prompt_are_in_one_fold(frozen, chat_pairs):
    again = chat_pairs.select([0, 1, 2, 1, 3, 1, 0])
    prompts = training_states(frozen(pairs=again)).prompts
    assert prompts.tolist() == [0, 1, 2, 1, 3, 1, 0]
    part = prompt_folds(prompts, 2, seed=0)
    assert part[0] == part[6]
    assert part[1] == part[3] == part[5]
    assert sorted(part[[0, 1, 2, 4]].tolist()) == [0, 0, 1, 1]
    assert len({tuple(prompt_folds(prompts, 2, seed).tolist()) for seed in range(9)}) > 1
    with pytest.raises(ValueError, match=r"4 different prompts, for 5 folds\. Set 2 folds up to that number"):
        prompt_folds(prompts, 5, seed=0)


def test_the_best_is_the_least_of_the_most_accurate():
    accuracies = {(1, 0.01): 0.7, (2, 0.003): 0.8, (2, 0.001): 0.8, (3, 0.0003): 0.8, (1, 0.1): 0.6}
    found = {Candidate(*tried): Interval(value, 0.0, 1.0) for tried, value in accuracies.items()}
    assert best_candidate(found) == (2, 0.001)


def test_a_head_that_is_no_number_ranks_no_pair_right(frozen):
    trainer = frozen()
    pairs = training_states(trainer)
    heads = train_heads(trainer, pairs, RATES, [0])
    heads["score.token"][0] = torch.nan
    right = ranked_right(trainer, pairs, heads)
    assert right[0] == 0
    assert right[1] > 11


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optim": "sgd"}, "compared with AdamW, and `optim` is 'sgd'"),
        ({"freeze_decoder": False}, "Set `freeze_decoder=True`"),
        ({"dataloader_drop_last": True, "per_device_train_batch_size": 20}, "leaves none of a fold's 1[78] pairs"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_what_heads_cannot_share_is_refused(frozen, options, message):
    with pytest.raises(ValueError, match=message):
        cross_validate(frozen(**options), RATES)


def test_a_schedule_that_goes_by_evaluations_is_refused(frozen):
    trainer = frozen()
    trainer.args.lr_scheduler_type = SchedulerType.REDUCE_ON_PLATEAU
    with pytest.raises(
        ValueError, match="`lr_scheduler_type='reduce_lr_on_plateau'` goes by what a training measures"
    ):
        cross_validate(trainer, RATES)
