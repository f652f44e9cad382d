from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import yaml

from zprl_sb3.callbacks import write_rows
from zprl_sb3.report import ReportError, Run, curve_over_seeds, draw, group, markdown_table, read_run


def curve(successes: list[float], steps: list[int] | None = None, **columns: Any) -> pd.DataFrame:
    rates = np.array(successes)
    table = {
        "chunks": np.arange(len(rates)) * 10.0,
        "env_steps": np.array(steps or [100 * index for index in range(len(rates))], float),
        "success_rate": rates,
        "ci_low": rates - 0.125,
        "ci_high": rates + 0.0625,
        "mean_length": 100 - 50 * rates,
        "mean_return": rates,
        "rms_z": 1.0,
        "rms_step": 0.2,
        "rms_ratio": 0.2,
        "context_distance": 1.5,
        "displacement": 0.5,
    }
    return pd.DataFrame(table | columns)


def run(successes: list[float], seed: int = 0, scale: float = 0.5, steps: list[int] | None = None, **facts: Any) -> Run:
    facts = {"base policy": "abc", "scale": scale} | facts
    return Run(Path(f"run-{seed}"), "test/PointReach-v0", seed, facts, curve(successes, steps))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a run folder as `zprl train` writes it."""
    (tmp_path / "run").mkdir()
    settings = {"scale": 0.3, "n_timesteps": 100, "algorithm": {"tau": 0.1}}
    settings = {"env_id": "test/A-v0", "seed": 4, "policy": "abcdefghij", "settings": settings}
    (tmp_path / "run" / "run.yml").write_text(yaml.safe_dump(settings))
    write_rows(tmp_path / "run" / "evaluations.csv", curve([0.25, 0.75]).to_dict("records"))
    return tmp_path / "run"


def test_a_run_folder_is_read(folder: Path) -> None:
    found = read_run(folder)
    assert (found.env_id, found.seed, found.folder) == ("test/A-v0", 4, folder)
    assert found.facts == {"base policy": "abcdefgh", "scale": 0.3, "algorithm.tau": 0.1}
    assert found.name == "test/A-v0, λ = 0.3"
    pd.testing.assert_frame_equal(found.curve, curve([0.25, 0.75]))


@pytest.mark.parametrize("missing", ["run.yml", "evaluations.csv"])
def test_a_folder_that_is_no_run_is_named(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(ReportError, match=f"has no {missing}: it is not a run of `zprl train`") as caught:
        read_run(folder)
    assert str(folder) in str(caught.value)


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="nowhere has no run"):
        read_run(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("run.yml", "just a text"),
        ("run.yml", "{seed: [1"),
        ("run.yml", "{env_id: test/A-v0, seed: 1}"),
        ("run.yml", "{env_id: test/A-v0, seed: 1, policy: abc, settings: [scale]}"),
        ("run.yml", "{env_id: test/A-v0, seed: 1, policy: abc, settings: text}"),
        ("evaluations.csv", ""),
        ("evaluations.csv", "chunks,env_steps,success_rate\n"),
        ("evaluations.csv", "a,b\n1,2\n"),
        ("evaluations.csv", "env_steps,success_rate\n0,0.5\n"),
        ("evaluations.csv", "env_steps,success_rate,ci_low,ci_high\n0,many,0,1\n"),
        ("evaluations.csv", "env_steps,success_rate,ci_low,ci_high\n0,0.5,0,1\n100,0.6\n"),
    ],
)
def test_a_damaged_run_is_named(folder: Path, file: str, content: str) -> None:
    (folder / file).write_text(content)
    with pytest.raises(ReportError) as caught:
        read_run(folder)
    assert str(folder / file) in str(caught.value)


def test_runs_that_differ_in_their_seed_only_belong_together() -> None:
    first, second, other = run([0.5], seed=0), run([0.6], seed=1), run([0.7], seed=0, scale=0.2)
    assert group([first, other, second]) == {
        "test/PointReach-v0, λ = 0.5": [first, second],
        "test/PointReach-v0, λ = 0.2": [other],
    }


def test_runs_on_another_policy_or_with_other_settings_stay_apart() -> None:
    first, second = run([0.5], seed=0), run([0.6], seed=1)
    policy, setting = run([0.7], **{"base policy": "def"}), run([0.8], **{"algorithm.tau": 0.1})
    other = run([0.7], scale=0.2)
    assert group([first, policy, other, second]) == {
        "test/PointReach-v0, λ = 0.5, base policy = abc": [first, second],
        "test/PointReach-v0, λ = 0.5, base policy = def": [policy],
        "test/PointReach-v0, λ = 0.2": [other],
    }
    assert list(group([first, setting])) == [
        "test/PointReach-v0, λ = 0.5, algorithm.tau = None",
        "test/PointReach-v0, λ = 0.5, algorithm.tau = 0.1",
    ]
    assert "base policy = def" in markdown_table([first, policy]).splitlines()[-1]


def test_runs_whose_settings_read_alike_belong_together() -> None:
    missing, null = run([0.5], seed=0), run([0.6], seed=1, **{"algorithm.clip": None})
    number, text = (run([0.7], seed=index, scale=0.2, task=task) for index, task in enumerate((1, "1")))
    runs = [missing, null, number, text]
    assert list(group(runs).values()) == [[missing, null], [number, text]]
    assert len(markdown_table(runs).splitlines()) == 2 + 4


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
    members = [run([index % 2 / 2], seed=index) for index in range(runs)]
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


def test_a_single_run_has_the_interval_of_its_own_episodes() -> None:
    single = run([0.25, 0.5])
    found = curve_over_seeds([single], "success_rate")
    assert found["mean"].tolist() == [0.25, 0.5]
    assert found["low"].tolist() == [0.125, 0.375]
    assert found["high"].tolist() == [0.3125, 0.5625]


def test_a_single_run_has_no_interval_of_other_columns() -> None:
    found = curve_over_seeds([run([0.25, 0.5])], "mean_length")
    assert found["mean"].tolist() == found["low"].tolist() == found["high"].tolist() == [87.5, 75]


def test_the_picture_is_a_png_that_shows_the_curves(tmp_path: Path) -> None:
    runs = [run([0.2, 0.5, 0.8], 0), run([0.3, 0.6, 0.7], 1), run([0.2, 0.4, 0.5], 0, scale=0.2)]
    path = draw(runs, tmp_path / "pictures" / "curves.png")
    image = matplotlib.image.imread(path)
    assert image.shape[0] > 400
    assert image.shape[1] > 800
    assert {file.name for file in path.parent.iterdir()} == {"curves.png"}
    other = matplotlib.image.imread(draw(runs[:2], tmp_path / "other.png"))
    assert image.shape == other.shape
    assert np.abs(image - other).max() > 0.1, "the second group is not to be seen"


def test_a_run_without_a_decoder_is_drawn_and_listed_too(tmp_path: Path) -> None:
    embedding = run([0.2, 0.4])
    embedding.curve = embedding.curve.drop(columns=["context_distance", "displacement"])
    assert draw([embedding], tmp_path / "curves.png").stat().st_size > 10_000
    assert markdown_table([embedding]).splitlines()[-1].endswith("| 0.20 | – |")


def test_a_run_without_diagnostics_is_drawn_and_listed_too(folder: Path) -> None:
    (folder / "evaluations.csv").write_text("env_steps,success_rate,ci_low,ci_high\n0,0.5,0.4,0.6\n")
    assert draw([read_run(folder)], folder / "curves.png").stat().st_size > 10_000
    assert markdown_table([read_run(folder)]).splitlines()[-1].endswith("| 0 | – | – |")


def test_the_table_has_a_row_per_run_by_hand() -> None:
    table = markdown_table([run([0.1, 0.5, 0.9, 0.6, 0.6], seed=3), run([0.2], seed=4)])
    header, rule, first, second = table.splitlines()
    assert header.count("|") == rule.count("|") == first.count("|") == second.count("|")
    # Base, mean of the last three, best, env steps, ratio, distance.
    assert first == "| test/PointReach-v0, λ = 0.5 | 3 | 0.10 | 0.70 | 0.90 | 400 | 0.20 | 1.50 |"
    assert second == "| test/PointReach-v0, λ = 0.5 | 4 | 0.20 | 0.20 | 0.20 | 0 | 0.20 | 1.50 |"
