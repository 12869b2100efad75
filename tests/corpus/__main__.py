"""How many bad inputs have a clear outcome, by class of fault. Exit status 1 where one is silent or loses data.

python -m tests.corpus [--show] [CLASS …]
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import datasets

from tests.corpus import CLASSES
from tests.corpus.bench import Bench
from tests.corpus.outcomes import ACCEPTED, CLEAR, KINDS, LOST, SILENT, perform
from tests.corpus.shop import Shop
from toolkit.pages.tables import print_table


def main(words: list[str]) -> int:
    """Perform the cases of some classes, or of all, and print the table."""
    shown, names = "--show" in words, [word for word in words if word != "--show"]
    datasets.disable_progress_bars()
    found: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as work:
        datasets.config.HF_DATASETS_CACHE = Path(work, "cache")
        shop = Shop(Path(work, "shop"))
        shop.folder.mkdir()
        for kind in names or CLASSES:
            found[kind] = Counter()
            for number, case in enumerate(CLASSES[kind]):
                folder = Path(work, kind, str(number))
                folder.mkdir(parents=True)
                began = time.process_time()
                outcome = perform(case, Bench(folder, shop))
                found[kind][outcome.kind] += 1
                if shown or outcome.kind not in (CLEAR, ACCEPTED):
                    spent = time.process_time() - began
                    print(f"\n{outcome.kind.upper()} ({spent:.2f} s)  {kind}: {case.name}\n{outcome.told.strip()}")
    _print(found)
    counts = sum(found.values(), Counter())
    return int(bool(counts[SILENT] or counts[LOST]))


def _print(found: dict[str, Counter[str]]) -> None:
    rows = [(kind, *_cells(counts)) for kind, counts in found.items()]
    whole = sum(found.values(), Counter())
    header = ("class of fault", "cases", *KINDS, "clear or rightly accepted, %")
    print_table("Outcomes of bad inputs", header, [*rows, ("all", *_cells(whole))])
    good = whole[CLEAR] + whole[ACCEPTED]
    print(f"{good} of {whole.total()} outcomes are clear or rightly accepted: {good / whole.total():.1%}")


def _cells(counts: Counter[str]) -> list[str]:
    share = (counts[CLEAR] + counts[ACCEPTED]) / max(counts.total(), 1)
    return [str(counts.total()), *(str(counts[kind]) for kind in KINDS), f"{100 * share:.1f}"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
