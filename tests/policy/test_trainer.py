import math
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from trl import RLOOConfig, RLOOTrainer

from tests.helpers import logged
from tests.tiny import spread_head
from toolkit import AutoModelForMultiScaleReward, MultiScaleSettings, ReinforceTrainer, RewardFunction
from toolkit.data.markers import response_marker_ids
from toolkit.data.tokens import segment_boundary_ids
from toolkit.policy.config import BASELINES
from toolkit.policy.prefix_baseline import align_by_offsets, settled_length, values_at_tokens
from toolkit.reward.scores import ResponseScore


@pytest.fixture(scope="module")
def chat_prompts(chat_pairs):
    return chat_pairs.select_columns(["prompt"])


@pytest.fixture(scope="module")
def plain_prompts(plain_pairs):
    return plain_pairs.select_columns(["prompt"])


@pytest.fixture
def policy_trainer(reinforce_config, tiny_folder, reward_folder, chat_prompts):
    def make(
        reward_funcs=None, train_dataset=chat_prompts, model=None, peft_config=None, eval_dataset=None, **options
    ):
        return ReinforceTrainer(
            model=model or tiny_folder(),
            reward_funcs=RewardFunction(reward_folder()) if reward_funcs is None else reward_funcs,
            args=reinforce_config(**options),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            peft_config=peft_config,
        )

    return make


def lengths(completions, **kwargs) -> list[float]:
    """A reward that needs no model: the number of characters."""
    return [float(len(text if isinstance(text, str) else text[0]["content"])) for text in completions]


class Sequence:
    """Rewards that were written down before."""

    __name__ = "sequence"

    def __init__(self, *batches):
        self.batches = list(batches)

    def __call__(self, completions, **kwargs):
        return self.batches.pop(0)


def generate(trainer, count: int = 4, first: int = 0) -> tuple[list[dict], dict]:
    """A batch of responses with their advantages, as a training step would draw it."""
    each = trainer.num_generations
    inputs = [trainer.train_dataset[first + i // each] for i in range(count)]
    trainer.model.train()
    return inputs, trainer._generate_and_score_completions(inputs)


def completions_of(trainer, output: dict) -> list[list[int]]:
    masked = zip(output["completion_ids"], output["completion_mask"].bool(), strict=True)
    return [ids[keep].tolist() for ids, keep in masked]


def parameters_of(trainer) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


def moved(trainer, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])}


# Every baseline with each of the first two, and one with both and with neither; each with one generation, if it can
# do with it, and with two
WAYS = [(name, False, 0.1, 2 if name == "leave_one_out" else 1) for name in BASELINES]
WAYS += [*((name, True, 0.0, 2) for name in BASELINES), ("leave_one_out", False, 0.0, 2)]
WAYS += [("moving_average", True, 0.1, 1)]


@pytest.mark.parametrize(("baseline", "prefix", "beta", "generations"), WAYS)
def test_every_baseline_trains(policy_trainer, baseline, prefix, beta, generations):
    options = {"baseline": baseline, "prefix_baseline": prefix, "beta": beta, "num_generations": generations}
    trainer = policy_trainer(**options)
    before = parameters_of(trainer)
    trainer.train()
    assert moved(trainer, before) == set(before)
    for key in ("reward", "baseline", "advantage_std", "entropy", "grad_norm", "reward_model/segment"):
        assert len(logged(trainer, key)) == 3
        assert all(map(math.isfinite, logged(trainer, key))), key
    assert len(logged(trainer, "prefix/explained")) == (3 if prefix else 0)
    assert len(logged(trainer, "kl")) == (3 if beta else 0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_float32_policy_trains_under_bfloat16(policy_trainer, attention):
    # Under autocast keys and values come in two types, of which one cache has to hold both
    options = {"num_generations": 2, "bf16": True, "model_init_kwargs": {"attn_implementation": attention}}
    trainer = policy_trainer(max_steps=2, **options)
    trainer.train()
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    assert all(math.isfinite(value) for value in logged(trainer, "grad_norm"))


def test_plain_prompts_train(policy_trainer, plain_prompts):
    trainer = policy_trainer(train_dataset=plain_prompts, prefix_baseline=True)
    before = parameters_of(trainer)
    trainer.train()
    assert moved(trainer, before) == set(before)


def test_several_updates_a_batch_are_clipped_per_token(policy_trainer):
    options = {"num_iterations": 2, "max_steps": 4, "learning_rate": 3e-2, "prefix_baseline": True, "beta": 0.05}
    trainer = policy_trainer(**options)
    trainer.train()
    clipped = logged(trainer, "clip_ratio")
    assert [clipped[0], clipped[2]] == [0.0, 0.0]  # the first update of each batch is on-policy
    assert 0 < clipped[1] < 1
    on_policy = policy_trainer(max_steps=1)
    on_policy.train()
    assert logged(on_policy, "clip_ratio") == []


def test_first_update_of_a_batch_is_the_on_policy_one(policy_trainer):
    gradients = []
    for iterations in (1, 2):
        trainer = policy_trainer(num_iterations=iterations, max_steps=1, prefix_baseline=True)
        trainer.train()
        gradients.append(logged(trainer, "grad_norm")[0])
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-5)


