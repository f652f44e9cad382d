"""Franka's arms (Panda, FR3) under an impedance controller, with franky. Written after franky-control 2.0.0.

The controller needs a real-time kernel, near the arm and with nothing else to do: run ``zprl robot-server`` there, and
train on another computer. The release of franky must fit the robot's (see "robot server version" in its documents).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from zprl_sb3.robot_envs.real.drivers import load_package, numbers
from zprl_sb3.robot_envs.real.robots import Arm, RobotError, Values
from zprl_sb3.robot_envs.rotations import matrix_of_vector, quaternion_of, rotation_vector

INSTALL = "zprl-sb3[franka]"
JOINTS = 7
READY = (0.0, -math.pi / 4, 0.0, -3 * math.pi / 4, 0.0, math.pi / 2, math.pi / 4)  # Franka's own pose to start from
GRIPPER_PERIOD = 0.05  # seconds between two looks at the gripper
OPEN_ABOVE, CLOSED_BELOW = 0.6, 0.4  # what commands must pass, so that one near the middle does not make it chatter
HOME_TIMEOUT = 60.0


class Franka:
    """One arm as a :class:`~zprl_sb3.robot_envs.real.robots.Robot`.

    A torque controller in franky's own thread follows the latest target: a Cartesian spring and damper, or one of the
    joints. The gripper is either open or grasps, as in the paper: it obeys one command after another, each of which
    takes most of a second. Poses are of the end effector's frame that is set in Desk.

    :param ip: Address of the robot
    :param home: Joint angles in radians that episodes begin with
    :param control: ``"pose"`` or ``"joints"``
    :param gripper: Whether there is one
    :param name: Of the arm
    :param stiffness: Translational in N/m and rotational in Nm/rad, of the controller of poses
    :param home_speed: Share of the arm's own limits of speed, acceleration and jerk on the way home
    :param grasp_force: In N
    :param grasp_speed: Of the fingers, in m/s
    :param realtime: Whether a real-time kernel is insisted on
    :raises ValueError: If one of these is none of them
    """

    def __init__(
        self,
        ip: str,
        home: Sequence[float] = READY,
        control: str = "pose",
        gripper: bool = True,
        name: str = "arm",
        stiffness: Sequence[float] = (750.0, 37.0),
        home_speed: float = 0.1,
        grasp_force: float = 20.0,
        grasp_speed: float = 0.1,
        realtime: bool = True,
    ) -> None:
        if control not in ("pose", "joints"):
            raise ValueError(f"control is pose or joints, not {control!r}")
        self._ip, self._name, self._home_speed, self._realtime = ip, name, home_speed, realtime
        self._home = numbers(home, JOINTS, "home")
        self._stiffness = numbers(stiffness, 2, "stiffness")
        self._arm = Arm(control, JOINTS, gripper)
        self._grasp = {"speed": grasp_speed, "force": grasp_force}
        self._franky: Any = None
        self._robot: Any = None
        self._tracker: Any = None
        self._hand: _Hand | None = None
        self._holds = False

    @property
    def arms(self) -> Mapping[str, Arm]:
        return {self._name: self._arm}

    def connect(self) -> None:
        """Recover from old errors, and start the controller where the arm is; it holds.

        :raises RobotError: If the robot does not answer, or cannot be controlled
        :raises ImportError: Without franky
        """
        self._franky = franky = load_package("franky", INSTALL)
        self.disconnect()
        config = franky.RealtimeConfig.Enforce if self._realtime else franky.RealtimeConfig.Ignore
        try:
            with self._errors("connecting to"):
                self._robot = franky.Robot(self._ip, realtime_config=config)
                self._robot.recover_from_errors()
                if self._arm.gripper:
                    self._hand = _Hand(franky.Gripper(self._ip), self._grasp)
                self._track()
        except BaseException:
            self.disconnect()
            raise

    def _track(self) -> None:
        if self._arm.control == "pose":
            stiffness = {"translational_stiffness": self._stiffness[0], "rotational_stiffness": self._stiffness[1]}
            self._tracker = self._franky.CartesianImpedanceTracker(self._robot, **stiffness)
        else:
            self._tracker = self._franky.JointImpedanceTracker(self._robot)
        self._holds = True  # what it follows is where it was

    def get_observation(self) -> Values:
        """Return position, rotation, joints and the gripper's opening."""
        with self._errors("observing"):
            pose = np.array(self._connected.current_pose.end_effector_pose.matrix, dtype=np.float64)
            joints = np.array(self._robot.current_joint_positions, dtype=np.float64)
        values = {
            "position": pose[:3, 3],
            "rotation": rotation_vector(pose[:3, :3]),
            "joints": joints.reshape(JOINTS),
        }
        if self._hand is not None:
            values["gripper"] = np.array([self._hand.opening])
        return {f"{self._name}/{part}": value for part, value in values.items()}

    def send_action(self, action: Values) -> None:
        self._holds = False
        with self._errors("commanding"):
            self._running()
            if self._arm.control == "pose":
                quaternion = quaternion_of(matrix_of_vector(action[f"{self._name}/rotation"]))
                self._tracker.set_target(self._franky.Affine(action[f"{self._name}/position"], quaternion))
            else:
                self._tracker.set_target(action[f"{self._name}/joints"])
        if self._hand is not None:
            self._hand.ask(float(action[f"{self._name}/gripper"][0]))

    def hold(self) -> None:
        """Follow where the arm is now, which is only looked up once: a spring gives way. The gripper stays as it is."""
        if self._holds:
            return
        with self._errors("holding"):
            self._running()
            if self._arm.control == "pose":
                self._tracker.set_target(self._robot.current_pose.end_effector_pose)
            else:
                self._tracker.set_target(self._robot.current_joint_positions)
        self._holds = True

    def home(self) -> None:
        """Go home by a motion that franky plans, open the gripper, and follow targets again."""
        with self._errors("bringing home"):
            if self._tracker is not None:
                self._tracker.stop()
                self._tracker = None
            robot, state = self._connected, self._franky.JointState(self._home)
            robot.move(self._franky.JointMotion(state, relative_dynamics_factor=self._home_speed), asynchronous=True)
            if not robot.join_motion(HOME_TIMEOUT):
                robot.stop()
                raise RobotError(f"The Franka at {self._ip} was not home after {HOME_TIMEOUT:g} s")
            self._track()
        if self._hand is not None:
            self._hand.ask(1.0)

    def disconnect(self) -> None:
        tracker, hand = self._tracker, self._hand
        self._tracker = self._hand = self._robot = None
        with suppress(Exception):  # it may have gone
            if tracker is not None:
                tracker.stop()
        if hand is not None:
            hand.close()

    @property
    def _connected(self) -> Any:
        if self._robot is None:
            raise RobotError(f"There is no connection to the Franka at {self._ip}")
        return self._robot

    def _running(self) -> None:
        """Refuse to command an arm whose controller has ended, with the reason that the robot gave."""
        robot = self._connected
        if self._tracker is None or not self._tracker.is_running:
            robot.join_motion(0.1)  # raises what ended it
            raise RobotError("its controller has ended: unlock it in Desk, switch FCI on")

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        """Make franky's errors, of whatever kind, ours."""
        try:
            yield
        except (RobotError, ImportError):
            raise
        except Exception as error:
            raise RobotError(f"The Franka at {self._ip}, {doing} it: {type(error).__name__}: {error}") from error


