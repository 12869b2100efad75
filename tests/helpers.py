"""What several tests use and costs nothing to import; what builds models is in `tests/tiny.py`."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
ARCHITECTURES = ("qwen3", "llama", "gpt_neox", "gpt2")

# A question, a good answer and a bad one.
PAIRS = [
    ("How do I boil an egg?", "Put it into boiling water. Wait eight minutes, then cool it.", "No idea."),
    ("What is the capital of Peru?", "Lima.", "I think it is somewhere in the south, or perhaps not."),
    ("Write a line of Python that adds two numbers.", "def add(a, b):\n    return a + b", "print(1)\nprint(2)"),
    ("Name three colours.", "Red, green and blue.", "Colours are nice! I like them. Do you?"),
    ("Why is the sky blue?", "Air scatters blue light more than red light.", "Because it is."),
    ("Can you help me sleep?", "Dim the lights, put the phone away. Read a little. Good night!", "Sleep."),
    ("Sum up the story.", "A fox wants grapes. They hang too high. He calls them sour.", "There is a fox in it."),
    ("What does a judge do?", "A judge hears both sides and decides.", "He sits. He stands. He sits again."),
    ("Is tea better than coffee?", "That is a matter of taste.", "Yes yes yes yes yes."),
    ("How far is the moon?", "About 384,000 kilometres away.", "Far!"),
    ("Give me a word that rhymes with tree.", "Bee.", "Forest, which does not rhyme, but is near a tree."),
    ("Who wrote Faust?", "Goethe wrote it, over sixty years.", "A man wrote it… he was old."),
    ("Count to five.", "One, two, three, four, five.", "One. Five."),
    ("Translate 'good morning' into French.", "Bonjour!", "Guten Morgen, as they say in Germany."),
    ("What is two times seven?", "Fourteen.", "Two times seven is two times seven."),
    ("Tell me a joke.", "Why did the bread rise? It kneaded to.", "Jokes are hard.\n\nVery hard."),
    ("What should I cook tonight?", "Rice with beans is quick.\nAdd lime and salt.", "Food"),
    ("How do plants eat?", "They make sugar from light, water and air.", "With roots? With leaves? Who knows?"),
    ("Explain a loop.", "It repeats a step until a test fails.\nfor x in y:\n    print(x)", "It loops."),
    ("Where do penguins live?", "In the south, most of them on the ice.", "In a zoo."),
    ("Say it politely: go away.", "Would you mind giving me a moment?", "Go away, please, go away now."),
    ("How old is the earth?", "Four and a half billion years.", "Older than you and older than me."),
    ("Do fish sleep?", "They rest, yes: with open eyes.", "Fish swim. Fish swim all day. Fish never tire."),
    ("What is a prime?", "A number above one that only one and itself divide.", "A number"),
]


def logged(trainer, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def load_recipe(name: str) -> ModuleType:
    """A recipe as a module, such as `train_reward` or `experiments/study`."""
    spec = importlib.util.spec_from_file_location(Path(name).name, ROOT / "recipes" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where the annotations of its dataclasses are looked up
    spec.loader.exec_module(module)
    return module


def job_of(name: str) -> ModuleType | None:
    """The module of the package that a recipe runs, where it does nothing else; `None` where it does more."""
    jobs = {"train_reward": "jobs.reward", "train_reinforce": "jobs.reinforce", "train_jointly": "jobs.joint"}
    jobs |= {"evaluate_reward": "evaluation.command", "annotators": "jobs.annotators"}
    return importlib.import_module(f"toolkit.{jobs[name]}") if name in jobs else None


def run_python(*arguments: str | Path, **options) -> subprocess.CompletedProcess:
    """A fresh process of the same interpreter, which finds the package where this one does."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["COLUMNS"] = "200"  # of tables that are printed
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, **options)


class Alone:
    """Turns of an arm that has no others beside it."""

    def __init__(self):
        self.rounds = []

    def wait(self):
        pass

    def report(self, measured):
        self.rounds.append(measured)
