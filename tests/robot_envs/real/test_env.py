"""The real robot's environment, with a kinematic robot and a person who follows a script."""

from __future__ import annotations

import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from people import ScriptedPerson

from arms import TWO_ARMS, KinematicRobot, SyntheticCamera, kinematic_station
from zprl_sb3.robot_envs.real.decisions import Answer, Word
from zprl_sb3.robot_envs.real.env import RealRobotEnv
from zprl_sb3.robot_envs.real.episodes import ending_of, episode_files, read_episode
from zprl_sb3.robot_envs.real.page import PageSupervisor
from zprl_sb3.robot_envs.real.poses import ActionError
from zprl_sb3.robot_envs.real.robots import RobotError, Signal, Station
from zprl_sb3.robot_envs.real.tasks import guarded, load_task
from zprl_sb3.wrappers import ActionChunk

ACTION = np.array([0.35, 0.05, 0.25, np.pi, 0.0, 0.0, 0.5], np.float32)


class Table:
    """An environment with its robot, camera and person."""

    def __init__(self, task: Path, person: ScriptedPerson | None = None, **kwargs: Any) -> None:
        self.robot, self.camera = KinematicRobot(), SyntheticCamera()
        self.person = person or ScriptedPerson()
        station = Station(self.robot, {"front": self.camera})
        self.env = RealRobotEnv(task, station=station, supervisor=self.person, **kwargs)

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *_: object) -> None:
        self.env.close()

    def episode(self) -> list[tuple[Any, float, bool, bool, dict[str, Any]]]:
        """Run an episode to its end and return its steps."""
        self.env.reset()
        steps = []
        while not steps or not (steps[-1][2] or steps[-1][3]):
            steps.append(self.env.step(ACTION))
        return steps


@pytest.fixture
def task(write_task: Callable[..., Path]) -> Path:
    return write_task()


@pytest.mark.filterwarnings("ignore:.*For Box action spaces", "ignore:.*A Box observation space")
def test_gymnasium_finds_no_fault(task: Path) -> None:
    with Table(task) as table:
        table.env.spec = gym.spec("zprl/RealRobot-v0")  # which says that the world is never twice the same
        check_env(table.env, skip_render_check=True, skip_close_check=True)


def test_it_is_made_by_its_id(task: Path) -> None:
    env = gym.make("zprl/RealRobot-v0", task=str(task), station=kinematic_station(), supervisor=ScriptedPerson())
    obs, _ = env.reset()
    assert env.observation_space.contains(obs)
    assert env.metadata["render_fps"] == 100
    env.close()


def test_nothing_is_connected_before_the_first_reset(task: Path) -> None:
    with Table(task) as table:
        assert table.env.observation_space["front_image"].shape == (24, 32, 3)
        assert table.env.action_space.shape == (7,)
        assert not table.robot.connected
        table.env.reset()
        assert table.robot.connected
    assert not table.robot.connected
    assert table.person.closed


def test_a_step_takes_a_period_and_moves_the_robot(task: Path) -> None:
    with Table(task) as table:
        first, info = table.env.reset()
        assert info == {"is_success": False}
        began = time.perf_counter()
        obs, reward, terminated, truncated, info = table.env.step(ACTION)
        assert time.perf_counter() - began == pytest.approx(0.01, abs=0.02)
        assert (reward, terminated, truncated, info["is_success"]) == (0.0, False, False, False)
        for _ in range(4):
            obs, *_ = table.env.step(ACTION)
        assert np.linalg.norm(obs["proprio"][:3] - ACTION[:3]) < np.linalg.norm(first["proprio"][:3] - ACTION[:3])
        assert obs["front_image"].shape == (24, 32, 3)
        assert obs["front_image"].std() > 10
        np.testing.assert_allclose(table.env.commanded(), [ACTION[:3]], rtol=1e-6)
        assert len(table.robot.commands) == 5
        assert table.env.observation_space.contains(obs)


