"""Every chat template that TRL ships, with tokenizers of the main kinds: each way of scoring reads the row of
training, or is refused. docs/templates.md shows what came out.

python recipes/experiments/check_templates.py --output docs/templates.json
"""

import argparse
import json
import sys
from pathlib import Path

import datasets
from tqdm.auto import tqdm
from transformers.utils import logging

from toolkit.experiments.templates import examine, shipped_templates, table_of


def main(args):
    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    templates = shipped_templates()
    names = args.templates or list(templates)
    cases = [case for name in tqdm(names, desc="Templates") for case in examine(name, templates[name])]
    print(table_of(cases))
    if args.output:
        Path(args.output).write_text(json.dumps([case._asdict() for case in cases], indent=1) + "\n")
    wrong = [case for case in cases if case.wrong]
    for case in wrong:
        print(f"WRONG {case.template}, {case.tokenizer}, {case.conversation}: {case.differences}")
    return int(bool(wrong))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("templates", nargs="*", help="names of templates; all where none is given")
    parser.add_argument("--output", help="a JSON file for what was found")
    sys.exit(main(parser.parse_args()))
