"""Every recipe parses its YAML files; that they run is in `tests/launch/test_recipes.py`."""

import json

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from trl import ModelConfig, SFTConfig, TrlParser

from tests.helpers import ROOT, load_recipe
from toolkit import MultiScaleRewardConfig, ReinforceConfig, ThoughtConfig
from toolkit.arguments import RunArguments
from toolkit.jobs.joint import JointArguments
from toolkit.jobs.reinforce import ReinforceArguments

CONFIGS = sorted((ROOT / "recipes" / "configs").glob("*.yaml"))


def classes_of(stem):
    if stem.endswith("_joint"):
        return (JointArguments,)
    if "_joint_" in stem:
        return (MultiScaleRewardConfig if stem.endswith("_reward") else ReinforceConfig,)
    if stem.endswith("_decoder"):
        return (load_recipe("pretrain_decoder").DecoderArguments, SFTConfig)
    if stem.endswith("reward"):
        return (RunArguments, MultiScaleRewardConfig, ModelConfig)
    if stem.endswith("_judge"):
        return (load_recipe("train_judge").JudgeArguments, ThoughtConfig, ModelConfig)
    return (ReinforceArguments, ReinforceConfig, ModelConfig)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_yaml_files_hold_only_options_that_exist(path):
    # On the machine of a test there may be no GPU for bfloat16; the file's own options are what is parsed.
    extra = (
        [] if "use_cpu: true" in path.read_text() or path.stem.endswith("_joint") else ["--use_cpu", "--bf16", "no"]
    )
    extra += [] if "activation" in path.read_text() or not extra else ["--activation_checkpointing", "no"]
    TrlParser(classes_of(path.stem)).parse_args_and_config(["--config", str(path), *extra])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_yaml_file_has_its_row_in_the_readme(path):
    readme = (ROOT / "recipes" / "README.md").read_text()
    assert path.name in readme or "_joint_" in path.stem


@pytest.mark.parametrize("path", sorted((ROOT / "deepspeed_configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_files_hold_only_options_that_exist(path):
    config = load_config_from_file(str(path))
    deepspeed = getattr(config, "deepspeed_config", None) or {}
    assert (config.distributed_type == "DEEPSPEED") == path.stem.startswith("zero")
    assert (config.distributed_type == "FSDP") == path.stem.startswith("fsdp") == bool(config.fsdp_config)
    if deepspeed:
        file = ROOT / deepspeed["deepspeed_config_file"]
        stage = json.loads(file.read_text())["zero_optimization"]["stage"]
        assert path.stem.startswith(f"zero{stage}")
        assert deepspeed["zero3_init_flag"] == (stage == 3)


@pytest.mark.parametrize("path", sorted((ROOT / "deepspeed_configs").glob("*.json")), ids=lambda path: path.stem)
def test_gradients_add_up_in_float32(path):
    # In bfloat16 the buffer of many micro-steps loses what is added late; tests/launch holds that DeepSpeed does so
    assert json.loads(path.read_text())["data_types"] == {"grad_accum_dtype": "fp32"}


@pytest.mark.parametrize("path", sorted((ROOT / "deepspeed_configs").glob("*.json")), ids=lambda path: path.stem)
def test_deepspeed_takes_every_option(path):
    # Those that Transformers sets are left out; a name that DeepSpeed does not know is an error
    options = json.loads(path.read_text())["zero_optimization"]
    known = DeepSpeedZeroConfig(**{name: value for name, value in options.items() if value != "auto"})
    assert (known.zero_hpz_partition_size > 1) == (path.stem == "zero3_machines")
