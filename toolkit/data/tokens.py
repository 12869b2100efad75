"""From text to token ids: the same ids as TRL's trainers, and where the response starts in them."""

import re
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from .messages import Messages, text_of
from .packing import shared_prefix_length
from .prompts import REJECTED_PROMPT
from .templates import render, row_template_kwargs

# A sentence ends in a full stop or its kin, with the quotes and brackets that may close after it; a line ends in a
# newline. What a single token cannot show (an abbreviation, a decimal point) is taken for an end.
_BOUNDARY = re.compile(r"\n|[.!?。！？…][\"'”’»)\]]*\s*$")

# A message that no template writes by itself
_PROBE = "\N{SNOWMAN}"
_BLANK = (" ", "\t", "\n")


class EncodedResponse(NamedTuple):
    """Token ids of a prompt with its response."""

    input_ids: list[int]
    response_start: int  # index of the response's first token
    ends: list[int]  # of each response token, where it ends in the response text, in characters


class TurnParts(NamedTuple):
    """What the chat template writes around an assistant's last message."""

    prompt: str  # the conversation so far, with the marker that opens the assistant's turn
    head: str  # between the marker and the message, such as an empty thought
    tail: str  # after the message, such as the end-of-turn token


def segment_boundary_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """
    Ids of the tokens that end a sentence, a line or a turn.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the reward model.

    Returns:
        `list[int]`: Sorted ids, special tokens included.
    """
    ids = range(len(tokenizer))
    texts = tokenizer.batch_decode([[i] for i in ids], clean_up_tokenization_spaces=False)
    special = set(tokenizer.all_special_ids)
    return [i for i, text in zip(ids, texts, strict=True) if i in special or _BOUNDARY.search(text)]


def turn_parts(tokenizer: PreTrainedTokenizerBase, prompt: Messages, **template_kwargs: Any) -> TurnParts:
    """
    Split the template's rendering of a conversation around the assistant's last message.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer with a chat template.
        prompt (`list[dict[str, str]]`):
            Messages before the assistant's.
        template_kwargs:
            Further arguments of `apply_chat_template`.

    Returns:
        [`TurnParts`]

    Raises:
        `ValueError`: If the template refuses the conversation, or leaves the assistant's message out.
    """
    whole = render(tokenizer, [*prompt, {"role": "assistant", "content": _PROBE}], **template_kwargs)
    opened = render(tokenizer, prompt, add_generation_prompt=True, **template_kwargs)
    if _PROBE not in whole:
        roles = [message["role"] for message in prompt]
        raise ValueError(
            f"The chat template leaves out what the assistant says after {roles}: there would be nothing to score. "
            "Use another template."
        )
    before, _, tail = whole.rpartition(_PROBE)
    start = _common_prefix(before, opened)
    if before[start:].startswith(_BLANK):
        # Where the template goes on with white space after an opened thought, the two may be one token, or not, as a
        # thought is there or not. The response begins before both.
        start = len(before[:start].rstrip())
    return TurnParts(before[:start], before[start:], tail)


def next_turn(tokenizer: PreTrainedTokenizerBase, question: str, **template_kwargs: Any) -> str:
    """What the template writes from the end of an assistant's message to the next one, after the user's question."""
    turns = zip(("user", "assistant", "user"), ("a", _PROBE, question), strict=True)
    messages = [{"role": role, "content": content} for role, content in turns]
    _, found, after = render(tokenizer, messages, add_generation_prompt=True, **template_kwargs).partition(_PROBE)
    if not found:
        raise ValueError("The chat template leaves out an assistant's message that is followed by another turn.")
    return after.lstrip()  # a generated message ends without the space that some write before its end


