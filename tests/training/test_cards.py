import re

import pytest
from huggingface_hub import ModelCard
from peft import LoraConfig
from transformers import TrainerState

from toolkit import MultiScaleRewardTrainer, ReinforceTrainer
from toolkit.reward.cards import held_out_metrics
from toolkit.reward.export import export
from toolkit.training.cards import data_source_of, source_of


def card_of(folder):
    return ModelCard.load(folder / "README.md")


def run_code(card, monkeypatch, folder):
    """What the card's code prints, run where its folder lies."""
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    monkeypatch.chdir(folder)
    exec(code, {})


@pytest.mark.parametrize("adapter", [False, True])
def test_the_card_of_a_reward_model(tiny_folder, reward_config, chat_pairs, tmp_path, monkeypatch, capsys, adapter):
    lora = LoraConfig(task_type="SEQ_CLS", r=2, target_modules="all-linear") if adapter else None
    trainer = MultiScaleRewardTrainer(
        tiny_folder(),
        reward_config(max_steps=1),
        chat_pairs,
        chat_pairs,
        peft_config=lora,
    )
    trainer.train()
    trainer.save_model()
    before = card_of(tmp_path / "reward")
    assert "not evaluated on held-out pairs" in before.text
    assert before.data.eval_results is None

    metrics = trainer.evaluate()
    trainer.create_model_card(dataset_name=str(tmp_path / "pairs.jsonl"), tags="mine")
    card = card_of(tmp_path / "reward")
    told = {one.metric_name: one for one in card.data.eval_results}
    assert told.keys() == {"mix", "token", "segment", "response", "longer wins"}
    assert told["mix"].metric_value == pytest.approx(metrics["eval_accuracy"], abs=1e-6)
    assert told["token"].metric_args["low"] == pytest.approx(metrics["eval_accuracy_low/token"], abs=1e-6)
    assert f"| mix | {100 * metrics['eval_accuracy']:.1f} |" in card.text
    assert f"on {len(chat_pairs)} preference pairs of `pairs.jsonl`" in " ".join(card.text.split())
    assert "mine" in card.data.tags
    assert card.data.base_model is None  # a folder is no model of the hub
    assert str(tmp_path) not in card.content
    assert tiny_folder() not in card.content
    assert ("LoRA adapter" in card.text) == adapter
    assert "did best" not in card.text
    trainer.args.load_best_model_at_end = True
    trainer.create_model_card()
    assert "the one that did best on held-out pairs" in card_of(tmp_path / "reward").text

    repeated = export(str(tmp_path / "reward"), tmp_path / "stock", "stock").results
    assert repeated == [told[name] for name in ("mix", "response", "longer wins")]

    capsys.readouterr()
    run_code(card, monkeypatch, tmp_path)
    assert len(eval(capsys.readouterr().out)) == 2


@pytest.mark.parametrize("adapter", [False, True])
def test_the_card_of_a_policy(
    tiny_folder, reinforce_config, reward_folder, chat_pairs, tmp_path, monkeypatch, capsys, adapter
):
    from toolkit import RewardFunction

    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear") if adapter else None
    prompts, reward = chat_pairs.select_columns(["prompt"]), RewardFunction(reward_folder())
    trainer = ReinforceTrainer(tiny_folder(), reward, reinforce_config(), train_dataset=prompts, peft_config=lora)
    trainer.save_model()
    assert "Nothing had been logged" in card_of(tmp_path / "policy").text
    trainer.state.log_history = [{"step": step, "reward": step / 8, "kl": 0.5} for step in (1, 2)]
    trainer.create_model_card()
    card = card_of(tmp_path / "policy")
    assert "| reward | 0.125 | 0.250 |" in card.text
    assert f"on {len(prompts)} prompts" in card.text
    assert all(path not in card.content for path in (str(tmp_path), tiny_folder(), reward_folder()))
    capsys.readouterr()
    run_code(card, monkeypatch, tmp_path)
    assert capsys.readouterr().out


def state_of(*rows, **options):
    return TrainerState(log_history=list(rows), **options)


def test_the_accuracy_is_of_the_weights_that_are_there():
    def row(step, accuracy, prefix="eval_"):
        return {"step": step, f"{prefix}accuracy": accuracy, f"{prefix}accuracy_low": 0.0}

    first, last, end, later = row(1, 0.8), row(2, 0.6), {"step": 2, "train_runtime": 1.0}, row(2, 0.9)
    training = {"step": 2, "accuracy": 0.1, "accuracy_low": 0.0}  # of batches that were trained on
    at_two = {"global_step": 2, "best_global_step": 1}
    assert held_out_metrics(state_of(first, training, **at_two), best=False) == {}
    assert held_out_metrics(state_of(first, last, **at_two), best=True) == {"eval_": last}  # a checkpoint's
    assert held_out_metrics(state_of(first, last, end, **at_two), best=False) == {"eval_": last}
    assert held_out_metrics(state_of(first, last, end, **at_two), best=True) == {"eval_": first}
    assert held_out_metrics(state_of(first, last, end, later, **at_two), best=True) == {"eval_": later}
    two = [row(2, 0.5, "eval_a_"), row(2, 0.7, "eval_b_")]
    assert held_out_metrics(state_of(*two, **at_two), best=False) == {"eval_a_": two[0], "eval_b_": two[1]}


def test_paths_are_told_by_their_last_part(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "base").mkdir(parents=True)
    assert source_of("Qwen/Qwen3-0.6B") == ("Qwen/Qwen3-0.6B", True)
    assert source_of("gpt2") == ("gpt2", True)
    assert source_of("runs/base") == source_of(str(tmp_path / "runs" / "base")) == ("base", False)
    assert source_of("") is None
    assert data_source_of("trl-lib/ultrafeedback_binarized") == ("trl-lib/ultrafeedback_binarized", True)
    assert data_source_of("/home/somebody/pairs/*.jsonl") == ("*.jsonl", False)
    assert data_source_of("sandbox") == ("sandbox", False)
    assert data_source_of("json") is None  # what `datasets` calls any file of JSON
