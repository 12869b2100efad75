"""The prefix baseline: what the reward model's values of the prefixes explain of the return, at every token."""

import re
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor

from ..data.kernels import on_cpu
from ..data.messages import Messages
from ..reward.scorer import RewardFunction
from ..reward.scores import ResponseScore, rewards_of
from .reductions import reduced_sums
from .returns import RidgeStatistics, batch_ridge_statistics, decay_and_add, prefix_features, ridge_coefficients

WINDOW = 16  # tokens that are decoded before a new one, at least


class PrefixBaseline:
    """
    Subtracts from every token's advantage what a ridge fit reads off the reward model's value of the prefix before it.

    It takes the place of its reward function among a trainer's `reward_funcs`. TRL keeps nothing of what a reward
    function knows but one float a response; here the call keeps the scores that the floats are of, for [`subtract`]
    to use up. The fit is of earlier batches, so it does not depend on the tokens whose advantages it changes and the
    expected gradient stays exact.

    Args:
        source ([`RewardFunction`]):
            Reward function whose prefix values are read.
        decode (`Callable`):
            From token ids of the policy to text, with `skip_special_tokens` as in Transformers.
        max_length (`int`):
            Longest response in tokens, which is position 1.
        decay (`float`):
            Weight that a batch keeps in the fit when the next one comes, in [0, 1].
        penalty (`float`):
            Ridge penalty of the fit, relative to each feature's own scale.
    """

    def __init__(
        self, source: RewardFunction, decode: Callable[..., Any], *, max_length: int, decay: float, penalty: float
    ) -> None:
        self.source = source
        self.decode = decode
        self.max_length = max_length
        self.decay = decay
        self.penalty = penalty
        self.fit = RidgeStatistics.empty(2 * (1 + len(source.settings.scales)))
        self._scores: list[ResponseScore | None] = []

    def __call__(
        self,
        prompts: list[str] | list[Messages],
        completions: list[str] | list[Messages],
        completion_ids: list[list[int]] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Rewards of a generation batch, as the reward function itself returns and reports them."""
        self._scores = self.source.score(prompts, completions, completion_ids, **columns)
        if log_metric is not None:
            self.source.report(self._scores, log_metric)
        return rewards_of(self._scores)

    def subtract(self, advantages: Tensor, completion_ids: Tensor, scored: Tensor) -> tuple[Tensor, float]:
        """
        Subtract the fit of earlier batches, then let this batch into the fit.

        Args:
            advantages (`torch.Tensor` of shape `(B, T)`, float):
                Advantages of the responses that were scored last, 0 where `scored` is 0.
            completion_ids (`torch.Tensor` of shape `(B, T)`, int64):
                Token ids of these responses.
            scored (`torch.Tensor` of shape `(B, T)`, bool or integer):
                Tokens up to and including the end of each response that has an advantage.

        Returns:
            `tuple[torch.Tensor, float]`: What remains, of shape `(B, T)`, and the share of the sum of squares that the
            fit took away, over every process; 0 without a token.
        """
        scores, self._scores = self._scores, []
        values, prompt_value = values_at_tokens(
            scores, completion_ids, scored, len(self.source.settings.scales), self.decode
        )
        features = prefix_features(values, prompt_value, scored, self.max_length)
        remaining = advantages - features @ ridge_coefficients(self.fit, self.penalty).to(features)
        # Only what has been subtracted may learn from this batch: a fit that has seen a response's own return would
        # take a part of its signal away.
        kept = scored.nonzero(as_tuple=True)
        batch = batch_ridge_statistics(features[kept], advantages[kept])
        batch = RidgeStatistics(*on_cpu(reduce(part, "sum") for part in batch))
        self.fit = decay_and_add(self.fit, batch, self.decay)
        count, before, after = reduced_sums(scored, advantages**2, remaining**2).tolist()
        return remaining, 1 - after / max(before, 1e-12) if count else 0.0

    def state_dict(self) -> dict[str, tuple[Tensor, ...]]:
        """The fit, alike on every process, under the key `prefix_fit`."""
        return {"prefix_fit": tuple(self.fit)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Go on from a saved fit.

        Args:
            state (`dict`):
                What [`state_dict`] returned; other keys are passed over.

        Raises:
            `ValueError`: If the fit is not of as many features, as with another reward model.
        """
        gram, moment = (part.cpu() for part in state.get("prefix_fit", RidgeStatistics.empty(0)))
        if gram.shape != self.fit.gram.shape:
            raise ValueError(
                f"The checkpoint's prefix fit has {len(moment)} features, this run's {len(self.fit.moment)}. Resume "
                "with the same reward model and `prefix_baseline`."
            )
        self.fit = RidgeStatistics(gram, moment)


def only_source(reward_funcs: list[Any]) -> RewardFunction:
    """
    The one reward function whose prefix values can be read.

    Args:
        reward_funcs (`list`):
            Reward functions of a trainer.

    Returns:
        [`RewardFunction`]

    Raises:
        `ValueError`: If there is none, or more than one.
    """
    sources = [func for func in reward_funcs if isinstance(func, RewardFunction)]
    if len(sources) != 1:
        raise ValueError(
            "`prefix_baseline=True` reads the prefix values of one RewardFunction, but `reward_funcs` has "
            f"{len(sources)}. Wrap a multi-scale reward model in toolkit.RewardFunction, or set it to False."
        )
    return sources[0]


def values_at_tokens(
    scores: list[ResponseScore | None], completion_ids: Tensor, mask: Tensor, scales: int, decode: Callable[..., Any]
) -> tuple[Tensor, Tensor]:
    """
    Prefix values at the tokens of the *policy*, which may cut text otherwise than the reward model.

    Args:
        scores (`list[ResponseScore | None]` of length `B`):
            Score of each response.
        completion_ids (`torch.Tensor` of shape `(B, T)`, int64):
            Token ids of the responses.
        mask (`torch.Tensor` of shape `(B, T)`, bool or integer):
            Tokens up to and including the end of each response; none of a response that is passed over.
        scales (`int`):
            Number of scales, `S`.
        decode (`Callable`):
            From token ids of the policy to text.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Values of shape `(B, T, S)` after each token, and of shape `(B, S)` of the
        empty response; 0 outside the mask.
    """
    values, prompt_value = torch.zeros(*completion_ids.shape, scales), torch.zeros(len(completion_ids), scales)
    lengths = mask.sum(1).tolist()
    for i, (score, length) in enumerate(zip(scores, lengths, strict=True)):
        if score is None or length == 0:
            continue
        prompt_value[i] = score.prompt_value
        if score.same_tokens:
            # Those of the template come before; one short where it writes no end
            known = score.prefix_values[score.head_tokens :][:length]
            values[i, : len(known)] = known
        else:
            ends = settled_lengths(completion_ids[i, :length].tolist(), decode)
            values[i, :length] = align_by_offsets(score, ends)
    return values.to(completion_ids.device), prompt_value.to(completion_ids.device)


def align_by_offsets(score: ResponseScore, ends: list[int]) -> Tensor:
    """
    Prefix values at the policy's tokens, when the reward model cuts the same text into other tokens.

    After a policy token, the value is that of the last reward-model token that ends within the settled length of the
    text so far: what is known of the prefix without looking ahead.

    Args:
        score ([`ResponseScore`]):
            Score of the response, with the character ends of its own tokens.
        ends (`list[int]` of length `T`):
            Settled length of the response text after each policy token, from [`settled_lengths`].

    Returns:
        `torch.Tensor` of shape `(T, S)`.
    """
    known = torch.cat([score.prompt_value[None], score.prefix_values])
    count = torch.searchsorted(torch.tensor(score.ends), torch.tensor(ends), right=True)
    return known[count]


def settled_lengths(ids: list[int], decode: Callable[..., Any]) -> list[int]:
    """
    [`settled_length`] of the text after each token, in time that grows with the number of tokens alone.

    Only a window of the last tokens is decoded. It moves on where what is left out does not change how the rest is
    decoded.

    Args:
        ids (`list[int]` of length `T`):
            Token ids of a response.
        decode (`Callable`):
            From token ids to text.

    Returns:
        `list[int]` of length `T`.
    """
    found, first = [], 0  # the window's first token
    before = settled = 0  # characters before the window, and the settled ones among them
    for t in range(len(ids)):
        text = decode(ids[first : t + 1], skip_special_tokens=True)
        inside = settled_length(text)
        found.append(before + inside if inside else settled)
        if t + 1 - first < 2 * WINDOW:
            continue
        rest = decode(ids[t + 1 - WINDOW : t + 1], skip_special_tokens=True)
        # One that begins within a character, or where none is whole, may turn into another text
        if text.endswith(rest) and rest[:1] not in ("", "\N{REPLACEMENT CHARACTER}"):
            left = len(text) - len(rest)
            # A space at the window's beginning has no word before it there
            settled = before + inside if (inside := settled_length(text[: left + 1])) > 0 else settled
            first, before = t + 1 - WINDOW, before + left
    return found


def settled_length(text: str) -> int:
    """
    Characters at the beginning of a text that any continuation leaves cut into the same tokens.

    The word in progress is not among them: after "numbe" a tokenizer may already know whether "r" or "#" follows, so
    a baseline that read its tokens would depend on the very token whose log-probability it multiplies.

    Args:
        text (`str`):
            Beginning of a response.

    Returns:
        `int`: Where the last space after a word stands; 0 without one.
    """
    return max((space.start() for space in re.finditer(r"(?<=\S) ", text)), default=0)
