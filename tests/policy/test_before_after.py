import json
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from toolkit.policy import before_after
from toolkit.policy.before_after import BeforeAndAfter


@pytest.fixture
def trainer(tiny_folder, tokenizer, plain_pairs, reinforce_config):
    return SimpleNamespace(
        args=reinforce_config(),
        model=AutoModelForCausalLM.from_pretrained(tiny_folder()),
        processing_class=tokenizer,
        train_dataset=plain_pairs,
        eval_dataset=None,
        is_fsdp_enabled=False,
    )


def run(trainer, steps, begun=0, prompts=3, main=True):
    """What training would call, from a step to another, with weights that move in between."""
    callback = BeforeAndAfter(trainer, prompts)
    state = SimpleNamespace(global_step=begun, is_world_process_zero=main)
    callback.on_train_begin(trainer.args, state, None)
    with torch.no_grad():
        trainer.model.lm_head.weight.mul_(-1)
    state.global_step = steps
    callback.on_train_end(trainer.args, state, None)


def cards_of(trainer):
    with open(f"{trainer.args.output_dir}/before_after.json") as file:
        return json.load(file)


def test_the_same_prompts_are_answered_before_and_after(trainer, plain_pairs):
    run(trainer, 5)
    cards = cards_of(trainer)
    assert [card["prompt"] for card in cards] == plain_pairs["prompt"][:3]
    assert [[response["label"] for response in card["responses"]] for card in cards] == [
        ["before", "after 5 steps"]
    ] * 3
    assert all(card["responses"][0]["text"] != card["responses"][1]["text"] for card in cards)


def test_what_training_draws_stays_as_it_is(trainer):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    run(trainer, 5)
    assert torch.equal(torch.rand(4), expected)


def test_held_out_prompts_come_first_and_each_once(trainer, plain_pairs):
    trainer.eval_dataset = plain_pairs.select([4, 4, 5, 6])
    run(trainer, 5, prompts=2)
    assert [card["prompt"] for card in cards_of(trainer)] == [plain_pairs[4]["prompt"], plain_pairs[5]["prompt"]]


def test_a_resumed_run_keeps_what_was_answered_before_it_began(trainer):
    run(trainer, 5)
    before = [card["responses"][0] for card in cards_of(trainer)]
    run(trainer, 9, begun=5)
    cards = cards_of(trainer)
    assert [card["responses"][0] for card in cards] == before
    assert {card["responses"][1]["label"] for card in cards} == {"after 9 steps"}


@pytest.mark.parametrize("where", ["zero3", "fsdp", "another process"])
def test_nothing_is_sampled_where_a_process_has_not_all_weights(trainer, monkeypatch, tmp_path, where):
    monkeypatch.setattr(before_after, "is_deepspeed_zero3_enabled", lambda: where == "zero3")
    trainer.is_fsdp_enabled = where == "fsdp"
    run(trainer, 5, main=where != "another process")
    assert list(tmp_path.rglob("before_after.json")) == []


def test_of_several_held_out_sets_the_first_is_answered(trainer, plain_pairs):
    trainer.eval_dataset = {"one": plain_pairs.select([5]), "two": plain_pairs.select([6])}
    run(trainer, 5, prompts=1)
    assert [card["prompt"] for card in cards_of(trainer)] == [plain_pairs["prompt"][5]]
