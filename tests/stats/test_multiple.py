import pytest

from toolkit.stats.multiple import holm


def test_holm_by_hand():
    # 4 x 0.01, then 3 x 0.02, then 2 x 0.04, then 0.03, which may not fall below those before it
    assert holm([0.04, 0.01, 0.2, 0.02]) == pytest.approx([0.08, 0.04, 0.2, 0.06])
    assert holm([0.03, 0.02]) == pytest.approx([0.04, 0.04])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