def test_success_ends_and_is_rewarded(task: Path) -> None:
    with Table(task, ScriptedPerson([{3: Signal.SUCCESS}])) as table:
        steps = table.episode()
        assert [(step[1], step[2], step[3]) for step in steps] == [
            (0, False, False),
            (0, False, False),
            (1, True, False),
        ]
        info = steps[-1][4]
        assert info["is_success"] is True
        assert info["ending"] == "success"
        assert info["timing"]["periods"] >= 1
        assert "aborted" not in info


def test_a_success_counts_though_nothing_more_is_seen(task: Path) -> None:
    with Table(task, ScriptedPerson([{2: Signal.SUCCESS}])) as table:
        poll = table.person.poll

        def break_with_success() -> Signal | None:
            signal = poll()
            table.robot.broken = signal is Signal.SUCCESS
            return signal

        table.person.poll = break_with_success  # type: ignore[method-assign]
        _, reward, terminated, _, info = table.episode()[-1]
        assert (reward, terminated, info["ending"]) == (1.0, True, "success")
        assert "aborted" not in info


def test_failure_ends_and_is_not_rewarded(task: Path) -> None:
    with Table(task, ScriptedPerson([{2: Signal.FAILURE}])) as table:
        _, reward, terminated, truncated, info = table.episode()[-1]
        assert (reward, terminated, truncated, info["ending"]) == (0.0, True, False, "failure")


@pytest.mark.parametrize(
    ("verdict", "wanted"), [(True, (1.0, True, False, "success")), (False, (0.0, False, True, "timeout"))]
)
def test_who_runs_out_of_time_is_judged(task: Path, verdict: bool, wanted: tuple[Any, ...]) -> None:
    with Table(task, ScriptedPerson(verdicts=[None, None, verdict])) as table:
        steps = table.episode()
        _, reward, terminated, truncated, info = steps[-1]
        assert len(steps) == 6
        assert (reward, terminated, truncated, info["ending"]) == wanted
        assert table.robot.holds > 0
        assert table.person.phases()[-1] == "judging"


def test_an_abort_is_not_to_be_learned_from(task: Path) -> None:
    with Table(task, ScriptedPerson([{2: Signal.ABORT}])) as table:
        _, reward, terminated, truncated, info = table.episode()[-1]
        assert (reward, terminated, truncated, info["aborted"]) == (0.0, False, True, True)
        table.env.reset()
        assert table.person.shown[-1].episode == 2
        assert table.person.shown[-1].episodes == 0  # not counted


def test_a_pause_holds_the_robot_until_it_goes_on(task: Path) -> None:
    with Table(task, ScriptedPerson([{2: Signal.PAUSE}])) as table:
        table.env.reset()
        table.env.step(ACTION)
        held, sent = table.robot.holds, len(table.robot.commands)
        show = table.person.show

        def resume(status: Any, frames: Any) -> None:
            show(status, frames)
            if table.person.phases().count("paused") and len(table.person.shown) > 20:
                table.person.said.append(Signal.RESUME)

        table.person.show = resume  # type: ignore[method-assign]
        _, _, terminated, truncated, _ = table.env.step(ACTION)
        table.person.show = show  # type: ignore[method-assign]
        assert (terminated, truncated) == (False, False)
        assert table.robot.holds == held + 1
        assert len(table.robot.commands) == sent + 1
        table.person.said.clear()
        began = time.perf_counter()
        table.env.step(ACTION)
        assert time.perf_counter() - began > 0.0045  # half a period at least: nothing is caught up with


def test_a_stop_lasts_until_it_is_cleared(task: Path) -> None:
    with Table(task, ScriptedPerson([{2: Signal.STOP}])) as table:
        info = table.episode()[-1][4]
        assert info["aborted"]
        assert "stopped" in info["reason"]
        homes = table.robot.homes
        table.person.patience = 3
        table.env.reset()
        assert "stopped" in table.person.phases()
        stopped = [status for status in table.person.shown if status.phase == "stopped"]
        assert len(stopped) == 4
        assert "until it is cleared" in stopped[0].message
        assert table.robot.homes == homes + 1
        table.env.step(ACTION)


