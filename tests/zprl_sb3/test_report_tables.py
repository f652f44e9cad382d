from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from runs import ENV, curve, run
from zprl_sb3.report import Base, Run
from zprl_sb3.report_groups import group
from zprl_sb3.report_tables import (
    across_tasks,
    by_group,
    by_run,
    curves,
    final_evaluations,
    improvements,
    smoothness,
)


def figures(success: float, **more: float) -> dict[str, float]:
    interval = {"success": success, "success_low": success - 0.1, "success_high": success + 0.1}
    return interval | {"episodes": 200, "mean_length": 80} | more


def evaluated(found: Run, steered: float, still: float | None = None) -> Run:
    found.evaluations = {"steered": figures(steered)}
    if still is not None:
        found.evaluations["steered, zero noise"] = figures(still)
    return found


def test_a_group_by_hand() -> None:
    # The first and the third reach 0.9, after 200 and 100 env steps.
    runs = [run([0.2, 0.4, 0.9], 0), run([0.4, 0.5, 0.6], 1), run([0.3, 0.9, 0.9, 0.6], 2)]
    evaluated(runs[0], 0.7, 0.5)
    evaluated(runs[1], 0.5)
    (row,) = by_group(group(runs)).to_dict("records")
    assert (row["environment"], row["method"], row["label"], row["seeds"]) == (ENV, "ZPRL", "ZPRL, λ = 0.5", 3)
    assert row["base"] == pytest.approx(0.3)
    assert (row["env_steps_to_goal"], row["reached"]) == (150, 2)
    assert (row["env_steps_low"], row["env_steps_high"]) == (200, 300)
    finals = [0.65, 0.55, 0.8]
    half = 4.303 * np.std(finals, ddof=1) / 3**0.5
    assert row["final"] == pytest.approx(np.mean(finals))
    assert [row["final_low"], row["final_high"]] == pytest.approx([row["final"] - half, row["final"] + half])
    assert row["evaluated"] == 2
    assert [row["steered"], row["steered_low"], row["steered_high"]] == pytest.approx([0.6, 0.5, 0.7])
    assert row["zero_noise"] == 0.5
    assert np.isnan(row["zero_noise_low"])


def test_a_group_that_has_only_begun_has_gaps() -> None:
    (row,) = by_group(group([run([0.2])])).to_dict("records")
    assert row["base"] == 0.2
    assert row["reached"] == row["evaluated"] == 0
    assert np.isnan([row["env_steps_to_goal"], row["final"], row["steered"], row["zero_noise"]]).all()


def test_runs_by_hand() -> None:
    runs = [run([0.1, 0.5, 0.9, 0.6, 0.6, 0.6, 0.7], seed=3), run([0.2], seed=4)]
    runs[1].curve = runs[1].curve.drop(columns=["rms_ratio", "context_distance"])
    table = by_run(group(runs))
    columns = ["seed", "base", "final", "best", "env_steps", "rms_ratio", "context_distance", "folder"]
    assert table[columns].iloc[0].tolist() == [3, 0.1, pytest.approx(0.68), 0.9, 600, 0.2, 1.5, "run-3"]
    assert table[["seed", "best", "env_steps"]].iloc[1].tolist() == [4, 0.2, 0]
    assert table[["final", "rms_ratio", "context_distance"]].iloc[1].isna().all()


def test_all_evaluations_are_in_one_table() -> None:
    soe = run([0.3], 5, learner="soe")
    soe.curve = soe.curve[["chunks", "env_steps", "success_rate", "ci_low", "ci_high", "mean_length", "mean_return"]]
    table = curves(group([run([0.1, 0.2], 3), run([0.5], 4), soe]))
    assert table["seed"].tolist() == [3, 3, 4, 5]
    assert table["method"].tolist() == ["ZPRL"] * 3 + ["SOE"]
    assert table["success_rate"].tolist() == [0.1, 0.2, 0.5, 0.3]
    assert table["rms_ratio"].isna().tolist() == [False] * 3 + [True]