def end_ids(tokenizer: PreTrainedTokenizerBase, **template_kwargs: Any) -> set[int]:
    """
    Ids with which a response comes to its own end: EOS, padding (EOS of some base models), the template's end of turn.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the policy.
        template_kwargs:
            Further arguments of `apply_chat_template`.

    Returns:
        `set[int]`
    """
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id} - {None}
    if tokenizer.chat_template is not None:
        tail = turn_parts(tokenizer, [{"role": "user", "content": "a"}], **template_kwargs).tail
        first = tokenizer(tail, add_special_tokens=False)["input_ids"][:1]
        ends |= set(first) & set(tokenizer.all_special_ids)
    return ends


def encode_response(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Messages,
    response: str | Messages,
    *,
    finished: bool = True,
    turn: TurnParts | None = None,
    **template_kwargs: Any,
) -> EncodedResponse:
    """
    Tokenize a prompt with its response as TRL's `RewardTrainer` does, and find where the response starts.

    Every row of a reward model is made here, in training and in scoring. Plain text is joined, ends in EOS, and is
    tokenized as one; a token that spans the border belongs to the response. A conversation is rendered with the chat
    template, whose own end of turn stands for EOS.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the reward model; a fast one, for its character offsets.
        prompt (`str` or `list[dict[str, str]]`):
            Prompt.
        response (`str` or `list[dict[str, str]]`):
            Response; in a conversation a list with the assistant's message, or several turns that end with it.
        finished (`bool`, *optional*, defaults to `True`):
            Whether the response came to its end. One that was cut off gets no EOS and no end of turn, so that the two
            do not look the same to the reward model.
        turn ([`TurnParts`], *optional*):
            What [`turn_parts`] says of the prompt, where it is known.
        template_kwargs:
            Further arguments of `apply_chat_template`.

    Returns:
        [`EncodedResponse`]

    Raises:
        `ValueError`: If the tokenizer has no character offsets or no EOS, a conversation has no chat template or one
            that refuses it, or the end of a response that was cut off cannot be taken off.
    """
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} gives no character offsets. Load the tokenizer's fast version.")
    if isinstance(prompt, str):
        text, start = prompt + str(response), len(prompt)
        message = start
        if tokenizer.eos_token is None:
            raise ValueError("The tokenizer has no EOS token, which ends a response in plain text. Set `eos_token`.")
        if finished and not text.endswith(tokenizer.eos_token):
            text += tokenizer.eos_token
    else:
        turn = turn or turn_parts(tokenizer, prompt, **template_kwargs)
        text = render(tokenizer, [*prompt, *response], **template_kwargs)
        start = _common_prefix(turn.prompt, text)
        if not finished:
            if not text.endswith(turn.tail):
                raise ValueError(
                    f"The chat template ends this response with {text[-20:]!r} where it ends others with "
                    f"{turn.tail!r}, so what was cut off cannot be told from what is whole. Use another template."
                )
            text = text.removesuffix(turn.tail)
        message = start + _message_start(text[start:], turn.head, text_of(response))
    return encode_text(tokenizer, text, start, message, plain=isinstance(prompt, str), finished=finished)


def encode_text(
    tokenizer: PreTrainedTokenizerBase, text: str, start: int, message: int, *, plain: bool, finished: bool
) -> EncodedResponse:
    """
    Tokenize the text of a whole row.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the reward model.
        text (`str`):
            Prompt and response as they are written.
        start (`int`):
            Character at which the response starts.
        message (`int`):
            Character at which what the assistant says starts, from which the ends of tokens count.
        plain (`bool`):
            Whether the tokenizer adds its own special tokens, which a chat template writes itself.
        finished (`bool`):
            Whether the response came to its end; else what the tokenizer adds at the end is taken off.

    Returns:
        [`EncodedResponse`]
    """
    encoding = tokenizer(text, add_special_tokens=plain, return_offsets_mapping=True, return_special_tokens_mask=True)
    ids, offsets = list(encoding["input_ids"]), list(encoding["offset_mapping"])
    added = _added_at_the_end(encoding["special_tokens_mask"], offsets)
    if added and not finished:
        ids, offsets = ids[:-added], offsets[:-added]
    elif added:
        offsets[-added:] = [(len(text), len(text))] * added
    first = next((i for i, (_, end) in enumerate(offsets) if end > start), len(offsets))
    return EncodedResponse(ids, first, [end - message for _, end in offsets[first:]])


