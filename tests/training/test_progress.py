"""What a training prints: one line a log, and nothing of it is lost to files and trackers."""

import json
import re
from types import SimpleNamespace

import pytest
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from toolkit import MultiScaleRewardTrainer, ReinforceTrainer
from toolkit.training.progress import LogLines, StepBar


class Kept(TrainerCallback):
    """Stands for a tracker: keeps what it is given."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))


@pytest.fixture
def reward_trainer(reward_config, tiny_folder, tokenizer, chat_pairs):
    def make(**options):
        data = {"train_dataset": chat_pairs, "eval_dataset": chat_pairs.select(range(6))}
        config = reward_config(**options)
        return MultiScaleRewardTrainer(tiny_folder(), config, processing_class=tokenizer, **data)

    return make


def test_reward_training_prints_a_line_a_log(reward_trainer, capsys):
    trainer = reward_trainer(max_steps=2, eval_strategy="steps", eval_steps=2)
    kept = Kept()
    trainer.add_callback(kept)
    trainer.train()
    first, second, evaluation, end = capsys.readouterr().out.splitlines()
    logs = trainer.state.log_history
    figures = rf"loss {logs[0]['loss']:.4f}  accuracy {logs[0]['accuracy']:.1%}"
    assert re.fullmatch(rf"step 1/2  {figures}  [\d,]+ tokens/s  \d\d:\d\d left", first)
    assert second.endswith("  00:00 left")
    figures = rf"loss {logs[2]['eval_loss']:.4f}  accuracy {logs[2]['eval_accuracy']:.1%}"
    assert re.fullmatch(rf"step 2/2  eval  {figures}  in \d\d:\d\d", evaluation)
    assert re.fullmatch(r"2 steps in \d\d:\d\d", end)
    # trackers are given what the run's own history holds, all of it
    assert [log | {"step": entry["step"]} for log, entry in zip(kept.logs, logs, strict=True)] == logs
    assert len(logs[0]) > 20


def test_reinforce_prints_reward_and_divergence(reinforce_config, tiny_folder, tokenizer, chat_pairs, capsys):
    trainer = ReinforceTrainer(
        tiny_folder(),
        lambda completions, **kwargs: [float(len(completion[0]["content"])) for completion in completions],
        reinforce_config(max_steps=1, beta=0.1, prefix_baseline=False, log_completions=True),
        train_dataset=chat_pairs.select_columns("prompt"),
        processing_class=tokenizer,
    )
    trainer.train()
    printed = capsys.readouterr().out
    log = trainer.state.log_history[0]
    figures = rf"loss {log['loss']:.4f}  reward {log['reward']:.3f}  KL {log['kl']:.4f}"
    assert re.search(rf"^step 1/1  {figures}  [\d,]+ tokens/s  00:00 left$", printed, re.MULTILINE)
    assert "Completion" in printed  # TRL's table, which was asked for
    assert "{" not in printed.splitlines()[0]


def test_a_bar_of_steps_where_it_is_not_switched_off(reward_trainer, capsys):
    trainer = reward_trainer(disable_tqdm=False, max_steps=2)
    kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
    assert kinds.count(StepBar) == kinds.count(LogLines) == 1
    assert not {ProgressCallback, PrinterCallback} & set(kinds)
    trainer.train()
    printed = capsys.readouterr()
    assert "2/2" in printed.err
    assert [line.split("  ")[0] for line in printed.out.splitlines()] == ["step 1/2", "step 2/2", "2 steps in 00:00"]


def test_only_the_lines_can_be_removed(reward_trainer, capsys):
    trainer = reward_trainer(max_steps=1)
    trainer.remove_callback(PrinterCallback)  # Transformers' own way
    trainer.train()
    assert capsys.readouterr().out == ""


def test_another_process_prints_nothing(capsys):
    state = SimpleNamespace(is_world_process_zero=False, global_step=1, max_steps=2)
    LogLines().on_log(None, state, None, logs={"loss": 1.0})
    assert capsys.readouterr().out == ""


def test_speed_and_time_left(monkeypatch, capsys):
    lines, clock = LogLines(), iter([100.0, 110.0, 140.0])
    monkeypatch.setattr("toolkit.training.progress.monotonic", lambda: next(clock))
    state = SimpleNamespace(is_world_process_zero=True, global_step=0, max_steps=60)
    lines.on_train_begin(None, state, None)
    state.global_step = 5
    lines.on_log(None, state, None, logs={"loss": 0.5, "num_tokens": 2000.0})
    lines.on_log(None, state, None, logs={"eval_loss": 0.25, "eval_runtime": 20.0})
    state.global_step = 10
    lines.on_log(None, state, None, logs={"loss": 0.5, "num_tokens": 5000.0})
    # 2,000 tokens in 10 s, 55 steps of 2 s left; then 3,000 in 30 s less 20 of evaluation, 50 of 40 s / 10 left
    assert capsys.readouterr().out.splitlines() == [
        "step 5/60  loss 0.5000  200 tokens/s  01:50 left",
        "step 5/60  eval  loss 0.2500  in 00:20",
        "step 10/60  loss 0.5000  300 tokens/s  03:20 left",
    ]


def test_a_resumed_run_has_no_speed_before_its_second_log(monkeypatch, capsys):
    lines, clock = LogLines(), iter([0.0, 10.0, 20.0])
    monkeypatch.setattr("toolkit.training.progress.monotonic", lambda: next(clock))
    state = SimpleNamespace(is_world_process_zero=True, global_step=8, max_steps=10)
    lines.on_train_begin(None, state, None)
    for step, tokens in ((9, 9000.0), (10, 10000.0)):
        state.global_step = step
        lines.on_log(None, state, None, logs={"reward": 1.0, "num_tokens": tokens})
    assert capsys.readouterr().out.splitlines() == [
        "step 9/10  reward 1.000  00:10 left",
        "step 10/10  reward 1.000  100 tokens/s  00:00 left",
    ]


def test_all_of_a_log_is_in_the_run_s_file(reward_trainer, tmp_path):
    trainer = reward_trainer(max_steps=1)
    trainer.train()
    trainer.save_state()
    (file,) = tmp_path.rglob("trainer_state.json")
    assert {"loss", "margin", "grad_norm", "num_tokens"} <= json.loads(file.read_text())["log_history"][0].keys()
