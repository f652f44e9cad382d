"""What a study searches: which files are refused, and what a trial becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from helpers import POINT, point_demonstrations, tiny_policy
from zprl_sb3.calibration import calibrate
from zprl_sb3.checkpoint import CheckpointError, save_policy
from zprl_sb3.tuning import Tuning, TuningError, read_tuning

SCALE = {"scale": {"low": 0.1, "high": 2, "log": True}}


@pytest.fixture
def tuning(tmp_path: Path) -> Any:
    """Read a file with such content."""
    policy = save_policy(tiny_policy(env_id=POINT), tmp_path / "policy")

    def read(**content: Any) -> Tuning:
        (tmp_path / "my.yml").write_text(yaml.safe_dump({"policy": str(policy), "search": SCALE} | content))
        return read_tuning(tmp_path / "my.yml")

    return read


def test_settings_are_drawn_as_their_kind_asks(tuning: Any) -> None:
    search = SCALE | {
        "algorithm.utd": {"low": 1, "high": 4},
        "algorithm.tau": {"low": 0.0, "high": 1, "step": 0.25},
        "algorithm.gradient_steps": [-1, 4],
        "algorithm.policy_kwargs.net_arch": [[8], [16, 16]],
    }
    assert tuning(search=search).space() == {
        "scale": FloatDistribution(0.1, 2.0, log=True),
        "algorithm.utd": IntDistribution(1, 4),
        "algorithm.tau": FloatDistribution(0.0, 1.0, step=0.25),
        "algorithm.gradient_steps": CategoricalDistribution([-1, 4]),
        "algorithm.policy_kwargs.net_arch": CategoricalDistribution(["[8]", "[16, 16]"]),
    }


def test_a_run_gets_the_settings_of_all_trials_and_then_its_own(tuning: Any, tmp_path: Path) -> None:
    read = tuning(set=["n_timesteps=60", "scale=3"])
    job = read.job(tmp_path / "0007-2", 2, {"scale": 1e-05, "algorithm.policy_kwargs.net_arch": "[8]", "chunk": None})
    ((program, *arguments),) = job.commands
    assert program == "train"
    assert arguments[arguments.index("--set") + 1 :] == [
        "n_timesteps=60",
        "scale=3",
        "scale=1e-05",
        "algorithm.policy_kwargs.net_arch=[8]",
        "chunk=null",
    ]
    assert (job.name, job.n_timesteps, arguments[arguments.index("--seed") + 1]) == ("0007-2", 60, "2")


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ({"trials": 3}, TuningError, "and knows nothing else"),
        ({"policy": None}, TuningError, "needs a policy"),
        ({"policy": "nowhere"}, CheckpointError, "nowhere"),
        ({"algo": "soe"}, TuningError, "algo is one of .* not 'soe'"),
        ({"pruner": "sharp"}, TuningError, "pruner is one of median, hyperband, none, not 'sharp'"),
        ({"seeds": 3}, TuningError, "seeds is a list of whole numbers"),
        ({"set": ["scales=1"]}, KeyError, "unknown setting 'scales'"),
        ({"search": ["scale"]}, TuningError, "search is a table"),
        ({"search": {"scales": {"low": 1, "high": 2}}}, KeyError, "unknown setting 'scales'"),
        ({"search": {"n_timesteps": [10, 20]}}, TuningError, "n_timesteps is the same in all trials"),
        ({"search": {"scale": {"low": 0.1}}}, TuningError, "search of scale: it needs {low, high}"),
        ({"search": {"scale": {"low": "a", "high": 2}}}, TuningError, "a range is one of numbers"),
        ({"search": {"scale": {"low": 2.0, "high": 1.0}}}, TuningError, "search of scale: .*low <= high"),
        ({"search": {"algorithm.utd": {"low": 0.5, "high": 2}}}, TuningError, "whole number, and so are low"),
        ({"search": {"sample_latent": {"low": 0, "high": 1}}}, TuningError, "a range is one of numbers"),
        ({"search": {"scale": "auto"}, "demonstrations": "nowhere"}, TuningError, "no demonstrations at nowhere"),
        ({"set": ["demonstrations=x"], "algo": "dsrl"}, ValueError, "with steering latent"),
        ({"search": {"gamma": "auto"}}, TuningError, "only λ"),
        ({"search": {"scale": "auto"}, "algo": "dsrl"}, TuningError, "only λ"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    tuning: Any, content: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        tuning(**content)


def test_without_a_file_the_calibrated_scale_is_searched(tmp_path: Path) -> None:
    policy = save_policy(tiny_policy(env_id=POINT), tmp_path / "policy")
    demonstrations = point_demonstrations(tmp_path / "demos.hdf5", [20, 30])
    low, high = calibrate(policy, demonstrations).scale_range
    expected = {"scale": FloatDistribution(low / 2, 2 * high, log=True)}
    assert read_tuning(None, policy, demonstrations).space() == expected
    assert read_tuning(None, policy, find=lambda path: (demonstrations, None)).space() == expected
    with pytest.raises(TuningError, match="name their file"):
        read_tuning(None, policy).space()
