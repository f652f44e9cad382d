"""The programs in ``docs/real-robot.md`` do what the page says, on a kinematic robot of the tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("zprl_sb3.robot_envs.real.tasks")

TASK = """
rate: 30
max_episode_steps: 30
arms: {arm: {joints: 6}}
control: {representation: axis_angle}
observation: {proprio: [arm/position, arm/rotation, arm/gripper]}
cameras: {front: {size: [48, 64]}}
robot: {driver: local}
drivers:
  robot: {driver: lab.kinematic}
  cameras: {front: {driver: lab.kinematic}}
limits:
  arm:
    workspace: [[0.2, -0.3, 0.02], [0.6, 0.3, 0.5]]
    speed: 0.5
    acceleration: 4.0
    rotation_speed: 1.5
    rotation_acceleration: 12.0
    step: 0.15
supervisor: {kind: page}
"""


@pytest.mark.slow
def test_the_programs_of_the_first_run(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "my_robot.yml").write_text(TASK)
    programs = re.findall(r"```python\n(.*?)```", (repository / "docs" / "real-robot.md").read_text(), re.DOTALL)
    cameras, numbers, motions = (program.replace("range(100)", "range(3)") for program in programs)

    def run(program: str) -> str:
        path = os.pathsep.join([str(repository), str(repository / "tests" / "shared")])
        environment = os.environ | {"PYTHONPATH": path}
        command = [sys.executable, "-c", program]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert re.match(r"front: \(48, 64, 3\), \d+\.\d frames per second, \d+ ms old", run(cameras))
    assert (tmp_path / "front.png").stat().st_size > 100
    assert "'arm/position': [0.3, 0.0, 0.2]" in run(numbers)
    told = run(motions).splitlines()
    assert told[0].startswith("told 0.02 m, went 0.020 m")
    assert told[1].startswith("told 0.0 m, went 0.000 m")
    # It began at 0.2 m, and the box ends at 0.5 m.
    assert told[2].startswith("told 1.0 m, went 0.300 m")
    assert "arm/workspace" in told[2]
