"""What a reward model says of one response."""

from typing import Any, NamedTuple

from torch import Tensor


class ResponseScore(NamedTuple):
    """Score of one response. `R` tokens of the response as the reward model reads it, `S` scales. On the CPU."""

    reward: float
    scale_scores: Tensor  # (S,) float32
    gate: Tensor  # (S,) float32
    prefix_values: Tensor  # (R, S) float32, gate-weighted value of the response up to and including each token; with
    # `same_tokens` at the tokens that were sampled, of which there may be others than in the row
    prompt_value: Tensor  # (S,) float32, gate-weighted value of the empty response
    token_scores: Tensor  # (R,) float32
    segment_scores: Tensor  # (R,) float32, 0 but at segment ends
    segment_ends: Tensor  # (R,) bool, last token of each segment, an open one at the end included
    ends: list[int]  # of each token, where it ends in the text, in characters
    same_tokens: bool = False  # whether `prefix_values` stand at the tokens that the policy sampled
    head_tokens: int = 0  # with `same_tokens`, those before them that the template wrote, such as an empty thought
    cut_tokens: int = 0  # tokens that the prompt lost from its left to fit


def rewards_of(scores: list[ResponseScore | None]) -> list[float | None]:
    """Reward of each score; `None` where there is none."""
    return [None if score is None else score.reward for score in scores]


def response_score(output: Any, k: int, ends: list[int]) -> ResponseScore:
    """Score of the response in row `k` of a model's output, on the CPU; `ends` are those of its row."""
    response, gate = output.response_mask[k], output.gate[k]
    return ResponseScore(
        reward=output.logits[k, 0].item(),
        scale_scores=output.scale_scores[k],
        gate=gate,
        prefix_values=output.prefix_values[k][response] * gate,
        prompt_value=output.prompt_value[k] * gate,
        token_scores=output.token_scores[k][response],
        segment_scores=output.segment_scores[k][response],
        segment_ends=output.segment_ends[k][response],
        ends=ends,
    )
