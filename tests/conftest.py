"""
Tiny tokenizers, models and pairs that several tests share. Nothing is downloaded, and nothing heavy is imported before
a test asks for it: `tests/stats` runs without Transformers.
"""

import copy
import gc
import os
from functools import partial
from importlib import resources

import pytest

from tests.helpers import PAIRS, ROOT

os.environ["HF_HUB_OFFLINE"] = "1"
# Before torch is imported: a second thread gains nothing on models of this size, and processes run side by side.
os.environ["OMP_NUM_THREADS"] = "1"
# bitsandbytes offers its functions to torch's compiler when it is imported, which takes a second in every process.
os.environ["TORCHDYNAMO_DISABLE"] = "1"

ALL_SCALES = ("token", "segment", "response")
LAUNCH = ROOT / "tests" / "launch"
# Nine tenths of the time of what starts no process
TRAINING = {
    "evaluation/test_multi_scale",
    "evaluation/test_scorers",
    "experiments/benchmarks/test_policy",
    "experiments/benchmarks/test_scaling",
    "experiments/study/test_committed_tasks",
    "experiments/study/test_miniature",
    "experiments/study/test_real",
    "experiments/study/test_results",
    "pages/test_run_page",
    "policy/test_trainer",
    "policy/test_vllm",
    "reward/test_list_training",
    "reward/test_rates",
    "reward/test_reader_training",
    "reward/test_shared_base",
    "reward/test_states",
    "reward/test_trainer",
    "serving/test_server",
    "test_call_order",
    "training/test_checkpoints",
    "training/test_progress",
}


@pytest.hookimpl(tryfirst=True)  # before `-m` and pytest-xdist look at the marks
def pytest_collection_modifyitems(items):
    """Mark what starts processes and what trains, and let it begin first, so that no long file is left for the end."""
    for item in items:
        if LAUNCH in item.path.parents:
            item.add_marker("launch")
        if item.path.relative_to(ROOT / "tests").with_suffix("").as_posix() in TRAINING:
            item.add_marker("training")
    items.sort(key=lambda item: (not item.get_closest_marker("launch"), not item.get_closest_marker("training")))


def pytest_collection_finish():
    """
    Leave what imports made to the end: Accelerate asks for two whole collections a training, and walking that takes
    longer than the training does.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tokenizer():
    from tests.tiny import corpus, train_tokenizer

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
    from tests.tiny import OTHER_SENTENCES, train_tokenizer

    return train_tokenizer(OTHER_SENTENCES, 340)


@pytest.fixture(scope="session")
def bos_tokenizer():
    from tests.tiny import corpus, train_tokenizer

    return train_tokenizer(corpus(), 400, bos=True)


@pytest.fixture(scope="session")
def decoder_config(tokenizer):
    """Configuration of a tiny decoder of an architecture."""
    from tests.tiny import decoder_config

    return partial(decoder_config, tokenizer)


@pytest.fixture(scope="session")
def tiny_folder(tokenizer, decoder_config, tmp_path_factory):
    """Folder of a saved causal model of an architecture, with its tokenizer; made once."""
    import torch
    from transformers import AutoModelForCausalLM

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


@pytest.fixture(scope="session")
def reward_model(tokenizer, tiny_folder):
    """A new reward model of an architecture, its head spread, that knows the tokenizer's marker and boundaries."""
    from tests.tiny import spread_head
    from toolkit import AutoModelForMultiScaleReward, MultiScaleSettings
    from toolkit.data.markers import response_marker_ids
    from toolkit.data.tokens import segment_boundary_ids

    def make(architecture: str = "qwen3", scales=ALL_SCALES, context="gate", attn_implementation="sdpa", **options):
        settings = MultiScaleSettings(scales=list(scales), context=context)
        load = {"attn_implementation": attn_implementation}  # a saved configuration does not keep it
        model = AutoModelForMultiScaleReward.from_pretrained(tiny_folder(architecture, **options), settings, **load)
        model.set_layout(response_marker_ids(tokenizer), segment_boundary_ids(tokenizer))
        return spread_head(model).eval()

    return make


@pytest.fixture(scope="session")
def reward_folder(reward_model, tokenizer, tmp_path_factory):
    """Folder of a saved reward model with its tokenizer; made once."""
    made = {}

    def folder(architecture: str = "qwen3", scales=ALL_SCALES, context="gate", **options) -> str:
        key = (architecture, tuple(scales), context, *sorted(options.items()))
        if key not in made:
            made[key] = str(tmp_path_factory.mktemp(f"reward-{architecture}"))
            reward_model(architecture, scales, context, **options).save_pretrained(made[key])
            tokenizer.save_pretrained(made[key])
        return made[key]

    return folder


@pytest.fixture(scope="session")
def plain_pairs():
    from datasets import Dataset

    rows = [{"prompt": f"Q: {q}\nA:", "chosen": f" {good}", "rejected": f" {bad}"} for q, good, bad in PAIRS]
    return Dataset.from_list(rows)


@pytest.fixture(scope="session")
def chat_pairs():
    """Conversations: every third one has a system message, every fourth two turns before."""
    from datasets import Dataset

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
    from toolkit.data.loading import load_pairs

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
    from toolkit import MultiScaleRewardConfig

    def make(config_class=MultiScaleRewardConfig, **options):
        defaults = {"learning_rate": 1e-3, "per_device_train_batch_size": 4, "max_steps": 3}
        if config_class is MultiScaleRewardConfig:
            defaults["context"] = "gate"  # which has all there is to train, save and load
        return config_class(output_dir=str(tmp_path / "reward"), **{**cpu_options, **defaults, **options})

    return make


@pytest.fixture
def reinforce_config(tmp_path, cpu_options):
    from toolkit import ReinforceConfig

    def make(config_class=ReinforceConfig, **options):
        defaults = {"learning_rate": 1e-3, "per_device_train_batch_size": 4, "max_steps": 3, "num_generations": 2}
        defaults |= {"max_completion_length": 8}
        return config_class(output_dir=str(tmp_path / "policy"), **{**cpu_options, **defaults, **options})

    return make


@pytest.fixture
def several(tiny_folder, tokenizer):
    """A reward model with several outputs, its head spread."""

    from tests.tiny import spread_head
    from toolkit import AutoModelForMultiScaleReward, MultiScaleSettings
    from toolkit.data.tokens import segment_boundary_ids

    def make(**options):
        settings = MultiScaleSettings(context="gate", annotators=["Ann", "Bo"], **options)
        model = AutoModelForMultiScaleReward.from_pretrained(tiny_folder(), settings)
        model.set_layout([], segment_boundary_ids(tokenizer), True)
        return spread_head(model).eval()

    return make
