"""Models of several tests of rewards."""

import pytest

from tests.tiny import spread_head
from toolkit import AutoModelForMultiScaleReward, MultiScaleSettings
from toolkit.data.tokens import segment_boundary_ids


@pytest.fixture
def several(tiny_folder, tokenizer):
    """A reward model with several outputs, its head spread."""

    def make(**options):
        settings = MultiScaleSettings(context="gate", annotators=["Ann", "Bo"], **options)
        model = AutoModelForMultiScaleReward.from_pretrained(tiny_folder(), settings)
        model.set_layout([], segment_boundary_ids(tokenizer), True)
        return spread_head(model).eval()

    return make