def test_lora_policy_trains_its_adapter_alone(policy_trainer):
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])
    trainer = policy_trainer(peft_config=lora, beta=0.1, prefix_baseline=True, learning_rate=1e-2)
    before = parameters_of(trainer)
    trainer.train()
    assert moved(trainer, before) == {name for name in before if "lora_" in name}
    kl = logged(trainer, "kl")
    assert kl[0] == pytest.approx(0.0, abs=1e-6)  # a new adapter is the reference
    assert abs(kl[-1]) > 1e-6


def test_other_rewards_are_taken_and_weighted(policy_trainer, tiny_folder, reward_folder, tokenizer, tmp_path):
    stock = AutoModelForSequenceClassification.from_pretrained(tiny_folder(), num_labels=1)
    spread_head(stock).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    functions = [lengths, str(tmp_path), RewardFunction(reward_folder())]
    trainer = policy_trainer(functions, reward_weights=[0.5, 2.0, 1.0], prefix_baseline=True, normalize_rewards=True)
    trainer.train()
    log = trainer.state.log_history[0]
    parts = [log[f"rewards/{name}/mean"] for name in ("lengths", tmp_path.name, "RewardFunction")]
    assert log["reward"] == pytest.approx(0.5 * parts[0] + 2.0 * parts[1] + parts[2], rel=1e-5)


@pytest.mark.parametrize("count", [0, 2])
def test_prefix_baseline_needs_one_reward_function(policy_trainer, reward_folder, count):
    functions = [lengths, *(RewardFunction(reward_folder()) for _ in range(count))]
    with pytest.raises(ValueError, match=rf"`reward_funcs` has {count}. Wrap a multi-scale reward model"):
        policy_trainer(functions, prefix_baseline=True)


def test_the_list_of_reward_functions_stays_the_users(policy_trainer, reward_folder):
    functions = [lengths, RewardFunction(reward_folder())]
    first = policy_trainer(functions, prefix_baseline=True)
    assert [type(func).__name__ for func in functions] == ["function", "RewardFunction"]
    assert first.reward_func_names == ["lengths", "RewardFunction"]
    policy_trainer(functions, prefix_baseline=True)  # for a second trainer, too


