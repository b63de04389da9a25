"""The picture of the critic's values: right and wrong solutions are told apart without colours."""

import math

from hpt_trl.methods.critic.results import figure_of

PAIRS = [
    {
        "prompt": f"What is {pair} + 1?",
        "right": {"values": [None, *(0.4 + 0.05 * place + 0.1 * math.sin(place) for place in range(12 + pair))]},
        "wrong": {"values": [None, *(0.4 - 0.03 * place + 0.1 * math.cos(place) for place in range(9 + pair))]},
    }
    for pair in range(3)
]


def test_right_and_wrong_solutions_have_dashes_of_their_own():
    figure = figure_of(PAIRS)
    axes = [axis for axis in figure.axes if axis.get_visible()]
    assert len(axes) == len(PAIRS)
    for axis in axes:
        curves = {line.get_label(): line for line in axis.get_lines() if line.get_label().endswith("solution")}
        assert {name: line.get_linestyle() for name, line in curves.items()} == {
            "right solution": "-",
            "wrong solution": "--",
        }
        # A mean has the dashes of its curve and is thinner.
        for mean in set(axis.get_lines()) - set(curves.values()):
            (curve,) = (line for line in curves.values() if line.get_color() == mean.get_color())
            assert mean.get_linestyle() == curve.get_linestyle() and mean.get_linewidth() < curve.get_linewidth()
