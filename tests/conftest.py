"""Tiny tokenizers, decoders and pairs that several tests share. Nothing is downloaded."""

import copy
import os
from importlib import resources

os.environ["HF_HUB_OFFLINE"] = "1"

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from toolkit import AutoModelForMultiScaleReward, MultiScaleRewardConfig, MultiScaleSettings, ReinforceConfig
from toolkit.data.loading import load_pairs
from toolkit.data.tokens import response_marker_ids, segment_boundary_ids
from toolkit.reward.scales import SCALES

torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]
ARCHITECTURES = ("qwen3", "llama", "gpt_neox", "gpt2")
PAD, TURN_START, TURN_END, BOS = "<|pad|>", "<|im_start|>", "<|im_end|>", "<|begin|>"
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

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
OTHER_SENTENCES = [
    "The quick brown fox jumps over the lazy dog, over and over again.",
    "Rivers rise in the mountains and run to the sea.",
    "She sells shells and shouts about the shape of ships.",
    "Nothing that is worth knowing can be taught in a morning.",
    "Thirty thieves thought they thrilled the throne throughout Thursday.",
]


def pytest_configure(config):
    for entry in (
        # PEFT and Accelerate read a property that Transformers has renamed.
        "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    ):
        config.addinivalue_line("filterwarnings", entry)


def train_tokenizer(texts: list[str], vocab_size: int, bos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE with every byte, a padding token of its own, and EOS at the end of a turn."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = [PAD, TURN_START, TURN_END, *([BOS] if bos else [])]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    if bos:
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, bpe.token_to_id(BOS))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=TURN_END,
        bos_token=BOS if bos else None,
        additional_special_tokens=[TURN_START],
        chat_template=TEMPLATE,
    )


def corpus() -> list[str]:
    return [text for pair in PAIRS for text in pair] + ["user\n", "assistant\n", "system\n"]


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(corpus(), 400)


@pytest.fixture(scope="session")
def thinking(tokenizer):
    """
    The tokenizer with Qwen3's template as TRL has it: an empty thought before the assistant's last message, or the
    message's own, and no line breaks at the message's beginning.
    """
    other = copy.copy(tokenizer)
    other.chat_template = resources.files("trl").joinpath("chat_templates/qwen3.jinja").read_text()
    return other


@pytest.fixture(scope="session")
def other_tokenizer():
    """Other merges, so that it cuts the same text into other tokens."""
    return train_tokenizer(OTHER_SENTENCES, 340)


@pytest.fixture(scope="session")
def bos_tokenizer():
    return train_tokenizer(corpus(), 400, bos=True)


