from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from runs import run
from zprl_sb3 import report_tables as tables
from zprl_sb3.report_groups import group
from zprl_sb3.report_text import (
    across_text,
    env_steps,
    evaluation_text,
    group_text,
    html,
    improvement_text,
    interval,
    markdown,
    run_text,
    smoothness_text,
)


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0"), (480, "480"), (9_999, "9999"), (31_706, "32k"), (252_099, "252k"), (1_214_000, "1.21M"), (np.nan, "–")],
)
def test_env_steps_as_they_are_read(count: float, words: str) -> None:
    assert env_steps(count) == words


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"x": 0.85, "x_low": 0.794, "x_high": 0.9}, "0.85 (0.79–0.90)"),
        ({"x": 0.85, "x_low": 0.62, "x_high": 1.08}, "0.85 (0.62–1.00)"),
        ({"x": 0.05, "x_low": -0.2, "x_high": 0.3}, "0.05 (0.00–0.30)"),
        ({"x": 0.85, "x_low": np.nan, "x_high": np.nan}, "0.85"),
        ({"x": np.nan, "x_low": np.nan, "x_high": np.nan}, "–"),
        ({}, "–"),
    ],
)
def test_shares_with_their_intervals(row: dict[str, float], words: str) -> None:
    assert interval(row, "x") == words


def test_a_table_of_groups() -> None:
    runs = [run([0.2, 0.9], 0), run([0.2, 0.7], 1), run([0.2, 0.4], scale=0.2)]
    assert markdown(group_text(tables.by_group(group(runs)))).splitlines() == [
        "| environment | method | seeds | env steps | base | env steps to 0.9 | final (mean of last 5) |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| test/PointReach-v0 | ZPRL, λ = 0.5 | 2 | 100 | 0.20 | 100 (1 of 2) | 0.80 (0.70–0.90) |",
        "| test/PointReach-v0 | ZPRL, λ = 0.2 | 1 | 100 | 0.20 | – | 0.40 |",
    ]
    figures = {"success": 0.5, "success_low": 0.4, "success_high": 0.6}
    runs[2].evaluations = {"steered": figures, "steered, zero noise": figures}
    table = group_text(tables.by_group(group(runs)))
    assert table["final models"].tolist() == table["zero flow noise"].tolist() == ["–", "0.50"]


def test_a_table_of_runs_without_a_decoder() -> None:
    embedding = run([0.2, 0.4])
    embedding.curve = embedding.curve.drop(columns=["context_distance", "displacement"])
    table = run_text(tables.by_run(group([embedding])))
    assert table.iloc[0].tolist()[:7] == ["test/PointReach-v0", "ZPRL, λ = 0.5", "0", "0.20", "0.40", "0.40", "100"]
    assert "‖c̃ − c‖" not in table
    assert table["RMS(λΔz)/RMS(z)"].tolist() == ["0.20"]
    assert table["folder"].tolist() == [f"{Path.cwd().name}/run-0"]


def test_a_table_of_final_evaluations() -> None:
    figures = {"success": 0.5, "success_low": 0.4, "success_high": 0.6, "episodes": 200, "mean_length": 80.0}
    runs = [run([0.5], seed) for seed in (0, 1)]
    runs[0].evaluations = {"steered": figures | {"env_steps": 12_000}, "steered, zero noise": figures}
    runs[1].evaluations = {"steered": figures}
    table = evaluation_text(tables.final_evaluations(group(runs), [])).drop(columns="folder")
    assert table.to_numpy().tolist() == [
        ["ZPRL, λ = 0.5", "0", "12k", "0.500 (0.400–0.600)", "0.500 (0.400–0.600)", "200", "80.0"],
        ["ZPRL, λ = 0.5", "1", "–", "0.500 (0.400–0.600)", "–", "200", "80.0"],
    ]


def test_tables_across_tasks() -> None:
    scores = {name: {"A": np.array([0.5 + 0.1 * place])} for place, name in enumerate(("ZPRL", "DSRL", "TQC"))}
    scores["SOE"] = {"B": np.array([0.5])}
    across = across_text(tables.across_tasks(scores))
    assert across.iloc[0].tolist() == ["ZPRL", "1", "1", "0.50"]
    matrix = improvement_text(tables.improvements(scores | {"SOE": {"B": np.array([0.5])}}))
    assert list(matrix) == ["P(row > column)", "DSRL", "TQC"]
    assert matrix.to_numpy().tolist() == [["ZPRL", "0.00", "0.00"], ["DSRL", "", "0.00"]]


def test_a_table_of_smoothness_has_a_column_for_each_method() -> None:
    columns = {"velocity": [0.15, 0.2, 0.25, 0.3], "jerk": [5.0, 50.0, 100.4, 2000.0]}
    runs = [run([0.5] * 4, columns=columns), run([0.5] * 2, columns={"velocity": 1.0}, steering="action", scale=0.1)]
    assert smoothness_text(tables.smoothness(group(runs))).to_numpy().tolist() == [
        ["velocity (m/s)", "0", "0", "0.15", "1.00"],
        ["velocity (m/s)", "⅓", "100", "0.20", "1.00"],
        ["velocity (m/s)", "⅔", "200", "0.25", "–"],
        ["velocity (m/s)", "1", "300", "0.30", "–"],
        ["jerk (m/s³)", "0", "0", "5.00", "–"],
        ["jerk (m/s³)", "⅓", "100", "50.0", "–"],
        ["jerk (m/s³)", "⅔", "200", "100", "–"],
        ["jerk (m/s³)", "1", "300", "2000", "–"],
    ]


def test_what_files_say_cannot_break_a_table() -> None:
    table = pd.DataFrame([{"method": "a | <b>&", "x": "1"}])
    assert markdown(table).splitlines()[-1] == "| a \\| <b>& | 1 |"
    assert '<tr><td class="word">a | &lt;b&gt;&amp;</td><td>1</td></tr>' in html(table)


def test_an_environment_is_named_once_in_html() -> None:
    table = pd.DataFrame([{"environment": name, "x": "1"} for name in ("A", "A", "B")])
    assert html(table).splitlines()[5:8] == [
        '<tr><td class="word">A</td><td>1</td></tr>',
        '<tr><td class="word"></td><td>1</td></tr>',
        '<tr class="new"><td class="word">B</td><td>1</td></tr>',
    ]
    methods = html(table.rename(columns={"environment": "method"}))
    assert methods.count('<td class="word">A</td>') == 2
    assert "new" not in methods
