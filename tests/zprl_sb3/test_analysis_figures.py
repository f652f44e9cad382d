from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd

from zprl_sb3.analysis import MEASURES, POINTS, TRAINED, UNIFORM
from zprl_sb3.analysis_figures import DPI, WIDTH, draw_maps, draw_shift, draw_smoothness, draw_traces
from zprl_sb3.report_figures import COLORS

LARGEST = 300_000  # bytes of a picture


def shows(path: Path, color: str) -> int:
    """Return how many pixels of a picture have a colour, after checking that it is one for a paper."""
    assert 10_000 < path.stat().st_size < LARGEST
    image = matplotlib.image.imread(path)
    assert image.shape[1] == WIDTH * DPI
    expected = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    return int((np.abs(image[..., :3] - expected).max(axis=-1) < 0.02).sum())


def test_maps_of_as_many_points_as_there_can_be(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scales = [0.1, 0.2, 0.5]
    count = POINTS // 4
    tables = [
        pd.DataFrame({"space": space, "scale": scale, "x": rng.normal(size=count), "y": rng.normal(size=count)})
        for space in ("context", "actions")
        for scale in (0.0, *scales)
    ]
    found = draw_maps(pd.concat(tables), tmp_path / "maps.png")
    assert matplotlib.image.imread(found).shape[0] > 1000
    assert found.stat().st_size < LARGEST


def test_distances_by_scale(tmp_path: Path) -> None:
    scales = np.linspace(0, 1, 5)
    tables = [
        pd.DataFrame(
            {"delta": way, "scale": scales}
            | {f"{name}{end}": slope * scales for name in MEASURES for end in ("", "_low", "_high")}
        )
        for way, slope in ((TRAINED, 1.0), (UNIFORM, 2.0))
    ]
    found = draw_shift(pd.concat(tables), 0.5, tmp_path / "shift.png")
    assert shows(found, COLORS[1]) > 300
    assert shows(found, COLORS[6]) > 100


def trace(policy: str, seed: int, hand: int, success: bool) -> pd.DataFrame:
    seconds = np.linspace(0.05, 5, 100)
    places = {axis: np.sin(seconds + shift + hand) for shift, axis in enumerate("xyz")}
    about = {"policy": policy, "seed": seed, "success": success, "hand": hand}
    return pd.DataFrame(about | {"seconds": seconds} | places)


def test_traces_of_one_and_of_two_hands(tmp_path: Path) -> None:
    one = [trace(policy, seed, 0, seed > 1) for policy in ("base policy", "steered") for seed in range(6)]
    path = draw_traces(pd.concat(one), tmp_path / "traces.png")
    assert shows(path, COLORS[1]) > 300
    two = [*one, *(trace(policy, 0, 1, True) for policy in ("base policy", "steered"))]
    other = draw_traces(pd.concat(two), tmp_path / "two.png")
    assert (matplotlib.image.imread(path) != matplotlib.image.imread(other)).any()


def test_smoothness_by_checkpoint(tmp_path: Path) -> None:
    curve = pd.DataFrame(
        {"env_steps": [0.0, 1e4, 2e4], "velocity": [0.1, 0.2, 0.3], "acceleration": [2.0, np.nan, 4.0]}
    )
    path = draw_smoothness(curve.assign(acceleration=[2.0, np.nan, 4.0], jerk=100.0), tmp_path / "smoothness.png")
    assert shows(path, COLORS[1]) > 300
    assert shows(path, COLORS[0]) > 100