@pytest.fixture(scope="session")
def decoder_config(tokenizer):
    """Configuration of a tiny decoder of an architecture, with more spread than usual, so that scores differ."""

    def make(architecture: str, **options):
        shared = {"vocab_size": len(tokenizer), "initializer_range": 0.2, "tie_word_embeddings": True}
        shared |= {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
        shared |= {"bos_token_id": None}
        if architecture == "gpt2":
            return GPT2Config(**{**shared, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256, **options})
        shared |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        shared |= {"max_position_embeddings": 256}
        if architecture == "gpt_neox":
            return GPTNeoXConfig(**{**shared, **options})
        if architecture == "llama":
            return LlamaConfig(**{**shared, "num_key_value_heads": 1, **options})
        return Qwen3Config(**{**shared, "num_key_value_heads": 1, "head_dim": 16, **options})

    return make


@pytest.fixture(scope="session")
def tiny_folder(tokenizer, decoder_config, tmp_path_factory):
    """Folder of a saved causal model of an architecture, with its tokenizer; made once."""
    made = {}

    def folder(architecture: str = "qwen3", **options) -> str:
        key = (architecture, *sorted(options.items()))
        if key not in made:
            torch.manual_seed(0)
            made[key] = str(tmp_path_factory.mktemp(architecture))
            AutoModelForCausalLM.from_config(decoder_config(architecture, **options)).save_pretrained(made[key])
            tokenizer.save_pretrained(made[key])
        return made[key]

    return folder


def spread_head(model, seed: int = 0):
    """Give every parameter of the head a value that shows in the score, the gate's included."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.score.parameters():
        if parameter.requires_grad:
            parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="session")
def reward_model(tokenizer, tiny_folder):
    """A new reward model of an architecture, its head spread, that knows the tokenizer's marker and boundaries."""

    def make(architecture: str = "qwen3", scales=SCALES, context="gate", **options):
        settings = MultiScaleSettings(scales=list(scales), context=context)
        model = AutoModelForMultiScaleReward.from_pretrained(tiny_folder(architecture, **options), settings)
        model.set_layout(response_marker_ids(tokenizer), segment_boundary_ids(tokenizer))
        return spread_head(model).eval()

    return make


@pytest.fixture(scope="session")
def reward_folder(reward_model, tokenizer, tmp_path_factory):
    """Folder of a saved reward model with its tokenizer; made once."""
    made = {}

    def folder(architecture: str = "qwen3", scales=SCALES, context="gate", **options) -> str:
        key = (architecture, tuple(scales), context, *sorted(options.items()))
        if key not in made:
            made[key] = str(tmp_path_factory.mktemp(f"reward-{architecture}"))
            reward_model(architecture, scales, context, **options).save_pretrained(made[key])
            tokenizer.save_pretrained(made[key])
        return made[key]

    return folder


@pytest.fixture(scope="session")
def plain_pairs():
    rows = [{"prompt": f"Q: {q}\nA:", "chosen": f" {good}", "rejected": f" {bad}"} for q, good, bad in PAIRS]
    return Dataset.from_list(rows)


@pytest.fixture(scope="session")
def chat_pairs():
    """Conversations: every third one has a system message, every fourth two turns before."""
    rows = []
    for i, (question, good, bad) in enumerate(PAIRS):
        prompt = [{"role": "system", "content": "Be brief."}] if i % 3 == 0 else []
        if i % 4 == 0:
            prompt += [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hi. What is it?"}]
        prompt += [{"role": "user", "content": question}]
        chosen, rejected = ([{"role": "assistant", "content": text}] for text in (good, bad))
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return Dataset.from_list(rows)


@pytest.fixture(scope="session")
def real_pairs():
    path = ROOT.parent / "shared" / "data" / "hh_helpful_single_train_gt.jsonl.gz"
    if not path.is_file():
        pytest.skip("the folder ../shared/data with the real pairs is absent")
    return load_pairs(str(path)).select(range(200)).select_columns(["prompt", "chosen", "rejected"])


@pytest.fixture(scope="session")
def cpu_options():
    """Options that any trainer needs where there is no GPU."""
    # TRL's default goes by a name that Transformers deprecates, which is a warning, and so an error here.
    quiet = {"activation_checkpointing": False, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
    return {"use_cpu": True, "bf16": False, "logging_steps": 1, **quiet}


@pytest.fixture
def reward_config(tmp_path, cpu_options):
    def make(config_class=MultiScaleRewardConfig, **options):
        defaults = {"learning_rate": 1e-3, "per_device_train_batch_size": 4, "max_steps": 3}
        return config_class(output_dir=str(tmp_path / "reward"), **{**cpu_options, **defaults, **options})

    return make


@pytest.fixture
def reinforce_config(tmp_path, cpu_options):
    def make(config_class=ReinforceConfig, **options):
        defaults = {"learning_rate": 1e-3, "per_device_train_batch_size": 4, "max_steps": 3, "num_generations": 2}
        defaults |= {"max_completion_length": 8}
        return config_class(output_dir=str(tmp_path / "policy"), **{**cpu_options, **defaults, **options})

    return make


def pad_rows(rows: list[list[int]], starts: list[int], pad_id: int, left: int = 0, right: int = 0):
    """Rows as a batch, with so many more padding tokens on either side than the longest row needs on its right."""
    width = left + max(map(len, rows)) + right
    input_ids = torch.full((len(rows), width), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    for i, row in enumerate(rows):
        input_ids[i, left : left + len(row)] = torch.tensor(row)
        attention_mask[i, left : left + len(row)] = 1
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "response_start": torch.tensor(starts) + left,
    }


def logged(trainer, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def run_python(*arguments: str, cwd: str | Path | None = None) -> subprocess.CompletedProcess:
    """A fresh process of the same interpreter, which finds the package where this one does."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], env=environment, cwd=cwd, capture_output=True, text=True, check=False
    )


class Alone:
    """Turns of an arm that has no others beside it."""

    def __init__(self):
        self.rounds = []

    def wait(self):
        pass

    def report(self, measured):
        self.rounds.append(measured)
