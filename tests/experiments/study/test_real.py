"""Real pairs are divided by prompt, the same way every time."""

import pytest
import torch
from datasets import Dataset

from tests.helpers import ROOT
from toolkit.experiments.study.models import STUDY_MODELS, ranked_right
from toolkit.experiments.study.real import (
    MOST_RESPONSE,
    PROMPT_LENGTH,
    REAL_TASKS,
    WITHOUT_STRENGTH,
    RealStudy,
    TaskPairs,
    _one_form,
    divide,
    prompt_text,
    real_name,
)
from toolkit.experiments.study.sandbox import SandboxStudy
from toolkit.reward.config import MultiScaleRewardConfig

SHARED = ROOT.parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the folder ../shared/data is absent")


def rows(count: int) -> Dataset:
    """Two pairs a prompt."""
    return Dataset.from_list(
        [{"prompt": [{"role": "user", "content": f"prompt {i // 2}"}], "number": i} for i in range(count)]
    )


def test_a_prompt_is_on_one_side_only_and_the_share_is_right():
    first, second = divide(rows(4000), 0.25, "test")
    sides = [set(map(prompt_text, part["prompt"])) for part in (first, second)]
    assert not sides[0] & sides[1]
    assert sorted([*first["number"], *second["number"]]) == list(range(4000))
    # 2,000 prompts: four standard deviations of a binomial share are 0.039
    assert len(second) / 4000 == pytest.approx(0.25, abs=0.039)


def test_a_division_depends_on_the_prompt_and_the_purpose_alone():
    _, whole = divide(rows(400), 0.25, "test")
    _, part = divide(rows(400).select(range(100, 400)), 0.25, "test")
    assert part["number"][:] == [number for number in whole["number"] if number >= 100]
    _, other = divide(rows(400), 0.25, "search")
    assert other["number"][:] != whole["number"][:]


def test_pairs_get_one_form():
    table = Dataset.from_list(
        [
            {"prompt": "p" * 2000, "chosen": "a", "rejected": "b", "strength": 1.0},
            {"prompt": "q", "chosen": "c" * (MOST_RESPONSE + 1), "rejected": "d", "strength": 3.0},
        ]
    )
    found = _one_form(table)
    assert len(found) == 1  # the second has a response that is too long
    assert found[0]["prompt"] == [{"role": "user", "content": "p" * PROMPT_LENGTH}]
    assert found[0]["chosen"] == [{"role": "assistant", "content": "a"}]
    assert found[0]["strength"] == 0.5  # of a mean of 2


def test_a_tie_counts_half():
    assert ranked_right([0.3, 0.0, -2.0]).tolist() == [1.0, 0.5, 0.0]
    assert ranked_right([1.0]).dtype == torch.float64


@pytest.mark.parametrize(
    "settings", [SandboxStudy(), SandboxStudy.quick(), RealStudy("data"), RealStudy.quick("data")]
)
def test_every_model_of_the_grids_exists(settings):
    named = [*settings.models, *getattr(settings, "ablations", []), *getattr(settings, "curve_models", [])]
    for model in named:
        MultiScaleRewardConfig("none", use_cpu=True, bf16=False, activation_checkpointing=False, **STUDY_MODELS[model])


def test_ablations_differ_from_the_whole_in_what_they_name():
    assert STUDY_MODELS["token"]["scales"] == ["token"]
    assert STUDY_MODELS["token"]["context"] == "none"  # nothing to weigh
    assert STUDY_MODELS["no deep supervision"] == STUDY_MODELS["multi-scale"] | {"scale_loss_weight": 0.0}


@needs_shared
@pytest.mark.parametrize("task", REAL_TASKS)
def test_no_prompt_of_a_real_test_pair_is_trained_on(task):
    pairs = TaskPairs(str(SHARED), task)
    assert not set(map(prompt_text, pairs.train["prompt"])) & set(map(prompt_text, pairs.test["prompt"]))
    assert len(pairs.units) == len(pairs.test)
    assert len(set(pairs.units)) == len(set(map(prompt_text, pairs.test["prompt"])))
    assert min(len(pairs.train), len(pairs.test)) > 500
    # Where all weigh the same, "weighted" is not trained on its own
    assert (set(pairs.train["strength"]) == {1.0}) == (task in WITHOUT_STRENGTH)


def test_weighted_is_simple_contrast_where_no_pair_has_a_strength():
    assert real_name("weighted", "dialogue", 1) == real_name("simple contrast", "dialogue", 1)
    assert real_name("weighted", "code", 1) != real_name("simple contrast", "code", 1)