def test_a_stop_by_another_thread_ends_the_episode_before_the_next_command(task: Path) -> None:
    with Table(task) as table:
        table.env.reset()
        table.env.step(ACTION)
        assert table.person.on_stop is not None
        table.person.on_stop()  # as a page does, at once, while nobody steps
        sent = len(table.robot.commands)
        _, _, _, truncated, info = table.env.step(ACTION)
        assert (truncated, info["aborted"]) == (True, True)
        assert len(table.robot.commands) == sent


def test_a_stop_that_was_said_before_there_was_a_robot_keeps_it_from_going_home(task: Path) -> None:
    with Table(task) as table:
        table.person.said.append(Signal.STOP)
        homes: list[int] = []
        cleared = table.person.cleared

        def note() -> bool:
            homes.append(table.robot.homes)
            return cleared()

        table.person.cleared = note  # type: ignore[method-assign]
        table.env.reset()
        assert homes == [0]
        assert "stopped" in table.person.phases()
        assert table.robot.homes == 1


def test_a_stop_while_another_one_is_cleared_is_not_lost(task: Path) -> None:
    with Table(task, ScriptedPerson([{1: Signal.STOP}])) as table:
        table.episode()
        homes, again = table.robot.homes, [True]
        cleared = table.person.cleared

        def press() -> bool:
            if again and again.pop():  # as a page does: the answer is on its way, nothing is cleared yet
                table.person.said.append(Signal.STOP)
            else:
                assert table.robot.homes == homes
            return cleared()

        table.person.cleared = press  # type: ignore[method-assign]
        table.env.reset()
        assert again == []
        assert table.person.phases().count("stopped") == 2
        assert table.robot.homes == homes + 1


def test_the_robot_waits_for_the_scene(task: Path) -> None:
    person = ScriptedPerson()
    person.patience = 5
    with Table(task, person) as table:
        table.env.reset()
        asked = [status for status in person.shown if "start" in status.message]
        assert len(asked) == 6
        assert {status.phase for status in asked} == {"reset"}
        assert all("front" in frames for frames in person.frames[1:])


def test_a_start_on_the_way_home_is_refused_and_said_to_be(task: Path) -> None:
    page, answers = PageSupervisor(port=0), list[Answer]()

    class Home(KinematicRobot):
        def home(self) -> None:
            super().home()
            answers.append(page.say(Word.START, page.turn))

    def start() -> None:
        while page.status is None or page.status.phase != "reset":
            time.sleep(0.005)
        assert page.say(Word.START, page.turn).taken

    robot = Home()
    person = threading.Thread(target=start)
    person.start()
    env = RealRobotEnv(task, station=Station(robot, {"front": SyntheticCamera()}), supervisor=page)
    env.reset()
    person.join()
    assert [answer.taken for answer in answers] == [False]
    env.close()


def test_what_was_pressed_too_late_does_not_end_the_next_episode(task: Path) -> None:
    with Table(task) as table:
        table.person.said.extend([Signal.SUCCESS, Signal.SUCCESS])
        table.env.reset()
        assert table.env.step(ACTION)[1] == 0.0


def test_quit_ends_after_the_episode_and_waits_for_nobody(task: Path) -> None:
    with Table(task, ScriptedPerson([{2: Signal.QUIT}])) as table:
        steps = table.episode()
        assert len(steps) == 6
        assert steps[-1][4]["quit"]
        table.person.patience = 10**9
        obs, info = table.env.reset()
        assert info["quit"]
        assert table.env.observation_space.contains(obs)
        _, reward, _, truncated, info = table.env.step(ACTION)
        assert (reward, truncated, info["aborted"], info["quit"]) == (0.0, True, True, True)
        assert len(table.robot.commands) == 6


