"""The console command `prefscale`. Each subcommand is a module, which imports what it works with when it is called."""

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

from .check import add_check
from .explain import add_explain
from .export import add_export
from .init import add_init
from .launch import EPILOG, add_job
from .parser import Parser
from .plan import add_plan
from .report import add_report
from .sandbox import add_sandbox
from .serve import add_serve
from .verify import add_verify

JOBS = {
    "reward": ("jobs.reward", "train and evaluate a multi-scale reward model"),
    "annotators": ("jobs.annotators", "say whether those who labelled pairs differ by more than noise"),
    "evaluate": ("evaluation.command", "compare models of any kind on held-out pairs"),
    "reinforce": ("jobs.reinforce", "tune a policy by REINFORCE on a reward model"),
    "joint": ("jobs.joint", "both in turns, with a judge that labels the policy's answers"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the command.

    Args:
        arguments (`Sequence[str]`, *optional*):
            Words after the command; those of the process where they are not given.

    Returns:
        `int`: Exit status: 0, 2 where the user's input was wrong, or 1 where `check` finds what training would
        refuse, or `verify` what is not as it was saved.
    """
    args = read_words(list(sys.argv[1:] if arguments is None else arguments))
    try:
        return int(args.run(args) or 0)
    except (ValueError, OSError) as error:
        print(f"prefscale {args.command}: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2


def read_words(words: list[str]) -> argparse.Namespace:
    """
    What a command line says.

    Args:
        words (`list[str]`):
            Words after the command.

    Returns:
        `argparse.Namespace`: With `command`, its name, and `run`, which takes this and does it; of a job `words`, its
        own, which it reads itself.

    Raises:
        `SystemExit`: With status 2, where a word is wrong, or 0 after `--help` and `--version`.
    """
    parser = Parser(
        prog="prefscale",
        description="From preference pairs to a reward model, and from that to a tuned policy.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"prefscale {version('prefscale')}")
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser
    add_init(add("init", help="write a commented YAML file to begin with"))
    for name, (module, text) in JOBS.items():
        add_job(add(name, help=text, add_help=False), module)
    add_check(add("check", help="check every row of a set of preference pairs, and describe it"))
    add_sandbox(add("sandbox", help="write preference pairs of the sandbox to a file"))
    add_explain(add("explain", help="show what every token and segment adds to a response's score"))
    add_export(add("export", help="write a reward model merged, for stock classes, or for pooling engines"))
    add_plan(add("plan", help="say what memory, tokens and hours a run needs, without any weights"))
    add_report(add("report", help="write a page on a training run, several of them, a closed loop or a study"))
    add_serve(add("serve", help="serve a reward model to other processes"))
    add_verify(add("verify", help="say whether a saved reward model is, byte by byte, what was saved"))
    args, rest = parser.parse_known_args(words[:1] if words[:1] and words[0] in JOBS else words)
    args.words = words[1:]
    if rest:
        commands.choices[args.command].refuse(rest[0])
    return args