def test_a_pass_that_is_skipped_leaves_no_number(policy_trainer):
    # on-policy and without divergence nothing needs the log-probabilities of sampling
    _, output = generate(policy_trainer(beta=0.0))
    assert output["old_per_token_logps"].isnan().all()
    assert output["advantages"].isfinite().all()
    for options in ({"beta": 0.1}, {"num_iterations": 2}):
        trainer = policy_trainer(**options)
        _, output = generate(trainer)
        mask = output["completion_mask"].bool()
        torch.testing.assert_close(output["old_per_token_logps"][mask], token_logps(trainer.model, output)[mask])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reward_clip_range": (-0.5, 1.5)},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "num_generations": 4},
    ],
)
def test_leave_one_out_gradient_is_trls(
    policy_trainer, reinforce_config, tiny_folder, chat_prompts, reward_folder, options
):
    # On-policy the ratio is 1 and its gradient that of log pi, so TRL's loss -mean(ratio A) has our gradient.
    options = {"optim": "sgd", "learning_rate": 0.1, "beta": 0.0, **options}  # the step is the gradient itself
    ours = policy_trainer(**options)
    start = parameters_of(ours)
    ours.train()
    # built only now, since building a trainer sets the seed of what it will sample
    config = reinforce_config(RLOOConfig, **options)
    theirs = RLOOTrainer(tiny_folder(), RewardFunction(reward_folder()), config, chat_prompts)
    theirs.train()
    assert logged(ours, "reward") == pytest.approx(logged(theirs, "reward"), abs=1e-5)
    assert logged(ours, "grad_norm") == pytest.approx(logged(theirs, "grad_norm"), rel=1e-4)
    assert moved(ours, start) == set(start)
    for name, value in theirs.model.named_parameters():
        torch.testing.assert_close(ours.model.get_parameter(name), value)


def test_baselines_by_hand(policy_trainer):
    rewards = [[1.0, 3.0, 5.0, 9.0], [2.0, 2.0, 6.0, 10.0]]  # means 4.5 and 5
    expected = {
        "none": [rewards[0], rewards[1]],
        "batch_mean": [[-3.5, -1.5, 0.5, 4.5], [-3.0, -3.0, 1.0, 5.0]],
        "moving_average": [rewards[0], [-2.5, -2.5, 1.5, 5.5]],
        "leave_one_out": [[-2.0, 2.0, -4.0, 4.0], [0.0, 0.0, -4.0, 4.0]],
    }
    for baseline, advantages in expected.items():
        trainer = policy_trainer(Sequence(*rewards), baseline=baseline)
        for batch in advantages:
            _, output = generate(trainer)
            mask = output["completion_mask"]
            torch.testing.assert_close(output["advantages"], torch.tensor(batch)[:, None] * mask)
        # the mean of the second batch joins what the first has left
        assert trainer._moving_average == (
            pytest.approx(0.9 * 4.5 + 0.1 * 5) if baseline == "moving_average" else None
        )


def test_rewards_are_normalised_by_earlier_batches(policy_trainer):
    trainer = policy_trainer(
        Sequence([0.0, 2.0, 4.0, 6.0], [10.0] * 4, [3.0, None, 3.0, 3.0]), baseline="none", normalize_rewards=True
    )
    first, second, third = (generate(trainer)[1] for _ in range(3))
    std = math.sqrt(20 / 3)
    for output, expected in ((first, [-3 / std, -1 / std, 1 / std, 3 / std]), (second, [7 / std] * 4)):
        assert output["advantages"][:, 0].tolist() == pytest.approx(expected, rel=1e-5)
    both = np.array([0.0, 2.0, 4.0, 6.0, 10.0, 10.0, 10.0, 10.0])
    usual = (3 - both.mean()) / both.std(ddof=1)
    assert third["advantages"][:, 0].tolist() == pytest.approx([usual, 0.0, usual, usual], rel=1e-5)


def test_clip_comes_after_normalisation(policy_trainer):
    options = {"baseline": "none", "normalize_rewards": True, "reward_clip_range": (-1.0, 1.0)}
    trainer = policy_trainer(Sequence([0.0, 2.0, 4.0, 6.0]), **options)
    std = math.sqrt(20 / 3)
    assert generate(trainer)[1]["advantages"][:, 0].tolist() == pytest.approx([-1.0, -1 / std, 1 / std, 1.0])


def test_advantages_are_whitened_over_tokens(policy_trainer):
    trainer = policy_trainer(lengths, baseline="none", normalize_advantages=True)
    _, output = generate(trainer)
    values = output["advantages"][output["completion_mask"].bool()]
    assert values.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert values.std(correction=0).item() == pytest.approx(1.0, abs=1e-3)


