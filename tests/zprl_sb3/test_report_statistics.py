from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from runs import run
from zprl_sb3.report_groups import group
from zprl_sb3.report_statistics import Scores, curve_over_seeds, final_scores, improvement, interquartile_mean, iqm

rng = np.random.default_rng(5)


def test_the_interval_over_seeds_by_hand() -> None:
    found = curve_over_seeds([run([0.2, 0.4], 0), run([0.4, 0.5], 1), run([0.6, 0.9], 2)], "success_rate")
    assert found["env_steps"].tolist() == [0, 100]
    assert found["mean"].tolist() == pytest.approx([0.4, 0.6])
    # Student's t with 2 degrees of freedom: 4.303. The sample deviations are 0.2 and √0.07.
    half = [4.303 * 0.2 / 3**0.5, 4.303 * 0.07**0.5 / 3**0.5]
    assert (found["mean"] - found["low"]).tolist() == pytest.approx(half)
    assert (found["high"] - found["mean"]).tolist() == pytest.approx(half)


@pytest.mark.parametrize(("runs", "quantile"), [(3, 4.303), (10, 2.262), (31, 2.042), (32, 1.96)])
def test_few_seeds_give_wide_intervals(runs: int, quantile: float) -> None:
    members = [run([index % 2 / 2, 0.5], seed=index) for index in range(runs)]
    found = curve_over_seeds(members, "success_rate")
    deviation = np.std([index % 2 / 2 for index in range(runs)], ddof=1)
    assert found["high"][0] - found["mean"][0] == pytest.approx(quantile * deviation / runs**0.5)


def test_two_seeds_show_their_range() -> None:
    found = curve_over_seeds([run([0.2, 0.5], 0), run([0.4, 0.3], 1)], "success_rate")
    assert found["low"].tolist() == pytest.approx([0.2, 0.3])
    assert found["high"].tolist() == pytest.approx([0.4, 0.5])


def test_curves_of_different_length_end_with_the_shortest_and_are_interpolated() -> None:
    short = run([0.0, 1.0], 0, steps=[0, 100])
    long = run([0.0, 0.5, 1.0], 1, steps=[0, 200, 400])
    found = curve_over_seeds([long, short], "success_rate")
    assert found["env_steps"].tolist() == [0, 100]
    assert found["mean"].tolist() == pytest.approx([0, (1.0 + 0.25) / 2])


def test_a_run_that_has_only_begun_does_not_end_the_others_curve() -> None:
    found = curve_over_seeds([run([0.2, 0.5], 0), run([0.4, 0.3], 1), run([0.3], 2)], "success_rate")
    assert found["mean"].tolist() == pytest.approx([0.3, 0.4])
    assert curve_over_seeds([run([0.2], 0), run([0.4], 1)], "success_rate")["mean"].tolist() == pytest.approx([0.3])


def test_a_single_run_has_the_interval_of_its_own_episodes() -> None:
    single = run([0.25, 0.5])
    found = curve_over_seeds([single], "success_rate")
    assert found["mean"].tolist() == [0.25, 0.5]
    assert found["low"].tolist() == [0.125, 0.375]
    assert found["high"].tolist() == [0.3125, 0.5625]


def test_a_single_run_has_no_interval_of_other_columns() -> None:
    found = curve_over_seeds([run([0.25, 0.5])], "mean_length")
    assert found["mean"].tolist() == found["low"].tolist() == found["high"].tolist() == [87.5, 75]


def test_curves_come_from_the_log_too() -> None:
    members = [run([0.5], seed) for seed in (0, 1)]
    for each, q in zip(members, (0.25, 0.75), strict=True):
        each.training = pd.DataFrame({"env_steps": [80.0, 160.0], "train/q_mean": [q, q]})
    assert curve_over_seeds(members, "train/q_mean")["mean"].tolist() == [0.5, 0.5]


def test_scores_are_the_final_successes_by_method_and_task() -> None:
    runs = [run([0.1, 0.5], 0), run([0.1, 0.75], 1), run([0.1], 2), run([0.1, 0.25], env_id="B")]
    found = final_scores(group([*runs, run([0.1], steering="noise")]))
    assert {task: scores.tolist() for task, scores in found["ZPRL"].items()} == {
        runs[0].env_id: [0.5, 0.75],
        "B": [0.25],
    }
    assert list(found) == ["ZPRL"]  # the other has nothing but its base policy's


