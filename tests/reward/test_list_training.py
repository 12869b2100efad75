"""Training on ranked lists: a list of two is a pair, a longer one costs one prompt and counts as much as a pair."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from tests.helpers import PAIRS, logged
from tests.tiny import pad_rows
from toolkit import MultiScaleRewardTrainer
from toolkit.arguments import DataArguments, divided_pairs, held_out_pairs
from toolkit.data.batches import group_of
from toolkit.reward.comparisons import list_loss
from toolkit.stats.rankings import ListScores, kendall_tau


@pytest.fixture(scope="module")
def chat_lists():
    """Lists of two to four, some of them with a tie, not in the order of their ranks."""
    rows = []
    for i, (question, good, bad) in enumerate(PAIRS):
        texts = [bad, good, PAIRS[i - 1][1], PAIRS[i - 2][2]][: 2 + i % 3]
        rows.append(
            {
                "prompt": [{"role": "user", "content": question}],
                "responses": [[{"role": "assistant", "content": text}] for text in texts],
                "ranks": [2, 0, 1 if i % 4 else 2, 3][: len(texts)],
                "strength": 1.0 + i % 2,
            }
        )
    return Dataset.from_list(rows)


@pytest.fixture
def train_on(reward_config, tiny_folder):
    def make(data, model=None, eval_dataset=None, peft_config=None, **options):
        args = reward_config(**options)
        return MultiScaleRewardTrainer(model or tiny_folder(), args, data, eval_dataset, peft_config=peft_config)

    return make


def as_lists(pairs):
    """Pairs as lists of two, whose better response stands second."""
    rows = [
        {
            **{column: value for column, value in row.items() if column not in ("chosen", "rejected")},
            "responses": [row["rejected"], row["chosen"]],
            "ranks": [2, 1],
        }
        for row in pairs.to_list()
    ]
    return Dataset.from_list(rows)


def score_alone(trainer, example) -> torch.Tensor:
    """Scores of the responses of a list, each in a batch of its own."""
    with torch.no_grad():
        rows = zip(*group_of(example), strict=True)
        return torch.stack([trainer.model.eval()(**pad_rows([ids], [start], 0)).logits[0, 0] for ids, start in rows])


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("loss_type", ["pairwise", "pointwise"])
def test_lists_of_two_train_as_pairs_to_the_last_bit(train_on, chat_pairs, shared, loss_type):
    pairs = chat_pairs.add_column("strength", [1.0 + i % 3 for i in range(24)])
    options = {"shared_prompts": shared, "loss_type": loss_type, "gradient_accumulation_steps": 2, "max_steps": 5}
    if loss_type == "pairwise":  # in the other the order of more than two summands would differ
        options |= {"center_rewards_coefficient": 0.1, "label_smoothing_factor": 0.1}
    of_pairs, of_lists = train_on(pairs, **options), train_on(as_lists(pairs), **options)
    for trainer in (of_pairs, of_lists):
        trainer.train()
    for key in ("loss", "grad_norm", "accuracy", "margin", "loss/token", "max_reward", "num_tokens"):
        assert logged(of_lists, key) == logged(of_pairs, key), key
    states = [trainer.model.state_dict() for trainer in (of_pairs, of_lists)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("loss_type", ["plackett_luce", "log_sum_exp"])
def test_with_lists_of_two_the_losses_of_lists_are_that_of_pairs(train_on, chat_pairs, loss_type):
    runs = train_on(chat_pairs), train_on(as_lists(chat_pairs), loss_type=loss_type)
    for trainer in (*runs, on_pairs := train_on(chat_pairs, loss_type=loss_type)):
        trainer.train()
    assert logged(runs[1], "loss") == pytest.approx(logged(runs[0], "loss"), abs=1e-6)
    assert logged(on_pairs, "loss") == logged(runs[0], "loss")


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("loss_type", ["pairwise", "plackett_luce", "log_sum_exp"])
def test_loss_of_a_batch_of_lists_by_its_rows(train_on, reward_folder, chat_lists, shared, loss_type):
    trainer = train_on(chat_lists, reward_folder(), shared_prompts=shared, loss_type=loss_type, scale_loss_weight=0.0)
    examples = [trainer.train_dataset[i] for i in range(6)]
    loss, lists = trainer.compute_loss(trainer.model, trainer.data_collator(examples), return_outputs=True)
    mean = sum(chat_lists["strength"]) / len(chat_lists)
    for i, (example, row) in enumerate(zip(examples, chat_lists, strict=False)):
        scores, k = score_alone(trainer, example)[None], len(row["ranks"])
        torch.testing.assert_close(lists.scores[i, :k], scores[0], atol=1e-5, rtol=1e-5)
        ranks = torch.tensor(sorted(row["ranks"]))  # the best first
        dense = torch.unique(ranks, return_inverse=True)[1]
        assert lists.ranks[i].tolist() == dense.tolist() + [-1] * (4 - k)
        expected = row["strength"] / mean * list_loss(scores, dense[None], loss_type)[0]
        torch.testing.assert_close(lists.loss[i], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss, lists.loss.mean())


def test_a_list_costs_one_prompt_and_is_read_alike_packed_and_not(train_on, chat_lists):
    lora = LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear")
    for peft_config in (None, lora):
        options = {"peft_config": peft_config, "learning_rate": 1e-2, "max_steps": 6, "eval_dataset": chat_lists}
        packed, plain = (train_on(chat_lists, shared_prompts=share, **options) for share in (True, False))
        for trainer in (packed, plain):
            trainer.train()
        assert logged(packed, "loss") == pytest.approx(logged(plain, "loss"), abs=1e-5)
        assert logged(packed, "loss")[0] != pytest.approx(logged(packed, "loss")[-1], abs=1e-3)
        ours, theirs = packed.evaluate(), plain.evaluate()
        for key in ("eval_loss", "eval_kendall_tau", "eval_top_1", "eval_accuracy"):
            assert ours[key] == pytest.approx(theirs[key], abs=1e-5), key
    tokens = [sum(map(len, rows)) for rows in plain.train_dataset["response_ids"]]
    assert logged(plain, "num_tokens")[-1] == sum(tokens)  # six steps of four lists are an epoch
    once = zip(tokens, plain.train_dataset["shared_tokens"], chat_lists["ranks"], strict=True)
    assert logged(packed, "num_tokens")[-1] == sum(all_ - (len(ranks) - 1) * n for all_, n, ranks in once)


def test_the_reach_grows_in_training_and_is_whole_in_evaluation(train_on, reward_folder, chat_lists):
    options = {"scale_loss_weight": 0.0, "weight_by_strength": False, "coarse_warmup": 0.0}
    trainer = train_on(chat_lists, reward_folder(), list_reach_warmup=0.6, **options)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(3)])
    trainer.state.max_steps = 10
    for step, training, reach in ((0, True, 1), (1, True, 1), (2, True, 2), (5, True, 3), (9, True, 3), (0, False, 3)):
        trainer.state.global_step = step
        trainer.model.train(training)
        lists = trainer.compute_loss(trainer.model, dict(batch), return_outputs=True)[1]
        torch.testing.assert_close(lists.loss, list_loss(lists.scores, lists.ranks, reach=reach))
    trainer.args.list_reach_warmup, trainer.args.list_reach = None, 1
    lists = trainer.compute_loss(trainer.model, dict(batch), return_outputs=True)[1]
    torch.testing.assert_close(lists.loss, list_loss(lists.scores, lists.ranks, reach=1))


@pytest.mark.parametrize("batch_size", [2, 3, 8])
def test_figures_of_an_evaluation_are_those_of_every_list_alone(train_on, reward_folder, chat_lists, batch_size):
    held_out = chat_lists.select(range(7))
    # Trained on shorter lists than those that are held out
    short = chat_lists.select(range(0, 24, 3))
    seen = []
    trainer = train_on(short, reward_folder(), held_out, per_device_eval_batch_size=batch_size)
    trainer.compute_metrics = lambda found: seen.append(ListScores(*found.predictions)) or {}
    metrics = trainer.evaluate()
    alone = [score_alone(trainer, example) for example in trainer.eval_dataset]
    ranks = [torch.tensor(ranks) for ranks in trainer.eval_dataset["response_ranks"]]
    for i, scores in enumerate(alone):
        torch.testing.assert_close(torch.tensor(seen[0].scores[i, : len(scores)]), scores, atol=1e-5, rtol=1e-5)
    taus = [kendall_tau(scores[None], own[None]).item() for scores, own in zip(alone, ranks, strict=True)]
    assert metrics["eval_kendall_tau"] == pytest.approx(sum(taus) / 7)
    best = [own[scores.argmax()] == 0 for scores, own in zip(alone, ranks, strict=True)]
    assert metrics["eval_top_1"] == pytest.approx(sum(best) / 7)
    assert (metrics["eval_lists"], metrics["eval_pairs"]) == (7, sum(len(o) * (len(o) - 1) / 2 for o in ranks) - 1)
    assert metrics["eval_max_reward"] == pytest.approx(max(scores.max().item() for scores in alone), abs=1e-5)


def test_lists_and_pairs_are_evaluated_side_by_side(train_on, chat_lists, chat_pairs):
    sets = {"pairs": chat_pairs.select(range(5)), "lists": chat_lists.select(range(4))}
    for data in (chat_lists, chat_pairs):
        trainer = train_on(data, eval_dataset=sets, max_steps=1)
        trainer.train()
        metrics = trainer.evaluate()
        assert (metrics["eval_pairs_pairs"], metrics["eval_lists_lists"]) == (5, 4)
        assert "eval_pairs_kendall_tau" not in metrics


@pytest.mark.parametrize("options", [{}, {"max_tokens_per_batch": 400}], ids=["rows", "tokens"])
def test_a_resumed_training_on_lists_is_the_one_that_was_not_interrupted(train_on, chat_lists, options):
    options |= {
        "max_steps": 8,
        "save_strategy": "steps",
        "save_steps": 3,
        "logging_steps": 2,
        "list_reach_warmup": 0.9,
    }
    whole, resumed = (train_on(chat_lists, **options) for _ in range(2))
    whole.train()
    resumed.train(resume_from_checkpoint=str(Path(whole.args.output_dir, "checkpoint-3")))
    for key in ("loss", "grad_norm", "accuracy", "kendall_tau", "top_1", "lists", "num_tokens"):
        assert logged(resumed, key) == logged(whole, key), key
    states = [trainer.model.state_dict() for trainer in (whole, resumed)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("shared", [True, False])
def test_batches_by_tokens_keep_to_them(train_on, chat_lists, shared):
    trainer = train_on(chat_lists, shared_prompts=shared, max_tokens_per_batch=600)
    batches = list(trainer.get_train_dataloader())
    assert len(batches) > 1
    assert max(batch["input_ids"].numel() for batch in batches) <= 600
    assert sum(len(batch["group_sizes"]) for batch in batches) == 24


@pytest.mark.parametrize("context", ["none", "gate"])
def test_a_frozen_decoder_trains_on_lists_as_the_decoder_itself(train_on, chat_lists, chat_pairs, context):
    sets = {"lists": chat_lists.select(range(5)), "pairs": chat_pairs.select(range(5))}
    options = {"eval_dataset": sets, "context": context, "learning_rate": 1e-2, "max_steps": 4}
    frozen, decoder = train_on(chat_lists, freeze_decoder=True, **options), train_on(chat_lists, **options)
    for name, parameter in decoder.model.named_parameters():
        parameter.requires_grad_(name.startswith("score."))
    for trainer in (frozen, decoder):
        trainer.train()
    assert "states" in next(iter(frozen.get_train_dataloader()))
    assert logged(frozen, "loss") == pytest.approx(logged(decoder, "loss"), abs=2e-5)
    found, expected = frozen.evaluate(), decoder.evaluate()
    for key in ("eval_lists_loss", "eval_lists_kendall_tau", "eval_pairs_margin"):
        assert found[key] == pytest.approx(expected[key], abs=2e-5), key
    with pytest.raises(ValueError, match="`learning_rates` are compared on pairs, and the training data are ranked"):
        train_on(chat_lists, freeze_decoder=True, learning_rates=[1e-3, 1e-2])


def test_plain_text_lists_train(train_on, plain_pairs):
    trainer = train_on(as_lists(plain_pairs), max_steps=2)
    trainer.train()
    assert logged(trainer, "lists") == [4.0, 4.0]
    assert trainer.reward_model.settings.conversational is False


def test_what_does_not_go_together_is_refused(reward_config):
    with pytest.raises(ValueError, match=r"`loss_type` is 'listwise'. Use one of \['pairwise', 'pointwise', 'plack"):
        reward_config(loss_type="listwise")
    for loss_type in ("plackett_luce", "log_sum_exp"):
        with pytest.raises(ValueError, match=f"`loss_type='{loss_type}'` does not have. Leave one of the two out"):
            reward_config(loss_type=loss_type, label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match="has choices among all that are left"):
        reward_config(loss_type="plackett_luce", list_reach=2)
    with pytest.raises(ValueError, match="`list_reach`"):
        reward_config(list_reach=0)


def test_a_row_that_is_too_long_for_the_model_is_named(train_on, chat_lists):
    row = chat_lists[1] | {
        "responses": [*chat_lists[1]["responses"][:2], [{"role": "assistant", "content": "a b " * 300}]]
    }
    with pytest.raises(ValueError, match=r"List 2 of data set 'train' has a row of \d+ tokens"):
        train_on(Dataset.from_list([chat_lists[0], row, chat_lists[2]]), max_length=None)


def test_a_job_takes_lists_whole_and_their_prompts_apart(chat_lists, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    chat_lists.to_json(tmp_path / "lists.jsonl")
    args = DataArguments(dataset_name=str(tmp_path / "lists.jsonl"), eval_size=5)
    train, test = divided_pairs(args, seed=0, whole_lists=True)
    assert (len(train), len(test)) == (19, 5)
    assert sorted(map(len, [*train["ranks"], *test["ranks"]])) == sorted(map(len, chat_lists["ranks"]))
    args.eval_dataset_name = args.dataset_name
    assert len(held_out_pairs(args, 0, whole_lists=True)) == 5
    assert "chosen" in held_out_pairs(args, 0).column_names


@pytest.fixture(scope="module")
def pairs_of_few_prompts():
    """Twelve prompts with up to four pairs of three responses, in circles and labelled both ways, too."""
    rows = []
    for i, (question, good, bad) in enumerate(PAIRS[:12]):
        texts = [good, bad, PAIRS[i + 1][1]]
        for better, worse in [(0, 1), (1, 2), (2, 0), (1, 0)][: 1 + i % 4]:
            sides = ([{"role": "assistant", "content": texts[place]}] for place in (better, worse))
            rows.append(
                {
                    "prompt": [{"role": "user", "content": question}],
                    **dict(zip(("chosen", "rejected"), sides, strict=True)),
                    "strength": 1.0 + len(rows) % 3,
                    "margin": 0.1 * (len(rows) % 5),
                }
            )
    rows[0]["prompt"][0]["content"] += " Say it at great length, and leave nothing out of what you know of it." * 4
    return Dataset.from_list(rows)


@pytest.mark.parametrize("options", [{}, {"shared_prompts": False}, {"freeze_decoder": True}], ids=str)
def test_pairs_by_their_prompts_have_the_step_of_all_pairs(train_on, pairs_of_few_prompts, options):
    # One step over all pairs, in batches of prompts, which have one to four of them, and in one batch
    count = len(pairs_of_few_prompts)
    options = {"max_steps": 1, "label_smoothing_factor": 0.1, "center_rewards_coefficient": 0.1, **options}
    by_pair = train_on(pairs_of_few_prompts, per_device_train_batch_size=count, **options)
    # A column of the user's is none of the trainer's
    named = pairs_of_few_prompts.add_column("response_pairs", [1] * count).add_column("pairs", [1] * count)
    by_prompt = train_on(named, group_by_prompt=True, gradient_accumulation_steps=3, **options)
    assert len(by_prompt.train_dataset) == 12
    for trainer in (by_pair, by_prompt):
        trainer.train()
    for key in ("loss", "accuracy", "margin", "loss/token", "length_correlation"):
        assert logged(by_prompt, key) == pytest.approx(logged(by_pair, key), abs=1e-5), key
    assert logged(by_prompt, "grad_norm") == pytest.approx(logged(by_pair, "grad_norm"), rel=1e-4)
    assert logged(by_prompt, "pairs") == [count]
    assert logged(by_prompt, "num_tokens")[0] < logged(by_pair, "num_tokens")[0]


def test_a_resumed_training_by_prompts_is_the_one_that_was_not_interrupted(train_on, pairs_of_few_prompts):
    options = {"max_steps": 5, "save_strategy": "steps", "save_steps": 2, "logging_steps": 1, "group_by_prompt": True}
    whole, resumed = (train_on(pairs_of_few_prompts, **options) for _ in range(2))
    whole.train()
    resumed.train(resume_from_checkpoint=str(Path(whole.args.output_dir, "checkpoint-2")))
    for key in ("loss", "grad_norm", "accuracy", "pairs", "num_tokens"):
        assert logged(resumed, key) == logged(whole, key), key


def test_rows_by_prompts_are_for_pairs_and_one_rate(train_on, pairs_of_few_prompts, chat_lists):
    with pytest.raises(ValueError, match="`group_by_prompt` is for pairs, and the training data are ranked lists"):
        train_on(chat_lists, group_by_prompt=True)
    options = {"group_by_prompt": True, "freeze_decoder": True, "learning_rates": [1e-3]}
    with pytest.raises(ValueError, match=r"rows by their prompts\. Leave `group_by_prompt` out, or set `learn"):
        train_on(pairs_of_few_prompts, **options)