def test_whitening_nothing_gives_nothing(policy_trainer):
    # every response is cut off after one token, and a masked one counts for nothing: there is no token to average over
    trainer = policy_trainer(
        lengths,
        mask_truncated_completions=True,
        normalize_advantages=True,
        max_completion_length=1,
        max_steps=1,
        generation_kwargs={"suppress_tokens": [0, 2]},  # padding and EOS
    )
    _, output = generate(trainer)
    assert not output["completion_mask"].any()
    assert not output["advantages"].any()
    before = parameters_of(trainer)
    trainer.train()
    assert moved(trainer, before) == set()


def test_whitening_leaves_unscored_responses_alone(policy_trainer):
    rewards = Sequence(*[[None, 3.0, 5.0, 10.0]] * 2)
    trainer = policy_trainer(rewards, baseline="none", normalize_advantages=True)
    for _ in range(2):
        _, output = generate(trainer)
        values, mask = output["advantages"], output["completion_mask"].bool()
        assert not values[0].any()
        rest = values[1:][mask[1:]]
        assert rest.mean().item() == pytest.approx(0.0, abs=1e-5)
        assert rest.std(correction=0).item() == pytest.approx(1.0, abs=1e-3)


def token_logps(model, output: dict) -> torch.Tensor:
    """Log-probabilities of the sampled tokens, from the logits of the whole rows."""
    ids = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
    mask = torch.cat([output["prompt_mask"], output["completion_mask"]], 1)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
    return logits.gather(2, ids[:, 1:, None])[..., 0][:, -output["completion_ids"].size(1) :]


def test_divergence_still_to_come_is_subtracted(policy_trainer):
    trainer = policy_trainer(Sequence([1.0, 3.0, 5.0, 9.0]), baseline="none", beta=0.5)
    torch.manual_seed(0)
    for parameter in trainer.model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    _, output = generate(trainer)
    mask = output["completion_mask"]
    kl = (token_logps(trainer.model, output) - token_logps(trainer.ref_model, output)) * mask
    assert kl.abs().max() > 0.1
    for i, reward in enumerate([1.0, 3.0, 5.0, 9.0]):
        for t in range(int(mask[i].sum())):
            expected = reward - 0.5 * kl[i, t:].sum().item()
            assert output["advantages"][i, t].item() == pytest.approx(expected, abs=1e-4)
    assert not (output["advantages"] * (1 - mask)).any()


def test_prefix_baseline_is_a_fit_of_earlier_batches_on_what_lies_before_the_token(policy_trainer, reward_folder):
    reward = RewardFunction(reward_folder())
    trainer = policy_trainer(
        reward, baseline="none", prefix_baseline=True, prefix_decay=0.7, prefix_penalty=0.1, max_completion_length=10
    )
    other = RewardFunction(reward_folder())  # so that nothing is read from what the trainer has kept
    gram, moment = np.zeros((8, 8)), np.zeros(8)
    for step in range(3):
        inputs, output = generate(trainer, first=2 * step)
        ids = completions_of(trainer, output)
        texts = trainer.processing_class.batch_decode(ids, skip_special_tokens=True)
        answers = [[{"role": "assistant", "content": text}] for text in texts]
        scores = other.score([row["prompt"] for row in inputs], answers, completion_ids=ids)
        shrunk = gram + 0.1 * np.diag(np.diag(gram))
        theta = np.linalg.solve(shrunk, moment) if step else np.zeros(8)
        batch_gram, batch_moment = np.zeros((8, 8)), np.zeros(8)
        for i, score in enumerate(scores):
            total = score.reward
            assert score.same_tokens
            for t in range(len(ids[i])):
                before = score.prompt_value if t == 0 else score.prefix_values[t - 1]
                known = [1.0, *before.tolist()]
                features = np.array([*known, *(value * t / 10 for value in known)])
                expected = total - features @ theta
                assert output["advantages"][i, t].item() == pytest.approx(expected, abs=1e-3)
                batch_gram += np.outer(features, features)
                batch_moment += features * total
        gram, moment = 0.7 * gram + batch_gram, 0.7 * moment + batch_moment
        np.testing.assert_allclose(trainer._prefix_baseline.fit.gram, gram, atol=1e-4)
        np.testing.assert_allclose(trainer._prefix_baseline.fit.moment, moment, atol=1e-4)
    assert np.abs(theta).max() > 1e-2


