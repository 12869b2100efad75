"""Messages of a conversation, and their text."""

Messages = list[dict[str, str]]


def text_of(value: str | Messages) -> str:
    """
    Text of a prompt or a response.

    Args:
        value (`str` or `list[dict[str, str]]`):
            Plain text, or messages.

    Returns:
        `str`: Plain text as it is; of messages the content of the last one.
    """
    return value if isinstance(value, str) else str(value[-1]["content"])


def texts_of(value: str | Messages) -> list[str]:
    """
    Texts of all messages of a prompt or a response.

    Args:
        value (`str` or `list[dict[str, str]]`):
            Plain text, which counts as one message, or messages.

    Returns:
        `list[str]`
    """
    return [value] if isinstance(value, str) else [str(message["content"]) for message in value]
