"""Two policies on the same prompts, before a judge."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.messages import Messages, text_of
from ..policy.sampling import sample_responses
from ..stats.intervals import Interval, PairAccuracy
from ..stats.metrics import mean_interval, pair_accuracy
from .labels import judge_scores


class PolicyComparison(NamedTuple):
    """What a judge says of two policies."""

    before: Interval  # mean score of the first policy's responses
    after: Interval  # of the second's
    gain: Interval  # mean difference, prompt by prompt
    win_rate: PairAccuracy  # share of prompts where the second's response scores higher, ties half
    examples: list[dict[str, Any]]  # `prompt`, `before`, `after`, `score_before`, `score_after`


def compare_policies(
    before: PreTrainedModel,
    after: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Messages],
    judge: Callable[..., Sequence[float]],
    *,
    max_new_tokens: int,
    seed: int,
    examples: int = 4,
) -> PolicyComparison:
    """
    Sample one response of each policy to each prompt and let a judge score them.

    Args:
        before ([`~transformers.PreTrainedModel`]):
            First policy.
        after ([`~transformers.PreTrainedModel`]):
            Second policy.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of both.
        prompts (`list[list[dict[str, str]]]`):
            Prompts as messages.
        judge (`Callable`):
            Scores responses, with the signature of a TRL reward function.
        max_new_tokens (`int`):
            Most tokens of a response.
        seed (`int`):
            Seed of the samples.
        examples (`int`, *optional*, defaults to `4`):
            Number of prompts, the first ones, that are kept with both responses.

    Returns:
        [`PolicyComparison`]
    """
    texts = [
        sample_responses(m, tokenizer, prompts, max_new_tokens=max_new_tokens, seed=seed) for m in (before, after)
    ]
    answers = [[[{"role": "assistant", "content": text}] for text in side] for side in texts]
    first, second = (torch.tensor(judge_scores(judge, prompts, side)) for side in answers)
    rows = [
        {
            "prompt": text_of(prompts[i]),
            "before": texts[0][i],
            "after": texts[1][i],
            "score_before": first[i].item(),
            "score_after": second[i].item(),
        }
        for i in range(min(examples, len(prompts)))
    ]
    gain = mean_interval(second - first)
    return PolicyComparison(mean_interval(first), mean_interval(second), gain, pair_accuracy(second, first), rows)