def test_prefix_baseline_explains_what_the_prefixes_tell(policy_trainer, reward_folder):
    # frozen policy, token scores only: what lies before the token tells a part of the mean over all tokens, though
    # this policy, whose weights are random, writes texts that a tokenizer would cut otherwise
    reward = RewardFunction(reward_folder("qwen3", ["token"], "none"))
    options = {"baseline": "moving_average", "num_generations": 1, "per_device_train_batch_size": 16, "max_steps": 8}
    trainer = policy_trainer(reward, prefix_baseline=True, learning_rate=0.0, max_completion_length=12, **options)
    trainer.train()
    explained = logged(trainer, "prefix/explained")
    assert explained[0] == 0.0
    assert np.mean(explained[3:]) > 0.1


def test_prefix_values_at_the_tokens_of_another_tokenizer_by_hand():
    values = torch.tensor([[1.0], [2.0], [3.0]])
    score = ResponseScore(
        3.0, values[-1], torch.ones(1), values, torch.tensor([0.5]), values, values, values > 2, [2, 5, 9], False, 0, 0
    )
    found = align_by_offsets(score, [1, 2, 4, 5, 8, 9, 9])
    assert found[:, 0].tolist() == [0.5, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0]


def test_settled_length_by_hand():
    assert [settled_length(text) for text in ("", "num", " num", "a num", "a num  ", "a\nb.", "a\nb. c")] == [
        0,
        0,
        0,
        1,
        5,
        0,
        4,
    ]


def test_values_after_what_the_template_writes_before_the_message(policy_trainer, reward_folder, thinking):
    # The reward model reads an empty thought before what the policy sampled: its values are passed over
    reward, decode = RewardFunction(reward_folder(), thinking), thinking.decode
    trainer = policy_trainer(RewardFunction(reward_folder(), thinking), prefix_baseline=True)
    inputs, output = generate(trainer)
    prompts, completions = [example["prompt"] for example in inputs], completions_of(trainer, output)
    texts = [[{"role": "assistant", "content": decode(ids, skip_special_tokens=True)}] for ids in completions]
    scores = reward.score(prompts, texts, completion_ids=completions)
    values, _ = values_at_tokens(scores, output["completion_ids"], output["completion_mask"], 3, decode)
    head = thinking("<think>\n\n</think>\n\n")["input_ids"]
    for i, ids in enumerate(completions[:2]):
        given = thinking(thinking.apply_chat_template(prompts[i], tokenize=False, add_generation_prompt=True))
        before, start = given["input_ids"] + head, torch.tensor([len(given["input_ids"])])
        for t in range(1, len(ids) + 1):  # the value of a prefix is the score of the row that was cut there
            row = torch.tensor([before + list(ids[:t])])
            with torch.no_grad():
                found = reward.model(row, response_start=start).logits.item()
            assert values[i, t - 1].sum().item() == pytest.approx(found, abs=1e-5)


@pytest.mark.parametrize("other", [" numbe#", " number", " numbers! And more", " numb", " numb er"])
def test_values_at_the_tokens_of_another_tokenizer_do_not_look_ahead(reward_folder, tokenizer, other):
    # " number" is one token of the reward model, " numbe#" several: the last letter decides about those before it
    reward, known = RewardFunction(reward_folder()), []
    beginning = "One. Two numb"
    assert tokenizer("number")["input_ids"] != tokenizer("numb")["input_ids"] + tokenizer("er")["input_ids"]
    for text in (beginning, "One. Two" + other):
        (score,) = reward.score(["Q:"], [text])
        settled = [settled_length(text[: t + 1]) for t in range(len(beginning))]
        known.append(align_by_offsets(score, settled))
    torch.testing.assert_close(known[0], known[1])
    assert len(known[0].unique(dim=0)) >= 3  # nothing, the first word and the second