def test_the_interquartile_mean_by_hand() -> None:
    assert interquartile_mean(np.array([9.0, 1.0, 2.0, 4.0])) == 3  # of 2 and 4
    assert interquartile_mean(np.array([9.0, 1.0, 2.0])) == 4  # a quarter of three is none
    rows = interquartile_mean(np.array([[0.0, 1, 1, 1, 1, 1, 5, 9], [8.0, 7, 6, 5, 4, 3, 2, 1]]))
    assert rows.tolist() == [1, 4.5]


@pytest.mark.parametrize("count", [1, 2, 5, 6, 8, 11, 30])
def test_the_interquartile_mean_is_scipys_trimmed_mean(count: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    scores = rng.random((3, count))
    assert interquartile_mean(scores) == pytest.approx(stats.trim_mean(scores, 0.25, axis=1))


def test_the_bootstrap_draws_within_each_task() -> None:
    # Within each task all runs are alike: nothing varies, however far apart the tasks are.
    assert iqm({"A": np.full(3, 0.1), "B": np.full(3, 0.9)}) == pytest.approx((0.5, 0.5, 0.5))
    value, low, high = iqm({"A": rng.random(5), "B": rng.random(5)})
    assert 0 < low < value < high < 1


def test_the_bootstrap_interval_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    scores = rng.random(8)
    found = iqm({"A": scores})
    reference = stats.bootstrap(
        (scores,), interquartile_mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert found.value == pytest.approx(stats.trim_mean(scores, 0.25))
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high), abs=0.01)


def test_statistics_are_the_same_every_time() -> None:
    first, second = ({task: rng.random(4) for task in ("A", "B")} for _ in range(2))
    assert iqm(first) == iqm(first)
    assert improvement(first, second) == improvement(first, second)


def test_one_run_of_a_task_is_too_few_for_an_interval() -> None:
    one: Scores = {"A": np.array([0.1, 0.2, 0.3]), "B": np.array([0.5])}
    more: Scores = {"A": np.array([0.1, 0.3]), "B": np.array([0.5, 0.6])}
    for found in (iqm(one), improvement(one, more), improvement(more, one)):
        assert found is not None
        assert np.isfinite(found.value)
        assert np.isnan([found.low, found.high]).all()
    assert np.isfinite(iqm(more)).all()


def test_the_probability_of_improvement_by_hand() -> None:
    # A: of 2 x 2 pairs three are won and one is a tie; B: one of two is won.
    first: Scores = {"A": np.array([0.5, 0.9]), "B": np.array([0.5]), "C": np.array([0.1])}
    second: Scores = {"A": np.array([0.4, 0.5]), "B": np.array([0.4, 0.6])}
    found = improvement(first, second)
    assert found is not None
    assert found.value == pytest.approx((3.5 / 4 + 0.5) / 2)
    other = improvement(second, first)
    assert other is not None
    assert other.value == pytest.approx(1 - found.value)
    assert improvement({"C": first["C"]}, second) is None


def test_means_of_the_same_successes_in_another_order_are_a_tie() -> None:
    first, second = np.array([0.1 + 0.2 + 0.3]), np.array([0.3 + 0.2 + 0.1])
    assert first != second
    found = improvement({"A": first}, {"A": second})
    assert found is not None
    assert found.value == 0.5


def test_the_probability_of_improvement_is_mann_and_whitneys_u() -> None:
    stats = pytest.importorskip("scipy.stats")
    tasks = {task: (rng.integers(0, 5, 6) / 5, rng.integers(0, 5, 4) / 5) for task in ("A", "B", "C")}
    found = improvement(*({task: pair[place] for task, pair in tasks.items()} for place in (0, 1)))
    assert found is not None
    assert found.value == pytest.approx(np.mean([stats.mannwhitneyu(*pair).statistic / 24 for pair in tasks.values()]))
    assert found.low < found.value < found.high
