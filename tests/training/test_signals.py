"""A signal ends a run after a checkpoint, with the status of the signal, and the rest of the run is what it was."""

import signal

import pytest
from transformers import Trainer, TrainerCallback

from tests.training.test_checkpoints import SAVING, assert_same_end
from toolkit import MultiScaleRewardTrainer
from toolkit.training.manifests import last_complete_checkpoint
from toolkit.training.signals import SaveOnSignal

HANDLERS = (signal.SIGTERM, signal.SIGINT)


@pytest.fixture(autouse=True)
def interrupts():
    """SIGINT as Python has it, which a shell's background process begins with ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def trainer(reward_config, tiny_folder, chat_pairs):
    def make(*numbers, at="on_step_begin", **options):
        """A trainer that is sent signals in its third step."""

        class Send(TrainerCallback):
            def send(self, args, state, control, **kwargs):
                if state.global_step == (2 if at == "on_step_begin" else 3):
                    for number in numbers:
                        signal.raise_signal(number)

        setattr(Send, at, Send.send)
        config = reward_config(**{**SAVING, "max_steps": 5, "save_steps": 10, **options})
        made = MultiScaleRewardTrainer(
            tiny_folder(), config, chat_pairs.select(range(20)), chat_pairs.select(range(4))
        )
        made.add_callback(Send())
        made.add_callback(SaveOnSignal(made))
        return made

    before = [signal.getsignal(number) for number in HANDLERS]
    yield make
    for number, handler in zip(HANDLERS, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"])
def test_a_signal_saves_and_ends_the_run_which_goes_on_bit_by_bit(trainer, number, status):
    whole = trainer(save_strategy="no")
    whole.train()
    stopped = trainer(number)
    with pytest.raises(SystemExit) as end:
        stopped.train()
    assert end.value.code == status
    assert last_complete_checkpoint(stopped.args.output_dir).endswith("checkpoint-3")
    resumed = trainer()
    resumed.train(resume_from_checkpoint=True)
    assert_same_end(whole, resumed)


def test_a_signal_inside_a_save_lets_it_end_and_saves_the_next_step(trainer, monkeypatch):
    stopped = trainer(save_steps=2)
    save = Trainer._save_rng_state

    def save_and_send(self, folder):
        if self.state.global_step == 2:
            signal.raise_signal(signal.SIGTERM)
        save(self, folder)

    monkeypatch.setattr(Trainer, "_save_rng_state", save_and_send)
    with pytest.raises(SystemExit) as end:
        stopped.train()
    assert end.value.code == 143
    assert last_complete_checkpoint(stopped.args.output_dir).endswith("checkpoint-3")


def test_one_during_an_evaluation_ends_after_it(trainer):
    stopped = trainer(signal.SIGTERM, at="on_prediction_step", eval_strategy="steps", eval_steps=3)
    with pytest.raises(SystemExit) as end:
        stopped.train()
    assert end.value.code == 143
    assert stopped.state.global_step == 3
    assert [entry["step"] for entry in stopped.state.log_history if "eval_loss" in entry] == [3]


def test_a_second_interrupt_ends_at_once_and_a_second_termination_does_not(trainer):
    with pytest.raises(KeyboardInterrupt):
        trainer(signal.SIGINT, signal.SIGINT).train()
    with pytest.raises(SystemExit) as end:
        trainer(signal.SIGTERM, signal.SIGTERM).train()
    assert end.value.code == 143


def test_a_run_that_ends_gives_the_signals_back(trainer):
    before = [signal.getsignal(number) for number in HANDLERS]
    trainer().train()
    assert [signal.getsignal(number) for number in HANDLERS] == before


def test_a_signal_in_the_last_save_ends_the_process(trainer, monkeypatch):
    # The last checkpoint is there; what the recipe does afterwards is left, as without a trainer
    stopped = trainer(save_steps=5)
    save = Trainer._save_rng_state
    monkeypatch.setattr(
        Trainer, "_save_rng_state", lambda self, folder: (signal.raise_signal(signal.SIGINT), save(self, folder))
    )
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    assert last_complete_checkpoint(stopped.args.output_dir).endswith("checkpoint-5")