def test_what_follows_an_episode_may_be_deferred(task: Path) -> None:
    with Table(task, ScriptedPerson([{2: Signal.SUCCESS}])) as table:
        table.env.defer_resets(True)
        obs = table.episode()[-1][0]
        starts, homes = len(table.person.phases()), table.robot.homes
        table.person.scenes = 0
        again, info = table.env.reset()  # at once, though nobody sets a scene
        assert info["deferred"]
        np.testing.assert_array_equal(again["proprio"], obs["proprio"])
        assert table.person.phases()[starts:] == ["preparing"]
        assert table.robot.homes == homes
        with pytest.raises(gym.error.ResetNeeded):
            table.env.step(ACTION)
        table.person.scenes = None
        _, info = table.env.reset()
        assert info == {"is_success": False}
        assert table.robot.homes == homes + 1
        assert table.env.step(ACTION)[3] is False
        table.env.defer_resets(False)
        table.env.reset()  # of one that was running
        table.env.step(ACTION)


def test_after_enough_episodes_nobody_is_asked(task: Path) -> None:
    with Table(task, stop_after=1) as table:
        table.episode()
        table.person.patience = 10**9
        table.env.reset()


def test_an_aborted_episode_is_none_of_enough(task: Path) -> None:
    with Table(task, ScriptedPerson([{2: Signal.ABORT}, {2: Signal.SUCCESS}]), stop_after=1) as table:
        assert table.episode()[-1][4]["aborted"]
        assert table.episode()[-1][4]["is_success"]
        table.person.patience = 10**9
        table.env.reset()


def test_an_action_that_is_none_does_not_reach_the_robot(task: Path) -> None:
    with Table(task) as table:
        table.env.reset()
        table.env.step(ACTION)
        holds = table.robot.holds
        with pytest.raises(ActionError, match="not finite"):
            table.env.step(np.full(7, np.nan))
        assert len(table.robot.commands) == 1
        assert table.robot.holds == holds + 1
        with pytest.raises(gym.error.ResetNeeded):
            table.env.step(ACTION)


def test_a_nan_in_a_chunk_does_not_reach_the_robot_either(task: Path) -> None:
    with Table(task) as table:
        env = ActionChunk(table.env, 2)
        env.reset()
        with pytest.raises(ActionError, match="not finite"):
            env.step(np.stack([ACTION, ACTION * np.nan]))
        assert len(table.robot.commands) == 1


def test_a_frozen_camera_ends_the_episode_and_the_robot_holds(write_task: Callable[..., Path]) -> None:
    task = write_task(cameras={"front": {"size": [24, 32], "max_age": 0.05}}, max_episode_steps=1000)
    with Table(task) as table:
        table.env.reset()
        table.env.step(ACTION)
        table.camera.freeze()
        holds = table.robot.holds
        for _ in range(50):
            _, _, _, truncated, info = table.env.step(ACTION)
            if truncated:
                break
        assert info["aborted"]
        assert "camera front" in info["reason"]
        assert table.robot.holds == holds + 1
        messages = []
        show = table.person.show

        def thaw(status: Any, frames: Any) -> None:
            show(status, frames)
            messages.append(status.message)
            if any("camera front" in message for message in messages):
                table.camera.thaw()

        table.person.show = thaw  # type: ignore[method-assign]
        table.env.reset()
        assert any("camera front" in message for message in messages)
        table.env.step(ACTION)


def test_a_robot_that_does_not_answer_is_waited_for(task: Path) -> None:
    with Table(task) as table:
        table.env.reset()
        table.robot.broken = True
        _, _, _, truncated, info = table.env.step(ACTION)
        assert truncated
        assert "does not answer" in info["reason"]
        show = table.person.show

        def mend(status: Any, frames: Any) -> None:
            show(status, frames)
            table.robot.broken = table.robot.broken and "Trying again" not in status.message

        table.person.show = mend  # type: ignore[method-assign]
        table.env.reset()
        assert any("does not answer" in status.message for status in table.person.shown)
        assert table.env.step(ACTION)[3] is False


