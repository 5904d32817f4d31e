import pytest

from melbo.evaluation.tables import cell, markdown, plus_minus
from melbo.maths.statistics import mean_and_deviation, mean_and_error


def test_deviation_is_of_a_measurement_and_error_of_the_mean():
    values = [1.0, None, 3.0, 5.0, 7.0]
    assert mean_and_deviation(values) == pytest.approx((4.0, (20 / 3) ** 0.5))
    assert mean_and_error(values) == pytest.approx((4.0, (20 / 3) ** 0.5 / 2))


@pytest.mark.parametrize(
    ("values", "found", "shown"),
    [([], None, "–"), ([None], None, "–"), ([2.0, None], (2.0, None), "2")],
)
def test_too_few_values_have_no_spread(values, found, shown):
    assert mean_and_deviation(values) == mean_and_error(values) == found
    assert cell(values) == shown


def test_three_digits():
    assert plus_minus([0.12345, 0.0678]) == "0.123 ± 0.068"
    assert plus_minus([None, None]) == "–"


def test_markdown():
    assert markdown(["", "a"], [["x", "1"]]) == "|  | a |\n| --- | --- |\n| x | 1 |\n"
