"""`prefscale explain`: what every token and segment adds to a response's score."""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..data.messages import Messages
    from ..generative.reward import ThoughtReward
    from ..reward.scorer import RewardFunction

    # The reward model or judge, the prompt, the responses, text or messages, by the names that they are shown by, the
    # name of the one that the data prefer, and the prompt of the last one.
    Explained = tuple[RewardFunction | ThoughtReward, str | Messages, Mapping[str, Any], str | None, str | Messages]


def add_explain(command: argparse.ArgumentParser) -> None:
    """Add what the command takes, and what it does."""
    command.add_argument(
        "model", help="folder or hub name of a multi-scale reward model or adapter, or folder of a judge"
    )
    command.add_argument("--prompt", help="prompt")
    command.add_argument("--response", action="append", default=[], help="response; twice to compare two")
    command.add_argument(
        "--file", help="in place of a prompt and responses: set of preference pairs to take them from"
    )
    command.add_argument("--row", type=int, help="with --file: number of the pair, counted from 1")
    command.add_argument("--html", help="file to write as a page, too (.html)")
    command.set_defaults(run=_explain)


def _explain(args: argparse.Namespace) -> None:
    if args.html is not None:
        _check_page(Path(args.html))
    import datasets
    from transformers import logging

    from ..generative.reward import ThoughtReward
    from ..pages.explain import explain
    from ..pages.explain_page import print_explanations, print_judgements, render_html
    from ..training.run_record import write_text

    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        reward, prompt, responses, preferred, other = (
            _from_file(args) if args.file is not None else _from_options(args)
        )
    finally:
        logging.enable_progress_bar()
        datasets.enable_progress_bars()
    if isinstance(reward, ThoughtReward):
        if args.html is not None:
            raise ValueError(f"'{args.model}' is a judge, whose thoughts are printed. Leave out `--html`.")
        prompts = [*[prompt] * (len(responses) - 1), other]
        return print_judgements(prompt, list(responses), reward.judge(prompts, list(responses.values())), preferred)
    if other == prompt:
        explanations = explain(reward, prompt, list(responses.values()))
    else:
        first, second = responses.values()
        explanations = [*explain(reward, prompt, [first]), *explain(reward, other, [second])]
    print_explanations(prompt, list(responses), explanations, preferred)
    if args.html is not None:
        page = render_html(args.model, prompt, list(responses), explanations, preferred)
        try:
            write_text(Path(args.html), page)
        except OSError as error:
            raise ValueError(f"Cannot write '{args.html}' ({error.strerror}). Correct `--html`.") from None


def _check_page(file: Path) -> None:
    """Refuse a name under which a page would take another file's place, or would not be taken for one."""
    if file.suffix not in (".html", ".htm"):
        raise ValueError(f"`--html` is '{file}', and a page has a name that ends in .html. Correct it.")
    if os.path.lexists(file):
        raise ValueError(f"'{file}' exists. Give `--html` another name, or remove it.")


def _from_file(args: argparse.Namespace) -> "Explained":
    from ..data.loading import load_pairs
    from ..data.messages import text_of
    from ..data.prompts import REJECTED_PROMPT
    from ..pages.explain import load_reward_function

    if args.prompt is not None or args.response:
        raise ValueError("`--file` brings its own prompt and responses. Leave out `--prompt` and `--response`.")
    pairs = load_pairs(args.file)
    if args.row is None or not 1 <= args.row <= len(pairs):
        raise ValueError(f"'{args.file}' has {len(pairs)} pairs, but `--row` is {args.row}. Give 1 to {len(pairs)}.")
    row = pairs[args.row - 1]
    reward = load_reward_function(args.model, tools=row.get("tools"), **(row.get("chat_template_kwargs") or {}))
    other = row.get(REJECTED_PROMPT, row["prompt"])
    second = "rejected" if other == row["prompt"] else f"rejected, to the prompt “{text_of(other)}”"
    return reward, row["prompt"], {"chosen": row["chosen"], second: row["rejected"]}, "chosen", other


def _from_options(args: argparse.Namespace) -> "Explained":
    from ..pages.explain import load_reward_function

    if args.prompt is None or len(args.response) not in (1, 2) or args.row is not None:
        found = f"`--prompt` {args.prompt is not None:d} times, `--response` {len(args.response)} times"
        raise ValueError(f"Found {found}. Give `--prompt` and one or two `--response`, or `--file` and `--row`.")
    names = ["response 1", "response 2"] if len(args.response) == 2 else ["response"]
    reward = load_reward_function(args.model)
    responses = dict(zip(names, args.response, strict=True))
    if reward.processing_class.chat_template is None:
        return reward, args.prompt, responses, None, args.prompt
    messages = {name: [{"role": "assistant", "content": response}] for name, response in responses.items()}
    prompt = [{"role": "user", "content": args.prompt}]
    return reward, prompt, messages, None, prompt
