"""What a policy answers to the same few prompts before and after its training."""

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import is_deepspeed_zero3_enabled

from ..training.run_record import BEFORE_AFTER_NAME, as_text, write_json
from .sampling import sample_responses


class BeforeAndAfter(TrainerCallback):
    """
    Samples one answer to each of a few prompts when training begins and when it ends, into `before_after.json`.

    The main process samples from its own weights, so that nothing is left where processes hold pieces of them: under
    ZeRO-3 and FSDP. What is drawn for training stays as it is.

    Args:
        trainer ([`ReinforceTrainer`]):
            The trainer that it is added to.
        prompts (`int`, *optional*, defaults to `16`):
            Prompts, the first different ones of the held-out data, or of the training data where there are none.
    """

    def __init__(self, trainer: Any, prompts: int = 16) -> None:
        self._trainer, self._count = trainer, prompts

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._samples(state) and state.global_step == 0:
            prompts = self._prompts()
            texts = zip(prompts, self._answers(prompts), strict=True)
            cards = [
                {"title": f"Prompt {i}", "prompt": as_text(prompt), "responses": [_response("before", answer)]}
                for i, (prompt, answer) in enumerate(texts, 1)
            ]
            write_json(self._file, cards)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._samples(state) or not self._file.is_file():  # a run that began without this one
            return
        cards, answers = json.loads(self._file.read_text()), self._answers(self._prompts())
        label = f"after {state.global_step:,} steps"
        for card, answer in zip(cards, answers, strict=True):
            card["responses"] = [card["responses"][0], _response(label, answer)]
        write_json(self._file, cards)

    @property
    def _file(self) -> Path:
        return Path(self._trainer.args.output_dir, BEFORE_AFTER_NAME)

    def _samples(self, state: Any) -> bool:
        divided = is_deepspeed_zero3_enabled() or self._trainer.is_fsdp_enabled
        return bool(state.is_world_process_zero and not divided)

    def _prompts(self) -> list[Any]:
        found: dict[str, Any] = {}
        held_out = self._trainer.eval_dataset
        if isinstance(held_out, dict):
            held_out = next(iter(held_out.values()), None)
        for row in held_out or self._trainer.train_dataset:
            if len(found) == self._count:
                break
            found.setdefault(as_text(row["prompt"]), row["prompt"])
        return list(found.values())

    def _answers(self, prompts: list[Any]) -> list[str]:
        args = self._trainer.args
        return sample_responses(
            self._trainer.model,
            self._trainer.processing_class,
            prompts,
            max_new_tokens=args.max_completion_length,
            seed=args.seed,
            temperature=args.temperature,
            batch_size=self._count,
            chat_template_kwargs=args.chat_template_kwargs,
        )


def _response(label: str, text: str) -> dict[str, Any]:
    return {"label": label, "text": text, "numbers": {"words": len(text.split())}}