def test_a_fault_of_a_robot_of_this_computer_lets_go_of_nothing(task: Path) -> None:
    class Limp(KinematicRobot):
        lettings_go = 0

        def disconnect(self) -> None:
            self.lettings_go += self.connected
            super().disconnect()

    robot, camera, person = Limp(), SyntheticCamera(), ScriptedPerson()
    station = Station(guarded(load_task(task), robot), {"front": camera})
    env = RealRobotEnv(task, station=station, supervisor=person)
    env.reset()
    for fault in ("robot", "camera"):
        env.step(ACTION)
        robot.broken, camera.connected = fault == "robot", fault == "robot"
        info: dict[str, Any] = {}
        while "reason" not in info:
            info = env.step(ACTION)[4]
        assert "does not answer" in info["reason"] or "not connected" in info["reason"]
        show = person.show

        def mend(status: Any, frames: Any, show: Any = show) -> None:
            show(status, frames)
            robot.broken = robot.broken and status.phase != "stopped"

        person.show = mend  # type: ignore[method-assign]
        env.reset()
        person.show = show  # type: ignore[method-assign]
        assert env.step(ACTION)[3] is False
        assert robot.lettings_go == 0
    assert robot.holds > 0
    env.close()
    assert robot.lettings_go == 1


def test_a_robot_that_is_not_the_tasks_is_refused(task: Path) -> None:
    env = RealRobotEnv(task, station=kinematic_station(TWO_ARMS), supervisor=ScriptedPerson())
    with pytest.raises(RobotError, match="correct arms"):
        env.reset()
    env.close()


def test_its_modules_import_no_torch() -> None:
    code = "import sys, zprl_sb3.robot_envs.real.env; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_every_episode_is_kept(task: Path, tmp_path: Path) -> None:
    with Table(task, ScriptedPerson([{3: Signal.SUCCESS}, {2: Signal.ABORT}]), episodes=tmp_path / "kept") as table:
        seen = [table.env.reset()[0]["proprio"]]
        for _ in range(3):
            seen.append(table.env.step(ACTION)[0]["proprio"])
        table.episode()
        table.env.reset()
        table.env.step(ACTION)
    files = episode_files(tmp_path / "kept")
    assert [ending_of(path) for path in files] == ["success", "aborted", "interrupted"]
    recorded = read_episode(files[0])
    np.testing.assert_array_equal(recorded.episode.observations["proprio"], seen[:3])
    np.testing.assert_array_equal(recorded.episode.next_observations["proprio"], seen[1:])
    np.testing.assert_allclose(recorded.episode.actions, [ACTION] * 3, rtol=1e-6)
    assert recorded.episode.rewards.tolist() == [0, 0, 1]
    assert recorded.facts["timing"]["missed"] >= 0
    assert recorded.source.env_kwargs == {"task": str(task)}


def test_a_full_disk_ends_the_episode_and_is_waited_for(
    write_task: Callable[..., Path], tmp_path: Path, limit_file_size: Callable[[int], None]
) -> None:
    folder = tmp_path / "kept"
    task = write_task(max_episode_steps=1000)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    with Table(task, episodes=folder) as table:
        table.env.reset()
        for _ in range(3):
            table.env.step(ACTION)
        holds = table.robot.holds
        limit_file_size(next(folder.glob("*.journal")).stat().st_size + 100)
        _, _, _, truncated, info = table.env.step(ACTION)
        assert (truncated, info["aborted"]) == (True, True)
        assert "free some space" in info["reason"]
        assert table.robot.holds == holds + 1
        show = table.person.show

        def free(status: Any, frames: Any) -> None:
            show(status, frames)
            if "Trying again" in status.message:
                limit_file_size(unlimited)

        table.person.show = free  # type: ignore[method-assign]
        table.env.reset()
        assert any("Trying again" in status.message for status in table.person.shown)
        table.env.step(ACTION)
    lengths = [len(read_episode(path).episode.actions) for path in episode_files(folder)]
    assert lengths == [3, 1]
