"""What a chat template is given, and the text that it makes of it."""

import json
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from .messages import Messages
from .row_errors import describe

# Columns of a data set that go to the chat template
TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")


def render(tokenizer: PreTrainedTokenizerBase, messages: Messages, **template_kwargs: Any) -> str:
    """
    Text of a conversation as the chat template writes it.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer with a chat template.
        messages (`list[dict[str, str]]`):
            The conversation.
        template_kwargs:
            Further arguments of `apply_chat_template`, such as `add_generation_prompt`.

    Returns:
        `str`

    Raises:
        `ValueError`: If the tokenizer has no chat template, or the template refuses the conversation or fails at it.
    """
    if tokenizer.chat_template is None:
        raise ValueError(
            "The data are conversations, but the tokenizer has no chat template. Set `chat_template_path`, or give "
            "plain text."
        )
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **template_kwargs))
    except Exception as error:  # a template is a program, which may go wrong in any way
        told = f"a conversation of {[message['role'] for message in messages]}: {str(error).rstrip('.')}"
        if type(error) is TemplateError:  # which it raises by its own words
            remedy = "Bring the messages into the order that it knows, or use another template."
            raise ValueError(f"The chat template refuses {told}. {remedy}") from error
        raise ValueError(f"The chat template fails at {told}. Mend it, or use another one.") from error


def row_template_kwargs(row: dict[str, Any]) -> dict[str, Any]:
    """
    What a row of a data set gives to the chat template, in TRL's columns.

    Args:
        row (`dict[str, Any]`):
            A row: `tools`, a list or JSON text, and `chat_template_kwargs`, a dictionary, where it has them. What is
            `None` there is left out: `datasets` fills in what only other rows have.

    Returns:
        `dict[str, Any]`: Arguments of `apply_chat_template`.

    Raises:
        `ValueError`: If one of the two is of another kind.
    """
    tools, options = row.get("tools"), row.get("chat_template_kwargs") or {}
    try:
        tools = json.loads(tools) if isinstance(tools, str) and tools else tools or None
    except json.JSONDecodeError:
        raise ValueError(f"column 'tools': found {describe(tools)}. Write a list, or a list as JSON.") from None
    if not isinstance(tools, list | None):
        raise ValueError(f"column 'tools': found {describe(tools)}. Write a list, or a list as JSON.")
    if not isinstance(options, dict):
        raise ValueError(f"column 'chat_template_kwargs': found {describe(options)}. Write an object.")
    return {name: value for name, value in {"tools": tools, **options}.items() if value is not None}
