import json
import re
from dataclasses import fields

import pytest
import yaml
from trl import RewardConfig, RLOOConfig, TrlParser

from toolkit import PREFERENCE_MODELS, MultiScaleRewardConfig, ReinforceConfig
from toolkit.policy.config import BASELINES

CONFIGS = pytest.mark.parametrize("config_class", [MultiScaleRewardConfig, ReinforceConfig])


@pytest.fixture
def on_cpu(tmp_path):
    """Options that any configuration needs where there is no GPU."""
    # TRL's default goes by a name that Transformers deprecates, which is a warning, and so an error here.
    quiet = {"activation_checkpointing": False, "report_to": "none"}
    return {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, **quiet}


def documented_fields(config_class: type) -> dict[str, tuple[str, str]]:
    """Default and text of every entry under `Args:` in a docstring, on one line each."""
    entries, name = {}, None
    for line in config_class.__doc__.split("Args:\n")[1].splitlines():
        if head := re.fullmatch(r" {8}(\w+) \(`.+`, \*optional\*(?:, defaults to `(.+)`)?\):", line):
            name = head[1]
            entries[name] = (head[2] or "null", "")
        elif line.strip():
            default, text = entries[name]
            entries[name] = (default, f"{text} {line.strip()}".strip())
    return entries


@CONFIGS
def test_docstring_and_help_say_the_same(config_class):
    own = [field for field in fields(config_class) if field.name in config_class.__annotations__]
    helps = {field.name: " ".join(field.metadata["help"].split()) for field in own}
    assert {name: text for name, (_, text) in documented_fields(config_class).items()} == helps


@CONFIGS
def test_documented_defaults_are_the_defaults(config_class, on_cpu):
    config = config_class(**on_cpu)
    for name, (default, _) in documented_fields(config_class).items():
        found = getattr(config, name)
        assert default == (str(found) if isinstance(found, bool | float) else json.dumps(found)), name


@pytest.mark.parametrize("name", PREFERENCE_MODELS)
def test_every_preference_model_is_a_configuration(name, on_cpu):
    config = MultiScaleRewardConfig(**PREFERENCE_MODELS[name], **on_cpu)
    assert {key: getattr(config, key) for key in PREFERENCE_MODELS[name]} == PREFERENCE_MODELS[name]


def test_there_are_five_preference_models_and_no_two_are_alike():
    assert list(PREFERENCE_MODELS) == ["unbiased", "simple contrast", "weighted", "context-aware", "multi-scale"]
    assert len({json.dumps(options, sort_keys=True) for options in PREFERENCE_MODELS.values()}) == 5


def test_the_default_is_the_multi_scale_model(on_cpu):
    config = MultiScaleRewardConfig(**on_cpu)
    assert {key: getattr(config, key) for key in PREFERENCE_MODELS["multi-scale"]} == PREFERENCE_MODELS["multi-scale"]


def test_two_configurations_share_no_list(on_cpu):
    first, second = MultiScaleRewardConfig(**on_cpu), MultiScaleRewardConfig(**on_cpu)
    assert first.scales is not second.scales


@pytest.mark.parametrize("baseline", [name for name in BASELINES if name != "leave_one_out"])
@pytest.mark.parametrize("generation", [{}, {"generation_batch_size": 24}, {"steps_per_generation": 6}])
def test_one_generation_a_prompt_is_set_up_as_trl_sets_up_two(baseline, generation, on_cpu):
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3, **generation, **on_cpu}
    one, two = (
        ReinforceConfig(num_generations=1, baseline=baseline, **options),
        RLOOConfig(num_generations=2, **options),
    )
    assert one.num_generations == 1
    assert one.generation_batch_size == two.generation_batch_size == (24 if generation else 12)
    assert one.steps_per_generation == two.steps_per_generation == (6 if generation else 3)
    different = {"num_generations", "baseline", "disable_dropout", "loss_type"}
    for field in fields(RLOOConfig):
        if field.name not in different and "logging_dir" not in field.name:
            assert getattr(one, field.name) == getattr(two, field.name), field.name


def test_with_one_generation_trls_other_checks_still_hold(on_cpu):
    one = {"num_generations": 1, "baseline": "none", **on_cpu}
    with pytest.raises(ValueError, match="can not be both configured"):
        ReinforceConfig(generation_batch_size=8, steps_per_generation=1, **one)
    with pytest.raises(ValueError, match="must be divisible by the global batch size"):
        ReinforceConfig(generation_batch_size=9, per_device_train_batch_size=8, **one)


def test_groups_must_still_be_whole(on_cpu):
    with pytest.raises(ValueError, match="must be divisible by num_generations"):
        ReinforceConfig(num_generations=3, per_device_train_batch_size=4, **on_cpu)


@pytest.mark.parametrize(
    ("config_class", "options"),
    [
        (MultiScaleRewardConfig, {"scales": ["token", "response"], "context": "head", "scale_loss_weight": 0.25}),
        (MultiScaleRewardConfig, PREFERENCE_MODELS["unbiased"]),
        (ReinforceConfig, {"baseline": "moving_average", "num_generations": 1, "prefix_baseline": True}),
        (ReinforceConfig, {"prefix_penalty": 0.1, "normalize_rewards": True, "reward_clip_range": [-5.0, 5.0]}),
    ],
)
def test_a_yaml_file_is_a_configuration(config_class, options, on_cpu, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**options, **on_cpu}))
    (config,) = TrlParser(config_class).parse_args_and_config(["--config", str(path)])
    assert type(config) is config_class
    assert {name: getattr(config, name) for name in options} == options


def test_the_command_line_has_the_last_word(on_cpu, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"scales": ["token", "response"], "loss_type": "pairwise", **on_cpu}))
    arguments = ["--config", str(path), "--scales", "segment", "token", "--loss_type", "pointwise"]
    (config,) = TrlParser(MultiScaleRewardConfig).parse_args_and_config(arguments)
    assert (config.scales, config.loss_type) == (["segment", "token"], "pointwise")


@CONFIGS
def test_every_field_of_trl_is_still_there(config_class):
    parent = RewardConfig if config_class is MultiScaleRewardConfig else RLOOConfig
    assert {field.name for field in fields(parent)} <= {field.name for field in fields(config_class)}