def _message_start(region: str, head: str, said: str) -> int:
    """
    Where in the text of a response its message starts, beyond the end of all where the template does not write it as
    it is, but for what is blank at its ends: no place there is one in the message.
    """
    for before in (head, ""):  # none, too: a message may bring a thought of its own
        if region.startswith(before + said.rstrip()):
            return len(before)
    return -1 - len(said)


def _added_at_the_end(special: list[int], offsets: list[tuple[int, int]]) -> int:
    """How many tokens a tokenizer has added at the end by itself, as some add EOS: they stand for no text."""
    added = 0
    while added < len(special) and special[-1 - added] and offsets[-1 - added][0] == offsets[-1 - added][1]:
        added += 1
    return added if added < len(special) else 0


def cut_prompt(
    tokenizer: PreTrainedTokenizerBase, sides: list[EncodedResponse], max_length: int | None
) -> tuple[list[EncodedResponse], int]:
    """
    Shorten a shared prompt from its left until every response fits. BOS stays, and so does the prompt's last token.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer that encoded them.
        sides (`list[EncodedResponse]`):
            Responses to one prompt; all lose the same tokens, so that none is judged on a context of its own.
        max_length (`int` or `None`):
            Most tokens that a row may have.

    Returns:
        `tuple[list[EncodedResponse], int]`: The shortened rows, and how many tokens each lost.

    Raises:
        `ValueError`: If a response does not fit beside one prompt token.
    """
    over = 0 if max_length is None else max(len(side.input_ids) for side in sides) - max_length
    if over <= 0:
        return sides, 0
    keep = int(sides[0].input_ids[0] == tokenizer.bos_token_id)
    if over > min(side.response_start for side in sides) - keep - 1:
        longest = max(len(side.input_ids) - side.response_start for side in sides)
        raise ValueError(
            f"a response of {longest} tokens does not fit into `max_length={max_length}` beside its prompt's last "
            "token. Raise `max_length`, or leave the row out."
        )
    return [
        side._replace(
            input_ids=side.input_ids[:keep] + side.input_ids[keep + over :], response_start=side.response_start - over
        )
        for side in sides
    ], over


# What [`tokenize_pair`] adds to a row, beside the column for its length, and what [`tokenize_list`] does
PAIR_COLUMNS = ("chosen_ids", "rejected_ids", "chosen_start", "rejected_start", "cut_tokens", "shared_tokens")
LIST_COLUMNS = ("response_ids", "response_starts", "response_ranks", "cut_tokens", "shared_tokens")


def tokenize_pair(
    row: dict[str, Any],
    index: int,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    dataset_name: str,
    needs_prompt: bool,
    length_column_name: str,
) -> dict[str, Any]:
    """
    Token ids of both sides of a pair, where their responses start, what they share, and how much was cut off.

    Args:
        row (`dict[str, Any]`):
            A normalised pair.
        index (`int`):
            Its index, for the error message.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the reward model.
        max_length (`int` or `None`):
            Most tokens that a row may have.
        dataset_name (`str`):
            Name of the data set, for the error message.
        needs_prompt (`bool`):
            Whether the score reads the prompt's last token.
        length_column_name (`str`):
            Column for the number of distinct tokens, which decides on the batch that the pair shares.

    Returns:
        `dict[str, Any]`: `chosen_ids`, `rejected_ids`, `chosen_start`, `rejected_start`, `cut_tokens`,
        `shared_tokens`, the number of tokens with which both sides begin, `length_column_name`, and `error`: what is
        wrong where a response is too long alone, so that all such rows can be counted.

    Raises:
        `ValueError`: If a response has no token, or the prompt is empty where it is needed.
    """
    responses = {side: row[side] for side in ("chosen", "rejected")}
    where = f"Data set '{dataset_name}', row {index + 1}"
    sides, others = _tokenize_sides(row, responses, where, tokenizer, max_length, needs_prompt, length_column_name)
    return {
        "chosen_ids": sides[0].input_ids,
        "rejected_ids": sides[1].input_ids,
        "chosen_start": sides[0].response_start,
        "rejected_start": sides[1].response_start,
        **others,
    }


