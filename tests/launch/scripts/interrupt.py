"""A study whose first cell is interrupted as by Ctrl-C: `interrupt.py FOLDER`."""

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from toolkit.experiments.study.grid import Cell, Study, run_stages


@dataclass
class Settings:
    pass


def interrupt(folder: Path, settings: Settings) -> dict[str, int]:
    os.killpg(os.getpgrp(), signal.SIGINT)  # what Ctrl-C sends, and to whom
    signal.pause()
    return {}


def end_at_once(folder: Path, settings: Settings) -> dict[str, int]:
    return {}


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which is ignored in what a shell runs in the background
    cells = [Cell("a", interrupt, {}), *(Cell(f"b{i}", end_at_once, {}) for i in range(4))]
    run_stages(Study(Path(sys.argv[1]), Settings()), iter([cells]), workers=1)
