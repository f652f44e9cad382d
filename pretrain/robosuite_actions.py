"""Actions of robosuite's pose controllers, relative or absolute, as the poses in the world that they aim at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zprl_sb3.robot_envs.robosuite import ARM_ACTION, RobosuiteEnv
from zprl_sb3.robot_envs.rotations import matrix_of_6d, matrix_of_vector, rotation_6d, rotation_vector

Array = NDArray[np.float64]
Pose = tuple[Array, Array]

POSE_ACTION = 7
"""Values of an arm's action in robosuite: position 3, axis times angle 3, gripper 1."""
STIFFNESS = 150.0
CONTROL_FREQ = 20
FAR = (0.3, 1.0)
"""Metres and radians from the hand, halfway through the sorted steps, at which a target cannot be a target."""


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
    inputs: Pose = (-np.ones(6), np.ones(6))
    outputs: Pose = (-np.repeat([0.05, 0.5], 3), np.repeat([0.05, 0.5], 3))

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
        share = (np.clip(values, low, high) - low) / (high - low)
        delta = least + share * (most - least)
        turn = frame @ matrix_of_vector(delta[3:]) @ frame.T
        return hand[0] + frame @ delta[:3], turn @ hand[1]


def read_controllers(env_kwargs: Mapping[str, Any], version: str, arms: int) -> list[ArmController]:
    """Return the controllers of all arms, as robosuite's arguments describe them.

    :param env_kwargs: Those of ``robosuite.make``, from robosuite 1.5 or before
    :param version: robosuite's, ``""`` if unknown
    :param arms: How many there are
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
    return [_controller(config, version) for config in configs]


def _repeated(value: Any, arms: int) -> list[Any]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * arms if len(values) == 1 else values


def _controller(config: Any, version: str) -> ArmController:
    if not isinstance(config, Mapping):
        raise ValueError("controller_configs does not say how actions are meant")
    parts = config.get("body_parts", {})
    arm = parts.get("right", parts.get("arms", {}).get("right", {})) if parts else config
    _check_controller(arm)
    # Up to 1.4 everything is in the world's frame and control_delta decides; from 1.5 on that is ignored silently.
    modern = bool(parts) or (version != "" and not version.startswith(("0.", "1.0", "1.1", "1.2", "1.3", "1.4")))
    if modern:
        absolute = arm.get("input_type", "delta") == "absolute"
        in_base = arm.get("input_ref_frame", "base") == "base"
    else:
        absolute, in_base = not arm.get("control_delta", True), False
    default = ArmController(absolute, in_base)
    low, high = (np.broadcast_to(arm.get(f"input_{end}", sign), 6) for end, sign in (("min", -1), ("max", 1)))
    least, most = (arm.get(f"output_{end}", default.outputs[k]) for k, end in enumerate(("min", "max")))
    return ArmController(
        absolute,
        in_base,
        (low.astype(float), high.astype(float)),
        (np.broadcast_to(least, 6).astype(float), np.broadcast_to(most, 6).astype(float)),
    )


def _check_controller(arm: Mapping[str, Any]) -> None:
    expected = {"type": "OSC_POSE", "impedance_mode": "fixed", "control_ori": True, "kp": STIFFNESS}
    for key, value in expected.items():
        found = arm.get(key, None if key == "type" else value)
        if np.any(np.asarray(found) != value):
            raise ValueError(f"recorded with a controller of {key} {found}, but the one here has {value}")


def to_poses(
    env: RobosuiteEnv, controllers: Sequence[ArmController], actions: Array, states: Array
) -> NDArray[np.float32]:
    """Return the actions of one episode as ``env`` takes them: position, rotation in six numbers, gripper.

    :param env: The environment; it is left in the last state
    :param controllers: Of all arms
    :param actions: (T, 7 arms), or (T, 10 arms), which are poses in the world already
    :param states: (T, S), before each action
    :raises ValueError: If the actions are of another size, or aim far away from where the hand is
    """
    arms = len(controllers)
    size = actions.shape[1] // arms
    if size * arms != actions.shape[1] or size not in (POSE_ACTION, ARM_ACTION):
        raise ValueError(
            f"actions have {actions.shape[1]} values; with {arms} arm{'s' * (arms > 1)} they must have "
            f"{POSE_ACTION * arms} (position, axis-angle, gripper) or {ARM_ACTION * arms} (rotation in six numbers)"
        )
    converted, distances = [], []
    for state, action in zip(states, actions, strict=True):
        env.set_state(state)
        for k, (controller, values) in enumerate(zip(controllers, action.reshape(arms, size), strict=True)):
            hand, base = _hand(env, k), env.simulation.robots[k].composite_controller.get_controller_base_pose("right")
            if size == ARM_ACTION:
                position, rotation = values[:3], matrix_of_6d(values[3:9])
            else:
                position, rotation = controller.goal(values[:6], hand, base)
            converted.append([*position, *rotation_6d(rotation), values[-1]])
            turn = np.linalg.norm(rotation_vector(rotation @ hand[1].T))
            distances.append([np.linalg.norm(position - hand[0]), turn])
    for distance, limit, unit in zip(np.median(distances, axis=0), FAR, ("m", "rad"), strict=True):
        if distance > limit:
            raise ValueError(
                f"half of the actions aim at least {distance:.2f} {unit} away from where the hand is: they are no "
                "poses in the world, or their six numbers are not the first two rows of a rotation matrix"
            )
    return np.array(converted, dtype=np.float32).reshape(len(actions), arms * ARM_ACTION)


def _hand(env: RobosuiteEnv, index: int) -> Pose:
    site = env.simulation.robots[index].eef_site_id["right"]
    return env.data.site_xpos[site].copy(), env.data.site_xmat[site].reshape(3, 3).copy()