def tokenize_list(row: dict[str, Any], index: int, dataset_name: str, **options: Any) -> dict[str, Any]:
    """
    Token ids of all responses of a ranked list, the best first, and what [`tokenize_pair`] tells of a pair.

    Arguments and errors are those of [`tokenize_pair`].

    Returns:
        `dict[str, Any]`: `response_ids`, `response_starts` and `response_ranks`, lists with an entry for each
        response, `cut_tokens`, `shared_tokens`, the column for the length, and `error`.
    """
    order = sorted(range(len(row["ranks"])), key=row["ranks"].__getitem__)
    responses = {f"responses[{place + 1}]": row["responses"][place] for place in order}
    sides, others = _tokenize_sides(row, responses, f"Data set '{dataset_name}', row {index + 1}", **options)
    return {
        "response_ids": [side.input_ids for side in sides],
        "response_starts": [side.response_start for side in sides],
        "response_ranks": [row["ranks"][place] for place in order],
        **others,
    }


def _tokenize_sides(
    row: dict[str, Any],
    responses: dict[str, str | Messages],
    where: str,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    needs_prompt: bool,
    length_column_name: str,
) -> tuple[list[EncodedResponse], dict[str, Any]]:
    """The responses as rows, and the columns that do not tell them apart."""
    prompt, other = row["prompt"], row.get(REJECTED_PROMPT, row["prompt"])
    parts = {"prompt": (prompt, responses)}
    if other != prompt:
        first, second = ({side: response} for side, response in responses.items())
        parts = {"prompt": (prompt, first), REJECTED_PROMPT: (other, second)}
    sides, cut, reason = list[EncodedResponse](), 0, ""  # text, or `datasets` would settle on a column of nothing
    for column, (asked, answers) in parts.items():
        own = _encode_all(row, asked, answers, where, tokenizer)
        if needs_prompt and any(side.response_start == 0 for side in own):
            found = f"{where}, column '{column}': the prompt is empty, but `context` or `centre_by_prompt` reads it."
            raise ValueError(f"{found} Add a prompt, or leave that option out.")
        try:
            own, lost = cut_prompt(tokenizer, own, max_length)
            cut = max(cut, lost)
        except ValueError as error:
            side, _ = max(zip(answers, own, strict=True), key=lambda each: len(each[1].input_ids))
            reason = reason or f"{where}, column '{side}': {error}"
        sides += own
    shared = shared_prefix_length([side.input_ids for side in sides])
    length = shared + sum(len(side.input_ids) - shared for side in sides)
    return sides, {"cut_tokens": cut, "error": reason, "shared_tokens": shared, length_column_name: length}


def _encode_all(
    row: dict[str, Any], prompt: Any, responses: dict[str, Any], where: str, tokenizer: PreTrainedTokenizerBase
) -> list[EncodedResponse]:
    """The responses to one prompt as rows; each has a token."""
    try:
        kwargs = row_template_kwargs(row)
        turn = None if isinstance(prompt, str) else turn_parts(tokenizer, prompt, **kwargs)
        sides = [encode_response(tokenizer, prompt, each, turn=turn, **kwargs) for each in responses.values()]
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    for column, side in zip(responses, sides, strict=True):
        if side.response_start == len(side.input_ids):
            raise ValueError(f"{where}, column '{column}': the response has no token after the prompt to score.")
    return sides


def _common_prefix(first: str, second: str) -> int:
    length = min(len(first), len(second))
    return next((i for i in range(length) if first[i] != second[i]), length)