def test_a_reward_model_with_another_tokenizer_trains_the_policy(
    policy_trainer, tiny_folder, tokenizer, other_tokenizer
):
    model = AutoModelForMultiScaleReward.from_pretrained(tiny_folder("llama"), MultiScaleSettings(context="gate"))
    model.set_layout(response_marker_ids(other_tokenizer), segment_boundary_ids(other_tokenizer))
    reward = RewardFunction(spread_head(model), other_tokenizer, policy_processing_class=tokenizer)
    trainer = policy_trainer(reward, prefix_baseline=True)
    inputs, output = generate(trainer)
    completions, decode = completions_of(trainer, output), tokenizer.decode
    texts = [[{"role": "assistant", "content": decode(ids, skip_special_tokens=True)}] for ids in completions]
    scores = reward.score([example["prompt"] for example in inputs], texts, completion_ids=completions)
    values, prompt_value = values_at_tokens(
        scores, output["completion_ids"], output["completion_mask"], 3, tokenizer.decode
    )
    for i, (ids, score) in enumerate(zip(completions, scores, strict=True)):
        assert not score.same_tokens
        torch.testing.assert_close(prompt_value[i], score.prompt_value)
        for t in range(len(ids)):
            text = tokenizer.decode(ids[: t + 1], skip_special_tokens=True)
            ends_of_words = [p for p in range(1, len(text)) if text[p] == " " and not text[p - 1].isspace()]
            read = sum(end <= max(ends_of_words, default=0) for end in score.ends)
            expected = score.prefix_values[read - 1] if read else score.prompt_value
            torch.testing.assert_close(values[i, t], expected)
    before = parameters_of(trainer)
    trainer.train()
    assert moved(trainer, before) == set(before)


def test_sampling_and_training_agree_on_log_probabilities(policy_trainer, tiny_folder):
    def drift(**options) -> float:
        trainer = policy_trainer(lengths, model=tiny_folder("qwen3", attention_dropout=0.3), **options)
        _, output = generate(trainer)
        ids = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
        mask = torch.cat([output["prompt_mask"], output["completion_mask"]], 1)
        assert trainer.model.training
        logps, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, mask, output["completion_ids"].size(1)
        )
        return ((logps - output["old_per_token_logps"]) * output["completion_mask"]).abs().max().item()

    assert drift() == pytest.approx(0.0, abs=1e-5)
    assert drift(disable_dropout=False) > 1e-3


@pytest.mark.parametrize("baseline", BASELINES)
def test_unscored_responses_move_nothing(policy_trainer, baseline):
    def nothing(completions, **kwargs):
        return [None] * len(completions)

    trainer = policy_trainer(nothing, baseline=baseline, beta=0.1)
    before = parameters_of(trainer)
    with pytest.raises(
        ValueError, match=r"None of the reward functions \['nothing'\] has scored any response up to step 1"
    ):
        trainer.train()
    assert moved(trainer, before) == set()


def test_an_infinite_reward_stops_the_run(policy_trainer):
    def overflows(completions, **kwargs):
        return [1.0, float("inf"), *[0.0] * (len(completions) - 2)]

    with pytest.raises(ValueError, match="'overflows' returned inf for response 2 of 4 after step 0"):
        policy_trainer(overflows).train()


def test_no_reward_function_is_refused(policy_trainer):
    with pytest.raises(ValueError, match="`reward_funcs` is empty"):
        policy_trainer([])


def test_an_unscored_response_stays_out_of_the_others(policy_trainer):
    expected = {
        "batch_mean": [0.0, -3.0, -1.0, 4.0],  # the mean of 3, 5 and 10 is 6
        "leave_one_out": [0.0, 0.0, -5.0, 5.0],  # the second has no other one to compare with
    }
    for baseline, advantages in expected.items():
        trainer = policy_trainer(Sequence([None, 3.0, 5.0, 10.0]), baseline=baseline)
        _, output = generate(trainer)
        assert output["advantages"][:, 0].tolist() == pytest.approx(advantages)


def test_an_unscored_batch_does_not_silence_the_next(policy_trainer):
    trainer = policy_trainer(Sequence([None] * 4, [1.0, 3.0, 5.0, 9.0]), baseline="moving_average")
    generate(trainer)
    _, output = generate(trainer)
    assert output["advantages"][:, 0].tolist() == pytest.approx([1.0, 3.0, 5.0, 9.0])


