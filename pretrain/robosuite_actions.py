"""Actions of robosuite's pose controllers, relative or absolute, as the poses in the world that they aim at."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zprl_sb3.robot_envs.robosuite import RobosuiteEnv
from zprl_sb3.robot_envs.rotations import matrix_of_vector, rotation_6d

Array = NDArray[np.float64]
Pose = tuple[Array, Array]

POSE_ACTION = 7
"""Values of an arm's action in robosuite: position 3, axis times angle 3, gripper 1."""
CONTROL_FREQ = 20
FULL = np.ones(6)
"""The highest inputs of a relative action, unless its controller says otherwise …"""
STRIDE = np.repeat([0.05, 0.5], 3)
"""… and what they stand for, in metres and radians."""
EXPECTED: dict[str, Any] = {
    "type": "OSC_POSE",
    "impedance_mode": "fixed",
    "control_ori": True,
    "uncouple_pos_ori": True,
    "interpolation": None,
    "kp": 150,
    "damping_ratio": 1,
}
"""What a controller must be to move an arm as ours does; but for the type these are what robosuite takes by itself."""
SLACK = 1e-3
"""By how much an input may exceed its limits: what floats cost."""


@dataclass(frozen=True)
class ArmController:
    """How the controller of one arm reads its six numbers.

    :param absolute: They are a pose, not a change of the hand's pose
    :param in_base: They are in the frame of the robot's base, not of the world
    :param inputs: Lowest and highest input of a relative action, each (6,)
    :param outputs: What they stand for, in metres and radians
    """

    absolute: bool
    in_base: bool
    inputs: Pose = (-FULL, FULL)
    outputs: Pose = (-STRIDE, STRIDE)

    def goal(self, values: Array, hand: Pose, base: Pose) -> Pose:
        """Return the pose in the world that an action aims at.

        :param values: The six numbers
        :param hand: Pose of the grip site
        :param base: Pose of the robot's base
        """
        origin, frame = base if self.in_base else (np.zeros(3), np.eye(3))
        if self.absolute:
            return origin + frame @ values[:3], frame @ matrix_of_vector(values[3:])
        (low, high), (least, most) = self.inputs, self.outputs
        delta = least + (np.clip(values, low, high) - low) / (high - low) * (most - least)
        turn = frame @ matrix_of_vector(delta[3:]) @ frame.T
        return hand[0] + frame @ delta[:3], turn @ hand[1]


def read_controllers(
    env_kwargs: Mapping[str, Any], version: str, arms: int, absolute: bool = False
) -> list[ArmController]:
    """Return the controllers of all arms, as robosuite's arguments describe them.

    :param env_kwargs: Those of ``robosuite.make``, from robosuite 1.5 or before
    :param version: robosuite's, ``""`` if unknown
    :param arms: How many there are
    :param absolute: Actions are poses in the world, whatever the arguments say
    :raises ValueError: If there is another robot, controller or rate than our environments have
    """
    frequency = env_kwargs.get("control_freq", CONTROL_FREQ)
    if frequency != CONTROL_FREQ:
        raise ValueError(f"recorded at {frequency} Hz, but the environments here run at {CONTROL_FREQ} Hz")
    robots = _repeated(env_kwargs.get("robots", "Panda"), arms)
    if robots != ["Panda"] * arms:
        raise ValueError(f"recorded with {' and '.join(map(str, robots))}, but the robot here is {arms} x Panda")
    configs = _repeated(env_kwargs.get("controller_configs"), arms)
    if len(configs) != arms:
        raise ValueError(f"controller_configs has {len(configs)} entries for {arms} arms")
    controllers = [_controller(config, version) for config in configs]
    return [replace(each, absolute=True, in_base=False) if absolute else each for each in controllers]


def _repeated(value: Any, arms: int) -> list[Any]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * arms if len(values) == 1 else values


def _controller(config: Any, version: str) -> ArmController:
    parts = config.get("body_parts") if isinstance(config, Mapping) else None
    arm = parts.get("right", parts.get("arms", {}).get("right")) if isinstance(parts, Mapping) else config
    if not isinstance(arm, Mapping):
        raise ValueError("controller_configs does not say how actions are meant")
    for key, value in EXPECTED.items():
        found = arm.get(key, None if key == "type" else value)
        if np.any(np.asarray(found) != value):
            raise ValueError(f"recorded with a controller of {key} {found}, but the one here has {value}")
    absolute, in_base = _meaning(arm, modern=parts is not None or _since_1_5(version))
    return ArmController(absolute, in_base, _limits(arm, "input", FULL), _limits(arm, "output", STRIDE))


def _limits(arm: Mapping[str, Any], name: str, usual: Array) -> Pose:
    least, most = arm.get(f"{name}_min", -usual), arm.get(f"{name}_max", usual)
    return np.broadcast_to(least, 6).astype(float), np.broadcast_to(most, 6).astype(float)


def _meaning(arm: Mapping[str, Any], modern: bool) -> tuple[bool, bool]:
    # Up to 1.4 all is in the world's frame and control_delta decides, which later versions silently ignore.
    if modern:
        return arm.get("input_type", "delta") == "absolute", arm.get("input_ref_frame", "base") == "base"
    return not arm.get("control_delta", True), False


def _since_1_5(version: str) -> bool:
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return numbers is not None and tuple(map(int, numbers.groups())) >= (1, 5)


def check_actions(controllers: Sequence[ArmController], actions: Array) -> None:
    """Find actions that the controllers cannot have been given.

    :param controllers: Of all arms
    :param actions: (T, 7 arms)
    :raises ValueError: If they are of another size, or exceed what a relative controller takes
    """
    if actions.shape[1:] != (POSE_ACTION * len(controllers),):
        raise ValueError(
            f"actions have the shape {actions.shape}; {len(controllers)} arm{'s' * (len(controllers) > 1)} need "
            f"{POSE_ACTION * len(controllers)} values a step (position, axis-angle, gripper)"
        )
    for k, controller in enumerate(controllers):
        values = actions[:, POSE_ACTION * k : POSE_ACTION * k + 6]
        low, high = controller.inputs
        outside = (values < low - SLACK) | (values > high + SLACK)
        if not controller.absolute and outside.any():
            raise ValueError(
                f"an action of {values[outside][0]:.3f}, but the relative controller takes {low.min():g} to "
                f"{high.max():g}. If the actions are poses in the world in spite of what the file says of its "
                "controller, as in files that were converted for Diffusion Policy: --absolute"
            )


def to_poses(env: RobosuiteEnv, controllers: Sequence[ArmController], action: Array) -> NDArray[np.float32]:
    """Return an action as ``env`` takes it: for each arm position 3, rotation 6, gripper 1.

    :param env: In the state in which the action was given
    :param controllers: Of all arms
    :param action: (7 arms,)
    """
    poses: list[Array] = []
    for k, (controller, values) in enumerate(zip(controllers, action.reshape(-1, POSE_ACTION), strict=True)):
        robot = env.simulation.robots[k]
        site = robot.eef_site_id["right"]
        hand = env.data.site_xpos[site].copy(), env.data.site_xmat[site].reshape(3, 3).copy()
        base = robot.composite_controller.get_controller_base_pose("right")
        position, rotation = controller.goal(values[:6], hand, base)
        poses.append(np.concatenate([position, rotation_6d(rotation), np.clip(values[6:], -1, 1)]))
    converted: NDArray[np.float32] = np.concatenate(poses, dtype=np.float32)
    return converted
