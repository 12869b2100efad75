"""By which token ids a stock pipeline, which passes nothing beside, finds where the response starts."""

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import get_logger

from .messages import Messages
from .packing import shared_prefix_length
from .positions import find_response_start
from .templates import render
from .tokens import encode_response

logger = get_logger(__name__)

_QUESTIONS: list[Messages] = [
    [{"role": "user", "content": "Why?"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c d."}],
]
_ANSWERS = ("Yes.", "a", "3", "<think>\nWell.\n</think>\n\nYes.")


def response_marker_ids(tokenizer: PreTrainedTokenizerBase, **template_kwargs: Any) -> list[int]:
    """
    Ids that stand before every assistant's turn, by which a stock pipeline finds the response.

    They are what a row of training has between the user's message and the response: what the template writes there to
    open the assistant's turn or, where it writes nothing (Mistral's and Llama 2's), the end of the user's. They are
    tried on several conversations.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the reward model.
        template_kwargs:
            Further arguments of `apply_chat_template`.

    Returns:
        `list[int]`: Empty without a chat template, or where no ids mark the response in all of these conversations,
        which a warning says.
    """
    if tokenizer.chat_template is None:
        return []
    question = _QUESTIONS[0]
    row = encode_response(tokenizer, question, _answer("Yes."), **template_kwargs)
    before = row.input_ids[: row.response_start]
    closed = render(tokenizer, question, **template_kwargs)
    opens = shared_prefix_length([before, tokenizer(closed, add_special_tokens=False)["input_ids"]])
    other = encode_response(tokenizer, [{"role": "user", "content": "So be it!"}], _answer("Yes."), **template_kwargs)
    common = shared_prefix_length([before[::-1], other.input_ids[: other.response_start][::-1]])
    # Where nothing opens the assistant's turn, what closes the user's
    marker = before[opens:] or before[len(before) - common :]
    if marker and all(_marks(tokenizer, marker, q, a, template_kwargs) for q in _QUESTIONS for a in _ANSWERS):
        return marker
    logger.warning(
        "The chat template writes nothing by which the response can be told from the prompt in token ids. "
        "`RewardFunction` and the trainers know where it starts; who calls the model itself has to pass "
        "`response_start`."
    )
    return []


def _answer(text: str) -> Messages:
    return [{"role": "assistant", "content": text}]


def _marks(
    tokenizer: PreTrainedTokenizerBase, marker: list[int], question: Messages, answer: str, options: dict[str, Any]
) -> bool:
    row = encode_response(tokenizer, question, _answer(answer), **options)
    ids = torch.tensor([row.input_ids])
    try:
        return find_response_start(ids, torch.ones_like(ids), marker).tolist() == [row.response_start]
    except ValueError:
        return False
