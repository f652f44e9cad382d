"""Demonstrations behind the limits: the arms come to the leader slowly, and only then follow it and are recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np
import pytest
from people import ScriptedPerson
from robot_tasks import TASK

from arms import KinematicRobot, SyntheticCamera
from zprl_sb3.pretrain.recording import Episode
from zprl_sb3.robot_envs.real.env import RealRobotEnv
from zprl_sb3.robot_envs.real.episodes import ending_of, episode_files, read_episode
from zprl_sb3.robot_envs.real.recorder import follow
from zprl_sb3.robot_envs.real.robots import LeaderError, RobotError, Signal, Station, Stopped, Values
from zprl_sb3.robot_envs.real.tasks import guarded, load_task

SPEED = 0.4  # m/s of the limits; half of it on the way to the leader
LIMITS = {**TASK["limits"], "arm": {**TASK["limits"]["arm"], "speed": SPEED}}


class Leader(KinematicRobot):
    """Is held somewhere; fails when it is told to."""

    def __init__(self, x: float) -> None:
        super().__init__()
        self.connect()
        self.x = x

    def get_observation(self) -> Values:
        return super().get_observation() | {"arm/position": np.array([self.x, 0.0, 0.2])}


class Timed(KinematicRobot):
    """Notes when it was told what."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def send_action(self, action: Values) -> None:
        self.times.append(time.monotonic())
        super().send_action(action)


class Lab:
    """A robot behind its limits, who stands beside it, and what is recorded."""

    def __init__(self, task: Path, folder: Path, script: Any) -> None:
        self.robot, self.person, self.folder = Timed(), ScriptedPerson(script), folder
        station = Station(guarded(load_task(task), self.robot), {"front": SyntheticCamera()})
        self.env = RealRobotEnv(task, folder, station=station, supervisor=self.person)
        self.guard: Any = station.robot

    def when(self, phase: str, act: Callable[[], object]) -> None:
        """Do something when the person is first shown a message."""
        show = self.person.show

        def shown(status: Any, frames: Any) -> None:
            show(status, frames)
            if phase in (status.phase, status.message.partition(",")[0]):
                self.person.show = show  # type: ignore[method-assign]
                act()

        self.person.show = shown  # type: ignore[method-assign]

    def recorded(self) -> Episode:
        """End the session, and return the first episode."""
        self.env.close()
        return read_episode(episode_files(self.folder)[0]).episode


@pytest.fixture
def lab(write_task: Callable[..., Path], tmp_path: Path) -> Iterator[Lab]:
    task = write_task(limits=LIMITS, max_episode_steps=1000)
    lab = Lab(task, tmp_path / "demos", [{20: Signal.SUCCESS}] * 3)
    yield lab
    lab.env.close()


APPROACH = "The robot goes to the leader"


def test_the_arm_comes_slowly_and_is_recorded_from_there(lab: Lab) -> None:
    told: list[int] = []
    lab.when("running", lambda: told.append(len(lab.robot.times)))
    assert follow(lab.env, Leader(0.45)) == "success"
    points = np.array([sent["arm/position"][0] for sent in lab.robot.commands])
    times = np.array(lab.robot.times)
    later = np.searchsorted(times, times + 0.3)
    speeds = [(points[j] - points[i]) / (times[j] - times[i]) for i, j in enumerate(later) if j < told[0]]
    assert 0 < max(speeds) < 1.3 * SPEED / 2
    assert any(status.phase == "preparing" and "arm/position by 0.1" in status.message for status in lab.person.shown)
    recorded = lab.recorded()
    assert recorded.observations["proprio"][0, 0] == pytest.approx(0.45, abs=0.025)
    assert len(recorded.actions) == 20


def test_a_leader_that_moves_is_come_after_and_a_stop_ends_that(lab: Lab) -> None:
    leader = Leader(0.6)
    lab.when(APPROACH, Timer(0.2, lambda: lab.person.said.append(Signal.STOP)).start)
    moved: list[float] = []

    def clear() -> bool:
        moved.append(float(lab.robot.commands[-1]["arm/position"][0]))
        leader.x = 0.5
        return True

    lab.person.cleared = clear  # type: ignore[method-assign]
    assert follow(lab.env, leader) == "success"
    assert "stopped" in lab.person.phases()
    assert moved[0] < 0.45  # it had not come there
    assert lab.recorded().observations["proprio"][0, 0] == pytest.approx(0.5, abs=0.025)


def test_who_wants_no_episode_ends_the_way_to_the_leader(lab: Lab) -> None:
    lab.when(APPROACH, lambda: lab.person.said.append(Signal.QUIT))
    assert follow(lab.env, Leader(0.6)) is None
    assert episode_files(lab.folder) == []


def test_a_leader_that_fails_ends_it_before_and_in_an_episode(lab: Lab) -> None:
    leader = Leader(0.6)
    lab.when(APPROACH, lambda: setattr(leader, "broken", True))
    with pytest.raises(LeaderError, match="Whoever demonstrates does not answer: The robot does not answer"):
        follow(lab.env, leader)
    leader.broken, leader.x = False, 0.3
    lab.when("running", lambda: setattr(leader, "broken", True))
    with pytest.raises(LeaderError):
        follow(lab.env, leader)
    lab.env.close()
    assert [ending_of(path) for path in episode_files(lab.folder)] == ["interrupted"]


def test_the_guard_refuses_to_approach_what_it_would_not_go_to(lab: Lab) -> None:
    lab.env.reset()
    command = {"arm/position": np.full(3, np.nan), "arm/rotation": np.zeros(3), "arm/gripper": np.ones(1)}
    with pytest.raises(RobotError, match="not finite"):
        lab.guard.approach(command)
    lab.guard.stop("a person")
    with pytest.raises(Stopped):
        lab.guard.approach(command | {"arm/position": np.array([0.4, 0.0, 0.2])})
