"""A trained judge at work: as a reward function, and as a judge of single responses or of pairs."""

import math
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from accelerate import PartialState
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.integrations import is_deepspeed_zero3_enabled

from ..data.messages import Messages
from ..data.positions import positions_from
from ..judges.labels import Verdict
from ..training.command_line import check_path
from .turns import Ending, JudgeSettings, JudgeTurns
from .weights import utilities

Texts = Sequence[str | Messages]


class Judgement(NamedTuple):
    """What a judge thought and said, of one response or of a pair in one order."""

    utility: float  # in nats: the logarithm of the mean answer
    thoughts: list[str]
    answers: list[float]  # probability of the good answer after each thought, or that the first response is better


class ThinkingJudge:
    """
    A judge that [`ThoughtTrainer`] has trained; [`ThoughtReward`] and [`ThoughtPairJudge`] are its two protocols.

    Args:
        folder (`str`):
            Folder of the judge or of its adapter.
        num_thoughts (`int`, *optional*):
            Thoughts about a response; as many as in its training where it is not given.
        batch_size (`int`, *optional*, defaults to `64`):
            Thoughts that are written together.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the thoughts. They follow from it and from the texts of a call.

    Raises:
        `ValueError`: If the folder holds no judge or one of the other protocol, or ZeRO-3 would cut it into pieces.
    """

    protocol: str

    def __init__(self, folder: str, *, num_thoughts: int | None = None, batch_size: int = 64, seed: int = 0) -> None:
        self.__name__ = type(self).__name__
        if is_deepspeed_zero3_enabled():
            raise ValueError(f"ZeRO-3 would cut the judge '{folder}' into pieces. Use stage 2.")
        check_path(folder, "judge")
        self.settings = JudgeSettings.load(folder)
        if self.settings.protocol != self.protocol:
            raise ValueError(f"{self.__name__} is for `protocol='{self.protocol}'`, not '{self.settings.protocol}'.")
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder).to(PartialState().device).eval()
        self.processing_class: Any = AutoTokenizer.from_pretrained(folder)
        self.num_thoughts, self.batch_size, self.seed = num_thoughts or self.settings.num_thoughts, batch_size, seed
        ends = self.model.generation_config.eos_token_id or self.processing_class.eos_token_id
        self._turns = JudgeTurns(self.settings, self.processing_class, [ends] if isinstance(ends, int) else ends)
        self._config = GenerationConfig(
            do_sample=True, top_k=0, max_new_tokens=self.settings.max_completion_length, eos_token_id=ends,
            pad_token_id=self.processing_class.pad_token_id, disable_compile=True,
        )  # fmt: skip

    def judge(self, prompts: Texts, *responses: Texts, thoughts: Sequence[str] | None = None) -> list[Judgement]:
        """
        Think about a response to each prompt, or about the pairs of two lists of them, and answer. With `thoughts`,
        one about each, answer after those.
        """
        asked = [self._turns.first_turn(*row) for row in zip(prompts, *responses, strict=True)]
        each = self.num_thoughts if thoughts is None else 1
        options = cast(dict[str, Any], self.settings.chat_template_kwargs or {})
        ids = self.processing_class.apply_chat_template(asked, add_generation_prompt=True, **options)
        rows = [(row, self._turns.ending(0, i)) for row in ids["input_ids"] for i in range(each)]
        device, found = self.model.device, list[tuple[str, float]]()
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(zlib.crc32(repr((self.seed, asked)).encode()))
            for first in range(0, len(rows), self.batch_size):
                some = slice(first, first + self.batch_size)
                batch, endings = zip(*rows[some], strict=True)
                given = None if thoughts is None else self._tokens(thoughts[some])
                found += self._answer(batch, given or self._think(batch), endings)
        groups = [found[i : i + each] for i in range(0, len(found), each)]
        said = torch.tensor([[log_answer for _, log_answer in group] for group in groups])
        texts = ([thought for thought, _ in group] for group in groups)
        return list(map(Judgement, utilities(said).tolist(), texts, said.exp().tolist()))

    @torch.no_grad()
    def _think(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        """A thought after each prompt."""
        batch = self._padded(prompts)
        sampled = self.model.generate(**batch, generation_config=self._config)[:, batch["input_ids"].size(1) :]
        return list(map(self._turns.up_to_end, sampled.tolist()))

    @torch.no_grad()
    def _answer(
        self, prompts: Sequence[list[int]], thoughts: list[list[int]], endings: Sequence[Ending]
    ) -> list[tuple[str, float]]:
        """Each thought, and the log-probability of the good answer after it."""
        completed = map(self._turns.complete, thoughts, endings)
        batch = self._padded([prompt + row[:-1] for prompt, row in zip(prompts, completed, strict=True)])
        positions = positions_from(batch["attention_mask"])
        logits = self.model(**batch, position_ids=positions, logits_to_keep=1).logits[:, -1].float().cpu()
        two = logits.gather(1, torch.tensor([[ending.answer, ending.other] for ending in endings]))
        log_answers = two[:, 0] - (two if self.settings.two_answers else logits).logsumexp(1)
        texts = self.processing_class.batch_decode(thoughts, skip_special_tokens=True)
        return list(zip(texts, log_answers.tolist(), strict=True))

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        return list(self.processing_class(list(texts), add_special_tokens=False)["input_ids"])

    def _padded(self, rows: Sequence[list[int]]) -> dict[str, Tensor]:
        padded = self.processing_class.pad({"input_ids": list(rows)}, padding_side="left", return_tensors="pt")
        return {name: padded[name].to(self.model.device) for name in ("input_ids", "attention_mask")}


class ThoughtReward(ThinkingJudge):
    """[`ThinkingJudge`] of single responses, for `reward_funcs` of any of TRL's trainers, and for `label_pairs`."""

    protocol = "point"

    def __call__(self, prompts: Texts, completions: Texts, log_extra: Any = None, **columns: Any) -> list[float]:
        """Bradley-Terry's utilities in nats. TRL's table of completions gets a thought about each response."""
        found = self.judge(prompts, completions)
        if log_extra is not None:
            log_extra("thought", [judgement.thoughts[0] for judgement in found])
        return [judgement.utility for judgement in found]


class ThoughtPairJudge(ThinkingJudge):
    """[`ThinkingJudge`] that sees both responses of a pair, for `label_pairs`."""

    protocol = "pair"

    def compare(self, prompts: Texts, first: Texts, second: Texts) -> list[Verdict]:
        """Probability that the first response of each pair is better, in this one order, with a thought."""
        return [Verdict(math.exp(one.utility), one.thoughts[0]) for one in self.judge(prompts, first, second)]
