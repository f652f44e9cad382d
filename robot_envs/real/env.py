"""A real robot as a Gymnasium environment, with a person beside it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing import parent_process
from pathlib import Path
from types import FrameType
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from zprl_sb3.interrupts import TERMINATED
from zprl_sb3.robot_envs import REAL_ROBOT
from zprl_sb3.robot_envs.base import image_key
from zprl_sb3.robot_envs.real.episodes import LEARNED, Archive
from zprl_sb3.robot_envs.real.journal import INTERRUPTED, Source
from zprl_sb3.robot_envs.real.person import ABORTED, FAILURE, SUCCESS, TIMEOUT, Person
from zprl_sb3.robot_envs.real.poses import ActionError
from zprl_sb3.robot_envs.real.rate import Rate, Timing
from zprl_sb3.robot_envs.real.robots import LeaderError, RobotError, Station, Supervisor, Values
from zprl_sb3.robot_envs.real.stage import Stage
from zprl_sb3.robot_envs.real.tasks import Task, load_task, make_station, make_supervisor

Observation = dict[str, Any]
FULL = "The episode cannot be written any more ({}): free some space, then go on"


class RealRobotEnv(gym.Env[Observation, NDArray[Any]]):
    """One robot, its cameras, and a person who sets the scene, says what became of an episode, and stops it.

    Nothing moves, and nothing is connected to, before the first :meth:`reset`. An action is a target for each arm
    (:class:`~zprl_sb3.robot_envs.real.poses.Poses`); a step takes one period of the task's rate. While nobody steps,
    the robot holds. What it must not do is for the limits below to prevent
    (:class:`~zprl_sb3.robot_envs.real.guard.Guard`).

    - Observation: float32 ``"proprio"`` (P,) and, for each camera, uint8 ``"<camera>_image"`` (H, W, 3)
    - Reward: 1 with a success, otherwise 0. Success and failure terminate; an episode that runs out of time is judged,
      and truncated unless it is a success (the limit is the task's: that of ``gym.make`` would ask nobody). What a
      person aborts, a stop or a fault ends is truncated, with ``info["aborted"]``, not to be learned from
    - ``info``: ``is_success``; ``jitter`` in seconds and ``missed`` deadlines of the episode; at an episode's end
      ``ending``, ``timing`` and ``limited`` (what the limits have changed); ``quit`` once a person wants no further one

    :meth:`reset` waits for the person, however long that takes, and for the robot to be mended. After ``quit``, or
    ``stop_after`` episodes, it waits for nobody any more, and steps lead nowhere.

    :param task: Name of a task in ``hyperparams/real/``, path of a file, or a task
    :param episodes: Folder to keep every episode in; None: they are not kept
    :param stop_after: Episodes after which no person is asked for another one; aborted ones do not count
    :param render_mode: ``"rgb_array"`` or None
    :param station: Robot and cameras, of tests and notebooks; None: those of the task
    :param supervisor: The person's side; None: the task's
    :raises TaskError: If the task's file cannot be used
    """

    def __init__(
        self,
        task: str | Path | Task,
        episodes: str | Path | None = None,
        stop_after: int | None = None,
        render_mode: str | None = None,
        station: Station | None = None,
        supervisor: Supervisor | None = None,
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode is 'rgb_array' or None, not {render_mode!r}")
        self.task = load_task(task)
        self.render_mode = render_mode
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": self.task.rate}
        self._source = Source(REAL_ROBOT, {"task": str(task.path if isinstance(task, Task) else task)})
        self._folder, self._stop_after = episodes, stop_after
        self._station, self._supervisor = station, supervisor
        self._poses = self.task.poses()
        self._rate = Rate(self.task.rate)
        self._stage: Stage | None = None
        self._person: Person | None = None
        self._archive: Archive | None = None
        self._steps = 0
        self._running = self._defers = self._over = False
        self._command: Values = {}
        box = self._poses.action_space()
        self.action_space, self._low, self._high = box, box.low, box.high
        boxes: dict[str, spaces.Space[Any]] = {
            "proprio": spaces.Box(-np.inf, np.inf, (self._poses.proprio_size,), np.float32)
        }
        for name, view in self.task.views.items():
            boxes[image_key(name)] = spaces.Box(0, 255, (*view.size, 3), np.uint8)
        self.observation_space = spaces.Dict(boxes)
        self._observation: Observation = {key: np.zeros(box.shape or (), box.dtype) for key, box in boxes.items()}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Hold, go home, and begin an episode once a person says that the scene is set.

        :param seed: Has no effect on the world
        :param options: ``"leader"``: a function that returns an action. The arms first go slowly to where it has them,
            wherever that moves, and the episode begins once they are near
        :raises LeaderError: If that function does
        :raises RobotError: If the robot cannot be connected the first time; later it is waited for
        :raises InUse: If another process writes into the folder of episodes
        """
        super().reset(seed=seed)
        self._end(INTERRUPTED)
        stage, person = self._open()
        deferred, self._over = self._defers and self._over, False
        if deferred:
            person.show("preparing", "The episode is learned from", stage.frames)
            return self._told(), {"is_success": False, "deferred": True} | self._quit_info()
        while not self._enough and not self._running:
            try:
                there = stage.prepare(person) and self._follow(stage, person, (options or {}).get("leader"))
                self._running = there and self._begin(stage)
            except LeaderError:
                stage.hold()
                raise
            except (OSError, RobotError) as error:
                stage.recover(person, error)
        return self._told(), {"is_success": False} | self._quit_info()

    def step(self, action: NDArray[Any]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Tell the robot where to be, and return what is seen a period later.

        :param action: (A,), absolute targets
        :raises ActionError: If it is not finite or of another size; the robot holds, and the episode is over
        :raises ResetNeeded: If no episode runs
        """
        if not self._running:
            if self._person is not None and self._enough:
                return self._told(), 0.0, False, True, {"is_success": False, "aborted": True} | self._quit_info()
            raise gym.error.ResetNeeded("There is no episode: call reset() before step()")
        assert self._stage is not None
        try:
            self._command = self._poses.command(action)
        except ActionError:
            self._stage.hold()
            self._end(INTERRUPTED)
            raise
        ending, reason = self._run(self._stage)
        try:
            self._keep(action, float(ending == SUCCESS))
        except OSError as error:
            self._stage.hold()
            ending, reason = ending or ABORTED, FULL.format(error)
        info: dict[str, Any] = {
            "is_success": ending == SUCCESS,
            "jitter": self._rate.jitter,
            "missed": self._rate.missed,
        }
        if ending is not None:
            info |= self._end(ending, reason)
            self._over = True
        return (
            self._told(),
            float(ending == SUCCESS),
            ending in (SUCCESS, FAILURE),
            ending in (TIMEOUT, ABORTED),
            info | self._quit_info(),
        )

    def defer_resets(self, defer: bool) -> None:
        """Have the :meth:`reset` that follows an episode return at once: ``info["deferred"]``, the last observation.

        The next one waits for the person. So who resets by itself, as vectorised environments do, hands the episode
        over before the next scene is set; what came of it then cannot be lost meanwhile.
        """
        self._defers = defer

    def action_of(self, values: Values) -> NDArray[np.float32]:
        """Return the action (A,) that sends the arms to where ``values`` are, within the action space.

        :param values: By the names of a command, those that a leader arm tells for instance
        :raises LeaderError: If one is missing
        """
        try:
            action = self._poses.action(values)
        except KeyError as error:
            raise LeaderError(f"Whoever demonstrates must tell {error}; it tells {', '.join(values)}") from error
        return np.clip(action, self._low, self._high)

    def commanded(self) -> NDArray[np.float64] | None:
        """Return where the last action told the hands to be, (hands, 3) in metres; None where it tells joints."""
        return self._poses.positions(self._command)

    def render(self) -> NDArray[np.uint8] | None:
        """Return what the first camera saw last, or None without a render mode."""
        if self.render_mode is None or self._stage is None or not self._stage.frames:
            return None
        return next(iter(self._stage.frames.values())).copy()

    def close(self) -> None:
        """End the episode that runs as interrupted, hold, and let go of robot, cameras and person."""
        self._end(INTERRUPTED)
        try:
            if self._archive is not None:
                self._archive.close()
        finally:
            self._archive = None
            if self._stage is not None:
                self._stage.close()
            if self._person is not None:
                self._person.close()
            self._stage = self._person = None

    @property
    def timing(self) -> Timing:
        """How well the rate has been kept in this episode."""
        return self._rate.timing()

    @property
    def _enough(self) -> bool:
        person = self._person
        return person is not None and (person.quit or person.episodes == self._stop_after)

    def _open(self) -> tuple[Stage, Person]:
        """Connect to all that is not connected yet."""
        if parent_process() is not None and threading.current_thread() is threading.main_thread():
            # Who ends the process of an environment does so by SIGTERM: let go of the robot then.
            signal.signal(signal.SIGTERM, _end_process)
        if self._archive is None and self._folder is not None:
            self._archive = Archive(self._folder, self._source)
        if self._person is None:
            supervisor = self._supervisor or make_supervisor(self.task)
            self._person = Person(supervisor, self.task.name, self._rate.period)
        if self._stage is None:
            stage = Stage(self._station or make_station(self.task), self.task)
            stage.connect()
            self._person.stops(stage.stop)
            self._stage = stage
        return self._stage, self._person

    def _follow(self, stage: Stage, person: Person, leader: Callable[[], NDArray[Any]] | None) -> bool:
        """Bring the arms to a leader's, if there is one, and return whether they are there."""

        def step() -> str:
            far = stage.approach(self._poses.command(leader())) if leader is not None else ""
            return far and f"The robot goes to the leader, slowly: keep away from it. It is off in {far}"

        return person.watches(stage, step)

    def _begin(self, stage: Stage) -> bool:
        self._poses.begin()
        self._observe(stage)
        if self._archive is not None:
            self._archive.begin(self._observation, self._poses.action_size)
        self._steps, self._command = 0, {}
        self._rate.start()
        return True

    def _run(self, stage: Stage) -> tuple[str | None, str]:
        """Make a step, and return how the episode ended with it, if it did, and why."""
        assert self._person is not None
        self._steps += 1
        ending: str | None = None
        try:
            self._rate.begin()
            stage.send(self._command)
            self._rate.wait()
            ending = self._person.listen(stage)
            if ending is None and self._steps >= self.task.max_episode_steps:
                ending = self._person.judge(stage)
            self._observe(stage)
        except RobotError as error:
            stage.hold()
            # What a person has said of it counts: only what is seen at its end is missing.
            return (ending, "") if ending in LEARNED else (ABORTED, str(error))
        return ending, self._person.reason

    def _observe(self, stage: Stage) -> None:
        values, images = stage.observe()
        self._observation = {"proprio": self._poses.observe(values), **images}

    def _told(self) -> Observation:
        # Copies: Gymnasium does not want two observations to share memory.
        return {key: value.copy() for key, value in self._observation.items()}

    def _keep(self, action: NDArray[Any], reward: float) -> None:
        if self._archive is not None:
            self._archive.add(self._observation, action, reward)

    def _end(self, ending: str, reason: str = "") -> dict[str, Any]:
        """End the episode that runs, if one does, and return what is to be told of it."""
        if not self._running:
            return {}
        assert self._stage is not None
        assert self._person is not None
        self._running = False
        self._person.note(ending)
        facts = {"ending": ending, "timing": asdict(self.timing), "limited": self._stage.limited()}
        facts |= {"reason": reason} if reason else {}
        if self._archive is not None:
            self._archive.end(ending, {key: value for key, value in facts.items() if key != "ending"})
        return facts | ({"aborted": True} if ending == ABORTED else {})

    def _quit_info(self) -> dict[str, Any]:
        return {"quit": True} if self._person is not None and self._person.quit else {}


def _end_process(number: int, frame: FrameType | None) -> None:
    raise SystemExit(TERMINATED)
