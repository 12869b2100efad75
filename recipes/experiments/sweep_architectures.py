"""Every architecture that Transformers has a sequence classification class for, as reward model and as policy.

    python recipes/experiments/sweep_architectures.py --output runs/architectures.json --table runs/architectures.md

Of each a tiny model with random weights: padding on either side, packed rows, saved and loaded again, read by the
stock class, a step of LoRA saved and loaded, log-probabilities of shared prompts, and generation from a cache that is
filled once, each against a row alone. The findings are written as it goes, and what is there is not tried again; after
a change of Transformers begin with a new file. The exit code is 1 where anything is wrong.
"""

from pathlib import Path

import torch
from transformers.utils import logging
from trl import TrlParser

from toolkit.experiments.architectures.sweep import SweepArguments, count, sweep, table


def main(args: SweepArguments) -> None:
    torch.set_num_threads(1)
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    found = sweep(Path(args.output), args.only)
    page, verdicts = table(found), count(found)
    if args.table is not None:
        Path(args.table).write_text(page)
    print(page)
    print(", ".join(f"{verdicts[verdict]} {verdict}" for verdict in ("right", "refused", "wrong")))
    if verdicts["wrong"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main(*TrlParser((SweepArguments,)).parse_args_and_config())
