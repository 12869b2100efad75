"""Token ids that a policy sampled, as the row on which a reward model was trained."""

import re
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import get_logger

from .messages import Messages
from .templates import render
from .tokens import EncodedResponse, TurnParts, encode_response, encode_text, turn_parts

logger = get_logger(__name__)

# Tokens before a response by which its first ones are decoded: some tokenizers lose a space where a text begins
CONTEXT = 4
CLOSING = r"[<\[◁]/\w+[>\]▷]"  # of a thought: </think>, [/THINK], ◁/think▷


class PromptParts(NamedTuple):
    """What stands around the responses to a prompt."""

    turn: TurnParts | None  # as text, where there is a template
    given: str  # what the policy is given after the prompt's text, such as the opening of a thought
    opened: list[int]  # last ids that the policy is given
    start: list[int]  # ids before the response
    head: list[int]  # ids that the template writes between these and the message, such as an empty thought
    tail: list[int]  # ids after a response that is finished
    options: dict[str, Any]  # further arguments of the template


class SampledResponse(NamedTuple):
    """A response that was sampled."""

    row: EncodedResponse  # as in training
    followed: EncodedResponse | None  # the ids as they were sampled, where the row has others
    head_tokens: int  # those before them that the template writes


def prompt_parts(tokenizer: PreTrainedTokenizerBase, prompt: str | Messages, options: dict[str, Any]) -> PromptParts:
    """
    What stands around the responses to a prompt, as text where a template writes it, and as ids.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the reward model.
        prompt (`str` or `list[dict[str, str]]`):
            Prompt.
        options (`dict[str, Any]`):
            Further arguments of `apply_chat_template`.

    Returns:
        [`PromptParts`]
    """
    if isinstance(prompt, str):
        start = encode_response(tokenizer, prompt, "", finished=False).input_ids
        return PromptParts(None, "", start[-CONTEXT:], start, [], [tokenizer.eos_token_id], options)
    turn = turn_parts(tokenizer, prompt, **options)
    opened = render(tokenizer, prompt, add_generation_prompt=True, **options)
    texts = [opened, turn.prompt, turn.head, turn.tail]
    given, start, head, tail = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
    return PromptParts(turn, opened[len(turn.prompt) :], given[-CONTEXT:], start, head, tail, options)


def encode_sampled(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Messages,
    around: PromptParts,
    completion: str | Messages,
    ids: list[int],
    *,
    finished: bool,
) -> SampledResponse:
    """
    The row of training of a response that was sampled as ids.

    It is the row of what the policy has written, tokenized anew: a policy may cut a text otherwise than a tokenizer
    does, and a reward model has never seen that. A baseline needs the values after each sampled token, so that where
    the two differ the ids as they are come beside it.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the reward model and of the policy.
        prompt (`str` or `list[dict[str, str]]`):
            Prompt.
        around ([`PromptParts`]):
            What stands around the response.
        completion (`str` or `list[dict[str, str]]`):
            The response as TRL decodes it, without special tokens.
        ids (`list[int]`):
            Sampled ids, up to and including the one that ended the response.
        finished (`bool`):
            Whether the last id ended it.

    Returns:
        [`SampledResponse`]
    """
    body = ids[:-1] if finished else list(ids)
    written = _decode_after(tokenizer, around.opened, body)
    row = _row_of(tokenizer, prompt, around, completion, written, finished)
    start, tail = around.start, around.tail if finished else []
    heads = [around.head, tokenizer(around.given, add_special_tokens=False)["input_ids"] if around.given else []]
    for head in heads:
        before = [*start, *head, *body]
        if row.response_start == len(start) and row.input_ids[: len(before)] == before:
            return SampledResponse(row, None, len(head))
    by_template = row.input_ids[len(start) : len(start) + len(around.head)] == around.head
    head = heads[0] if by_template and not _begins_with_head(around, written) else heads[1]
    return SampledResponse(row, EncodedResponse([*start, *head, *body, *tail], len(start), []), len(head))


def _row_of(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Messages,
    around: PromptParts,
    completion: str | Messages,
    written: str,
    finished: bool,
) -> EncodedResponse:
    """The row of training of what the policy has written."""
    turn = around.turn
    if turn is None or isinstance(completion, str):
        return encode_response(tokenizer, prompt, written, finished=finished)
    options: dict[str, Any] = {"finished": finished, "turn": turn, **around.options}
    *turns, last = completion
    if turns or len(last) > 2:  # parsed into more than role and content, which the template puts together again
        return encode_response(tokenizer, prompt, completion, **options)
    whole = around.given + written
    # A thought that the prompt has opened, or by the tags of the empty one that the template writes
    opening = re.search(r"([<\[◁])(\w+)([>\]▷])\s*$", turn.prompt + around.given)
    closing = "{}/{}{}".format(*opening.groups()) if opening else next(iter(re.findall(CLOSING, turn.head)), "")
    begun = opening is not None or closing.replace("/", "", 1) in written
    if not finished and closing and begun and closing not in written:
        # Cut off in its thought, which a template would take for the answer
        text, start = turn.prompt + whole, len(turn.prompt)
        return encode_text(tokenizer, text, start, start + len(around.given), plain=False, finished=False)
    if _begins_with_head(around, written):
        written = whole.removeprefix(turn.head)
    elif opening and closing in written:
        thought, _, answer = written.partition(closing)
        written = opening[0] + written if thought.strip() else answer.lstrip("\n")
    elif around.head and around.head[0] in tokenizer.all_special_ids and turn.head in whole:
        written = whole.rpartition(turn.head)[2]  # after other channels
    try:
        return encode_response(tokenizer, prompt, [{**last, "content": written}], **options)
    except ValueError as error:
        logger.warning_once(f"A sampled response is scored by its text without special tokens: {error}")
        return encode_response(tokenizer, prompt, completion, **options)


def _begins_with_head(around: PromptParts, written: str) -> bool:
    """Whether the policy has itself written what the template writes before a message."""
    head = around.turn.head if around.turn else ""
    return head != "" and (around.given + written).startswith(head)


def _decode_after(tokenizer: PreTrainedTokenizerBase, before: list[int], ids: list[int]) -> str:
    """Text of ids after others, with its special tokens, and with the space that a text's first word may lose."""
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    text, whole = (str(tokenizer.decode(each, **options)) for each in (before, [*before, *ids]))
    return whole[len(text) :] if whole.startswith(text) else str(tokenizer.decode(ids, **options))
