"""What readers are worth, planted and on labels of real people and attributes; docs/tastes.md has the figures.

python recipes/experiments/measure_readers.py --data data --states runs/states --output_dir runs/readers

The states are of `cache_states.py --tasks UKP LAMP CoNaLa SQuALITY PandaLM USR SummEval`. What is measured is not
measured again: each measurement of a seed has a file.
"""

import argparse
import json
from functools import cache
from pathlib import Path

import torch
from transformers import set_seed

from toolkit.experiments.readers import attributes, features, people, styles

PEOPLE = {"UKP": "ukp_convarg_by_worker", "LAMP": "lamp_writer_rankings", "CoNaLa": "conala_by_grader"}
PEOPLE |= {"SQuALITY": "squality_by_worker", "PandaLM": "pandalm_by_annotator"}
ATTRIBUTES = {"USR": "usr_topicalchat", "SummEval": "summeval_attr", "SQuALITY": "squality_by_worker"}


def measurements(args):
    """A function of the seed for each."""

    @cache
    def read(name, file):
        return features(args.data, args.states, name, file)

    found = {
        "styles in a circle": lambda seed: styles(seed, True),
        "styles in order": lambda seed: styles(seed, False),
    }
    found["planted tastes"] = lambda seed: people(seed, *read("UKP", PEOPLE["UKP"]), planted=True)
    for task in PEOPLE.items():
        found[f"people of {task[0]}"] = lambda seed, task=task: people(seed, *read(*task), planted=False)
    for task in ATTRIBUTES.items():
        found[f"attributes of {task[0]}"] = lambda seed, task=task: attributes(seed, *read(*task))
    return found


def main(args):
    torch.set_num_threads(1)
    out, measure = Path(args.output_dir), measurements(args)
    out.mkdir(parents=True, exist_ok=True)
    for what in args.only or measure:
        files = [out / f"{what} {seed}.json" for seed in range(args.seeds)]
        for seed, file in enumerate(files):
            if not file.is_file():
                set_seed(seed)
                file.write_text(json.dumps(measure[what](seed)))
        found = [json.loads(file.read_text()) for file in files]
        for name in found[0]:
            values = torch.tensor([one[name] for one in found], dtype=torch.float64)
            errors = values.std(0) / len(files) ** 0.5
            said = [f"{mean:.3f} ± {error:.3f}" for mean, error in zip(values.mean(0), errors, strict=True)]
            print(what, name, *said, sep="; ", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="data")
    parser.add_argument("--states", default="runs/states")
    parser.add_argument("--output_dir", default="runs/readers")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--only", nargs="*", help="names of measurements; all where none is given")
    main(parser.parse_args())