class _Hand:
    """The gripper, asked and told by a thread of its own, because its answers take long."""

    def __init__(self, gripper: Any, grasp: Mapping[str, float]) -> None:
        self._gripper, self._grasp = gripper, grasp
        self._width = float(gripper.max_width)
        self.opening = float(np.clip(gripper.width / self._width, 0.0, 1.0))
        """From 0, closed, to 1, open."""
        self._wanted: bool | None = None  # whether it shall be open
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gripper", daemon=True)
        self._thread.start()

    def ask(self, opening: float) -> None:
        """Have it open or grasp, if it does not anyway."""
        if opening > OPEN_ABOVE:
            self._wanted = True
        elif opening < CLOSED_BELOW:
            self._wanted = False

    def close(self) -> None:
        """End the thread; the gripper stays as it is."""
        self._closed.set()
        self._thread.join(2.0)

    def _run(self) -> None:
        told: bool | None = None
        doing: Any = None
        while not self._closed.wait(GRIPPER_PERIOD):
            with suppress(Exception):  # one that does not answer is asked again; the arm goes on
                self.opening = float(np.clip(self._gripper.width / self._width, 0.0, 1.0))
                if doing is not None and not doing.wait(0.0):
                    continue
                doing = None
                if (wanted := self._wanted) is not None and wanted is not told:
                    doing = self._start(wanted)
                    told = wanted  # not before: what was refused is asked again

    def _start(self, opens: bool) -> Any:
        if opens:
            return self._gripper.open_async(self._grasp["speed"])
        # Whatever is between the fingers counts as grasped.
        speed, force = self._grasp["speed"], self._grasp["force"]
        return self._gripper.grasp_async(0.0, speed, force, epsilon_inner=0.005, epsilon_outer=self._width)


robot = Franka
