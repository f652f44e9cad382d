from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd

from runs import run
from zprl_sb3.report_figures import COLORS, draw_across, draw_environment, draw_overview, looks
from zprl_sb3.report_groups import group
from zprl_sb3.report_tables import across_tasks, improvements


def test_the_picture_is_a_png_that_shows_the_curves(tmp_path: Path) -> None:
    groups = group([run([0.2, 0.5, 0.8], 0), run([0.3, 0.6, 0.7], 1), run([0.2, 0.4, 0.5], 0, scale=0.2)])
    styles = looks(each.method for each in groups)
    path = draw_environment(groups, styles, tmp_path / "pictures" / "curves.png")
    image = matplotlib.image.imread(path)
    assert image.shape[0] > 400
    assert image.shape[1] > 800
    assert {file.name for file in path.parent.iterdir()} == {"curves.png"}
    other = matplotlib.image.imread(draw_environment(groups[:1], styles, tmp_path / "other.png"))
    assert image.shape == other.shape
    assert np.abs(image - other).max() > 0.1, "the second group is not to be seen"


def test_every_method_has_looks_of_its_own() -> None:
    names = [f"method {index}" for index in range(24)]
    found = looks([*names, *names])
    assert list(found) == names
    assert len(set(found.values())) == 24
    assert found["method 0"] == (COLORS[0], "-")


def test_there_is_a_row_of_panels_for_the_motion_and_none_for_what_no_run_has(tmp_path: Path) -> None:
    def height(columns: dict[str, object], *left_out: str) -> int:
        found = run([0.2, 0.4], columns=columns)
        found.curve = found.curve.drop(columns=list(left_out))
        groups = group([found])
        styles = looks(each.method for each in groups)
        return int(matplotlib.image.imread(draw_environment(groups, styles, tmp_path / "curves.png")).shape[0])

    plain = height({})
    assert height({"velocity": 0.2, "acceleration": 3.0, "jerk": 80.0}) > plain
    assert height({"velocity": np.nan}) == plain
    assert height({}, "mean_length", "rms_ratio", "context_distance") < plain


def test_the_overview_has_a_panel_for_each_environment(tmp_path: Path) -> None:
    groups = group([run([0.2, 0.5], env_id=f"test/{name}-v0") for name in "ABCD"])
    styles = looks(each.method for each in groups)
    three = matplotlib.image.imread(draw_overview(groups[:3], styles, tmp_path / "three.png"))
    four = matplotlib.image.imread(draw_overview(groups, styles, tmp_path / "four.png"))
    assert four.shape[0] > 1.5 * three.shape[0]
    assert four.shape[1] == three.shape[1]


def test_intervals_are_drawn_where_there_are_some(tmp_path: Path) -> None:
    scores = {"ZPRL": {"A": np.array([0.5, 0.9])}, "DSRL": {"A": np.array([0.4, 0.5])}}
    across, versus = across_tasks(scores), improvements(scores)
    image = matplotlib.image.imread(draw_across(across, versus, looks(scores), tmp_path / "both.png"))
    narrow = across.assign(iqm_low=np.nan, iqm_high=np.nan)
    other = matplotlib.image.imread(draw_across(narrow, versus, looks(scores), tmp_path / "narrow.png"))
    assert np.abs(image - other).max() > 0.1, "the intervals are not to be seen"
    one = {"ZPRL": {"A": np.array([0.5]), "B": np.array([0.6])}}
    assert isinstance(improvements(one), pd.DataFrame)
    assert draw_across(across_tasks(one), improvements(one), looks(one), tmp_path / "one.png").is_file()