def test_final_evaluations_have_the_base_policy_first_and_the_control_beside_them() -> None:
    ways = {"base through c": figures(0.25), "base through c, zero noise": figures(0.125), "another": figures(0.5)}
    runs = [evaluated(run([0.5], 0), 0.75, 0.7), evaluated(run([0.5], 1), 0.8), run([0.5], 2)]
    table = final_evaluations(group(runs), [Base(Path("base"), ENV, ways)])
    assert table["policy"].tolist() == ["base through c", "another", "ZPRL, λ = 0.5", "ZPRL, λ = 0.5"]
    assert table["seed"].tolist()[2:] == [0, 1]
    assert table["success"].tolist() == [0.25, 0.5, 0.75, 0.8]
    np.testing.assert_array_equal(table["zero_noise_success"], [0.125, np.nan, 0.7, np.nan])
    assert table["folder"].tolist() == ["base", "base", "run-0", "run-1"]
    assert final_evaluations(group(runs[2:]), []).empty


def test_methods_across_tasks() -> None:
    scores = {
        "ZPRL": {"A": np.array([0.5, 0.9]), "B": np.array([0.5])},
        "DSRL": {"A": np.array([0.4, 0.5])},
        "other": {"C": np.array([0.5, 0.6])},
    }
    across = across_tasks(scores)
    assert across[["method", "tasks", "runs", "fewest_runs_of_a_task"]].to_numpy().tolist() == [
        ["ZPRL", 2, 3, 1],
        ["DSRL", 1, 2, 2],
        ["other", 1, 2, 2],
    ]
    assert across["iqm"].tolist() == pytest.approx([1.9 / 3, 0.45, 0.55])
    assert across["iqm_low"].isna().tolist() == [True, False, False]
    table = improvements(scores)
    assert table[["method", "over", "tasks"]].to_numpy().tolist() == [["ZPRL", "DSRL", 1], ["DSRL", "ZPRL", 1]]
    assert table["probability"].tolist() == pytest.approx([3.5 / 4, 0.5 / 4])


def test_one_method_improves_over_none() -> None:
    assert improvements({"ZPRL": {"A": np.array([0.5])}}).empty


def moving(count: int, seed: int = 0, factor: float = 1.0, **facts: object) -> Run:
    velocity = factor * np.arange(count)
    return run([0.5] * count, seed, columns={"velocity": velocity, "acceleration": 10 * velocity}, **facts)  # type: ignore[arg-type]


def test_smoothness_at_four_times_by_hand() -> None:
    table = smoothness(group([moving(13), moving(13, 1, factor=3), run([0.5], steering="noise")]))
    assert table["share"].tolist() == ["0", "⅓", "⅔", "1"]
    assert table["env_steps"].tolist() == [0, 400, 800, 1200]
    assert table["velocity"].tolist() == [0, 8, 16, 24]
    assert table["acceleration"].tolist() == [0, 80, 160, 240]
    assert "jerk" not in table


def test_smoothness_of_a_run_that_still_trains_is_not_that_of_its_end() -> None:
    table = smoothness(group([moving(13), moving(6, steering="action")]))
    assert table["method"].tolist() == ["ZPRL"] * 4 + ["Policy Decorator"] * 2
    assert table["env_steps"].tolist()[4:] == [0, 400]


def test_smoothness_leaves_out_evaluations_without_it() -> None:
    gaps = run([0.5] * 4, columns={"velocity": [np.nan, 1.0, 2.0, 3.0]})
    assert smoothness(group([gaps]))["velocity"].tolist() == [1, 2, 3]
    assert smoothness(group([run([0.5, 0.5])])).empty
    pd.testing.assert_frame_equal(curve([0.5] * 4).assign(velocity=gaps.curve["velocity"]), gaps.curve)
