"""Several comparisons at once."""

from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    r"""
    P-values that hold for all comparisons of a family together.

    In rising order, $\tilde p_{(i)} = \max_{j \le i} \min(1, (m - j + 1) \, p_{(j)})$.

    Holm (1979), "A simple sequentially rejective multiple test procedure", Scand. J. Stat. 6.

    Args:
        p_values (`Sequence[float]`):
            P-value of each of `m` comparisons by itself.

    Returns:
        `list[float]`: In the order given.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - place) * p_values[i]))
        adjusted[i] = highest
    return adjusted
