import pytest

from toolkit.pages.pair_pictures import length_picture, reliability_picture, score_histogram


def test_scores_of_both_sides_share_their_bins():
    picture = score_histogram([1.0, 2.0, 3.0], [0.0, 1.0, -1.0])
    axes = picture.image.axes[0]
    chosen, rejected = (patch.get_xy() for patch in axes.patches)
    assert chosen[:, 0].min() == rejected[:, 0].min() == -1
    assert chosen[:, 0].max() == rejected[:, 0].max() == 3
    assert chosen[:, 1].max() == 1
    assert [line.get_xdata()[0] for line in axes.lines] == [2, 0]  # the means
    assert picture.alt == "Scores: chosen 2 on average, rejected 0 on average."


def test_one_score_for_all_is_a_picture_too():
    assert score_histogram([1.0, 1.0], [1.0, 1.0]).image.axes[0].patches


def test_reliability_stands_at_its_points_with_wilson_bars():
    picture = reliability_picture({"mine": [(0.6, 0.5, 4), (0.9, 1.0, 10)]})
    axes = picture.image.axes[0]
    assert axes.lines[1].get_xydata().tolist() == [[0.6, 0.5], [0.9, 1.0]]
    (bars,) = axes.collections
    # Wilson's interval of 2 of 4, and of 10 of 10: 10 / (10 + 1.96²)
    assert bars.get_segments()[0][:, 1].tolist() == pytest.approx([0.15004, 0.84996], abs=1e-5)
    assert bars.get_segments()[1][:, 1].tolist() == pytest.approx([0.72247, 1.0], abs=1e-5)
    assert picture.alt == "Reliability. mine: said 60%, found 50%, said 90%, found 100%."


def test_the_line_of_lengths_is_the_mean_of_each_tenth():
    lengths = list(range(1, 11))
    picture = length_picture(lengths, [0.0] * 10, lengths, [2.0] * 10)
    line = picture.image.axes[0].lines[-1].get_xydata()
    assert line.tolist() == [[length, 1.0] for length in lengths]
    assert picture.caption == "Black: mean score of each tenth of the responses, by length."


def test_a_picture_of_many_pairs_shows_some_and_says_so():
    many = [float(i) for i in range(1, 1001)]
    picture = length_picture(many, many, many, many)
    points = picture.image.axes[0].lines[0].get_xydata()
    assert (len(points), points[0, 0], points[-1, 0]) == (300, 1, 1000)
    assert "Points: 300 pairs of 1,000, evenly chosen." in picture.caption
