"""A trained judge at work: as a reward function, and as a judge of single responses or of pairs."""

import math
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled

from ..data.messages import Messages
from ..data.positions import positions_from
from ..judges.labels import Verdict
from ..policy.sampling import sample_token_ids
from ..training.command_line import check_path
from .turns import JudgeSettings, JudgeTurns
from .weights import utilities

Texts = Sequence[str | Messages]


class Judgement(NamedTuple):
    """What a judge thought and said, of one response or of a pair in one order."""

    utility: float  # in nats: the logarithm of the mean answer
    thoughts: list[str]
    answers: list[float]  # probability of the good answer after each thought, or of the first response's


class _ThinkingJudge:
    protocol: str

    def __init__(
        self,
        model: str | PreTrainedModel,
        processing_class: PreTrainedTokenizerBase | None = None,
        settings: JudgeSettings | None = None,
        *,
        num_thoughts: int | None = None,
        batch_size: int = 64,
        seed: int = 0,
        **chat_template_kwargs: Any,
    ) -> None:
        if isinstance(model, str):
            if is_deepspeed_zero3_enabled():
                raise ValueError(
                    "A judge given by name would be in pieces under ZeRO-3. Use stage 2, or give a model."
                )
            check_path(model, "judge")
            settings = settings or JudgeSettings.load(model)
            processing_class = processing_class or AutoTokenizer.from_pretrained(model)
            model = AutoModelForCausalLM.from_pretrained(model).to(PartialState().device)
        if settings is None or processing_class is None:
            raise ValueError("A judge that is loaded needs its `processing_class` and its `settings`. Give both.")
        if settings.protocol != self.protocol:
            raise ValueError(
                f"{type(self).__name__} needs a judge of protocol '{self.protocol}', not '{settings.protocol}'."
            )
        self.__name__ = type(self).__name__
        self.model, self.processing_class, self.settings = model, processing_class, settings
        self.num_thoughts, self.batch_size, self.seed = num_thoughts or settings.num_thoughts, batch_size, seed
        ends = model.generation_config.eos_token_id or processing_class.eos_token_id
        self._template_kwargs = chat_template_kwargs
        self._turns = JudgeTurns(
            settings, processing_class, [ends] if isinstance(ends, int) else ends, **chat_template_kwargs
        )

    def judge(self, prompts: Texts, *responses: Texts) -> list[Judgement]:
        """
        Think about responses, or about the pairs of two lists of them, and answer.

        Args:
            prompts (list of `str` or of lists of messages):
                Prompts.
            responses (lists of the same form):
                A response to each prompt, or the first of a pair, and then the second.

        Returns:
            `list[Judgement]`: The same for the same texts in the same call, whatever was judged before.
        """
        asked = [self._turns.first_turn(*row) for row in zip(prompts, *responses, strict=True)]
        ids = self.processing_class.apply_chat_template(asked, add_generation_prompt=True, **self._template_kwargs)
        prompt_ids = [row for row in ids["input_ids"] for _ in range(self.num_thoughts)]
        thoughts = sample_token_ids(
            self.model, self.processing_class, prompt_ids, max_new_tokens=self.settings.max_completion_length,
            seed=zlib.crc32(repr((self.seed, asked)).encode()), batch_size=self.batch_size,
        )  # fmt: skip
        endings = [self._turns.ending(0, i % self.num_thoughts) for i in range(len(thoughts))]
        rows = [
            [*prompt, *self._turns.complete(thought, ending)[:-1]]
            for prompt, thought, ending in zip(prompt_ids, thoughts, endings, strict=True)
        ]
        answers = torch.tensor([[ending.answer, ending.other] for ending in endings])
        said = self._log_answers(rows, answers).view(-1, self.num_thoughts)
        texts = self.processing_class.batch_decode(thoughts, skip_special_tokens=True)
        parts = [texts[i : i + self.num_thoughts] for i in range(0, len(texts), self.num_thoughts)]
        return list(map(Judgement, utilities(said).tolist(), parts, said.exp().tolist()))

    @torch.no_grad()
    def _log_answers(self, rows: list[list[int]], answers: Tensor) -> Tensor:
        found = []
        for first in range(0, len(rows), self.batch_size):
            some = {"input_ids": rows[first : first + self.batch_size]}
            batch = self.processing_class.pad(some, padding_side="left", return_tensors="pt").to(self.model.device)
            positions = positions_from(batch["attention_mask"])
            logits = self.model(**batch, position_ids=positions, logits_to_keep=1).logits[:, -1].float().cpu()
            ids = answers[first : first + self.batch_size]
            logits = logits.gather(1, ids) if self.settings.two_answers else logits.log_softmax(1).gather(1, ids)
            found.append((logits.log_softmax(1) if self.settings.two_answers else logits)[:, 0])
        return torch.cat(found)


class ThoughtReward(_ThinkingJudge):
    """
    A judge of single responses that thinks, for `reward_funcs` of any of TRL's trainers, `label_pairs` and the like.

    What it returns is Bradley-Terry's utility in nats, the logarithm of the mean probability of the good answer.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]):
            Folder of a judge or adapter that [`ThoughtTrainer`] has saved, or a loaded model.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Its tokenizer; of a folder, the one in it.
        settings ([`JudgeSettings`], *optional*):
            How it is asked; of a folder, those in it.
        num_thoughts (`int`, *optional*):
            Thoughts about a response; as many as in its training where it is not given.
        batch_size (`int`, *optional*, defaults to `64`):
            Thoughts that are written together.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the thoughts. They follow from it and from the texts of a call.
        chat_template_kwargs:
            Further arguments of `apply_chat_template`.

    Raises:
        `ValueError`: If the folder holds no judge, or one of another protocol.
    """

    protocol = "point"

    def __call__(self, prompts: Texts, completions: Texts, log_extra: Any = None, **columns: Any) -> list[float]:
        """Utilities in nats. TRL's table of completions gets a thought about each."""
        found = self.judge(prompts, completions)
        if log_extra is not None:
            log_extra("thought", [judgement.thoughts[0] for judgement in found])
        return [judgement.utility for judgement in found]


class ThoughtPairJudge(_ThinkingJudge):
    """A judge of pairs that thinks, for `label_pairs`. Arguments and errors as of [`ThoughtReward`]."""

    protocol = "pair"

    def compare(self, prompts: Texts, first: Texts, second: Texts, **columns: Any) -> list[Verdict]:
        """Probability that the first response of each pair is better, in this one order, with a thought."""
        found = self.judge(prompts, first, second)
        return [Verdict(math.exp(judgement.utility), judgement.thoughts[0]) for judgement in found]