RUNNING = {"baseline": "moving_average", "prefix_baseline": True, "normalize_rewards": True, "beta": 0.05}


def test_resuming_with_another_reward_model_is_an_error(policy_trainer, reward_folder):
    trainer = policy_trainer(max_steps=1, save_strategy="steps", save_steps=1, **RUNNING)
    trainer.train()
    other = policy_trainer(RewardFunction(reward_folder("qwen3", ["response"], "none")), **RUNNING)
    with pytest.raises(ValueError, match=r"another reward model 1 \('.*' then, '.*' now; other weights\)"):
        other.train(resume_from_checkpoint=str(Path(trainer.args.output_dir, "checkpoint-1")))
    without = policy_trainer(**{**RUNNING, "prefix_baseline": False})
    with pytest.raises(ValueError, match="has a prefix fit, and this run has `prefix_baseline=False`"):
        without.train(resume_from_checkpoint=str(Path(trainer.args.output_dir, "checkpoint-1")))


def test_resuming_with_a_prefix_baseline_that_was_not_there_is_an_error(policy_trainer):
    trainer = policy_trainer(max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    with pytest.raises(ValueError, match="The checkpoint's prefix fit has 0 features, this run's 8"):
        policy_trainer(prefix_baseline=True).train(
            resume_from_checkpoint=str(Path(trainer.args.output_dir, "checkpoint-1"))
        )


@pytest.mark.parametrize("beta", [0.0, 0.05])
def test_evaluation_logs_rewards_and_keeps_no_baseline(policy_trainer, chat_prompts, beta):
    options = {"baseline": "moving_average", "prefix_baseline": True, "num_generations": 1, "beta": beta}
    trainer = policy_trainer(eval_dataset=chat_prompts.select(range(4)), per_device_eval_batch_size=4, **options)
    state = trainer._resume_state()
    metrics = trainer.evaluate()
    assert math.isfinite(metrics["eval_reward"])
    assert metrics["eval_loss"] == 0.0
    assert trainer._resume_state() == state


def test_evaluation_works_where_training_is_off_policy(policy_trainer, chat_prompts):
    trainer = policy_trainer(
        eval_dataset=chat_prompts.select(range(4)), per_device_eval_batch_size=4, num_iterations=2, num_generations=2
    )
    assert math.isfinite(trainer.evaluate()["eval_reward"])


def test_columns_of_the_data_reach_the_rewards(policy_trainer, chat_prompts):
    seen = []

    def remember(completions, topic, **kwargs):
        seen.extend(topic)
        return [0.0] * len(completions)

    data = Dataset.from_list([{**row, "topic": f"topic {i}"} for i, row in enumerate(chat_prompts)])
    trainer = policy_trainer([remember], train_dataset=data, max_steps=1)
    trainer.train()
    assert len(seen) == 4
    assert all(topic.startswith("topic ") for topic in seen)


def test_the_policys_own_ends_end_a_response(policy_trainer, tiny_folder, reward_folder, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(tiny_folder("qwen3"))
    stop = tokenizer.convert_tokens_to_ids("<|im_start|>")
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, stop]
    reward = RewardFunction(reward_folder())
    policy_trainer(reward, model=model)
    ids = [*tokenizer("A man.")["input_ids"], stop]
    answer, prompt = [{"role": "assistant", "content": "A man."}], [{"role": "user", "content": "Who?"}]
    assert reward([prompt], [answer], [ids])[0] == pytest.approx(reward([prompt], [answer])[0], abs=1e-5)


def test_a_function_that_has_nothing_to_say_ends_no_training(tiny_folder, reinforce_config, chat_pairs):
    def silent(completions, **kwargs):
        return [None] * len(completions)

    def length(completions, **kwargs):
        return [float(len(completion[0]["content"])) for completion in completions]

    config = reinforce_config(max_steps=1)
    trainer = ReinforceTrainer(tiny_folder(), [length, silent], config, train_dataset=chat_pairs)
    trainer.train()
    trainer.save_model()  # with the card
    card = Path(config.output_dir, "README.md").read_text()
    assert "rewards/length/mean" in card
    assert "rewards/silent/mean" not in card
