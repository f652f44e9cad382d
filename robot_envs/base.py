"""What the simulated tasks of all simulators share: arguments, spaces, stored states and cameras."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from zprl_sb3.robot_envs import UnstableSimulationError, import_simulator
from zprl_sb3.robot_envs.rendering import Cameras, check_quality

Observation = dict[str, Any]

OBSERVATIONS = ("state", "image")
IMAGE_SIZE = 84


class SimulatedEnv(gym.Env[Observation, NDArray[np.float32]]):
    """A task in MuJoCo, observed through its state or through cameras.

    A subclass sets ``action_space`` and ``_simulation``, calls :meth:`__init__` once it exists, and defines
    :meth:`_start`, :meth:`_object` and :meth:`_proprio`; where its simulator keeps them elsewhere, :attr:`model` and
    :attr:`data` too.

    - ``observation="state"``: float32 ``"object"`` and ``"proprio"``
    - ``observation="image"``: float32 ``"proprio"`` and, for each camera, uint8 ``"<camera>_image"`` (84, 84, 3)

    :param name: For messages
    :param sizes: Of ``"object"`` and of ``"proprio"``
    :param cameras: Cameras of the image observation
    :param video: Camera, height and width of :meth:`render`
    :param observation: ``"state"`` or ``"image"``
    :param render_mode: ``"rgb_array"`` or None
    :param render_quality: See :data:`~zprl_sb3.robot_envs.rendering.QUALITIES`
    :raises ValueError: If an argument is unknown, or the model lacks a camera
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}
    hidden_groups: tuple[int, ...] = ()
    """Groups of geoms that no camera sees."""
    _simulation: Any
    """The task as its simulator made it."""
    draw_images: bool
    """Only with image observations: whether they show what the cameras see now. Set to False, they go on showing what
    they saw last; :class:`~zprl_sb3.wrappers.ActionChunk` does so within a chunk, where nobody looks."""

    def __init__(
        self,
        name: str,
        sizes: tuple[int, int],
        cameras: Sequence[str],
        video: tuple[str, int, int],
        observation: str,
        render_mode: str | None,
        render_quality: str,
    ) -> None:
        check_arguments(observation, render_mode, render_quality)
        self.name, self.observation, self.cameras = name, observation, tuple(cameras)
        self.render_mode, self.render_quality = render_mode, render_quality
        self._video = video
        self._steps = 0
        self._images: dict[str, NDArray[np.uint8]] = {}
        self._drawn = Cameras(self.model, render_quality, self.hidden_groups)
        self._drawn.check((*self.cameras, video[0]))
        # No simulator's own bounds: Meta-World's are wrong for the goal, and clipping by them would hide it.
        boxes: dict[str, spaces.Space[Any]] = {"proprio": spaces.Box(-np.inf, np.inf, (sizes[1],), np.float32)}
        if observation == "image":
            self.draw_images = True
            image = spaces.Box(0, 255, (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
            boxes |= {image_key(camera): image for camera in self.cameras}
        else:
            boxes["object"] = spaces.Box(-np.inf, np.inf, (sizes[0],), np.float32)
        self.observation_space = spaces.Dict(boxes)

    @property
    def model(self) -> Any:
        """MuJoCo's ``MjModel``."""
        return self._simulation.model

    @property
    def data(self) -> Any:
        """MuJoCo's ``MjData``."""
        return self._simulation.data

    @abstractmethod
    def _start(self, seed: int | None) -> None:
        """Bring the simulation to the start of an episode.

        :param seed: What :meth:`reset` was given; ``np_random`` is seeded with it already
        """

    @abstractmethod
    def _object(self) -> NDArray[Any]:
        """Return what is around the robot."""

    @abstractmethod
    def _proprio(self) -> NDArray[Any]:
        """Return what the robot knows of itself."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; see the class for what ``seed`` does.

        :param seed: Fixes this layout and those of the following unseeded resets
        :param options: Ignored
        """
        super().reset(seed=seed)
        self._start(seed)
        self._steps = 0
        self._check_stable()
        return self._observe(), {"is_success": False}

    def commanded(self) -> NDArray[np.float64] | None:
        """Return where the last action told the hands to be, (hands, 3) in metres; None where it tells joints."""
        return None

    def get_state(self) -> NDArray[np.float64]:
        """Return the physical state ``[time, qpos, qvel]`` as robomimic stores it."""
        return np.concatenate([[self.data.time], self.data.qpos, self.data.qvel])

    def set_state(self, state: NDArray[np.float64]) -> None:
        """Set what :meth:`get_state` returned in an episode with the same seed, for example to look at it.

        What the controller remembers is not part of it: a rollout from here is close to the original, not equal.

        :raises ValueError: If the state is of another size
        """
        positions, velocities = self.model.nq, self.model.nv
        if np.shape(state) != (1 + positions + velocities,):
            raise ValueError(f"A state of {self.name} has {1 + positions + velocities} values, not {np.shape(state)}")
        self.data.time = state[0]
        self.data.qpos[:], self.data.qvel[:] = state[1 : 1 + positions], state[1 + positions :]
        import_simulator("mujoco").mj_forward(self.model, self.data)

    def observe_state(self, state: NDArray[np.float64]) -> Observation:
        """Set what :meth:`get_state` returned, and return what is observed there."""
        self.set_state(state)
        return self._observe()

    def images(self) -> dict[str, NDArray[np.uint8]]:
        """Return what the cameras see now, whatever the observation is, by the observation's keys."""
        return {image_key(camera): self._frame(camera, IMAGE_SIZE, IMAGE_SIZE) for camera in self.cameras}

    def render(self) -> NDArray[np.uint8] | None:
        """Return an upright frame of the video camera, or None without a render mode."""
        return None if self.render_mode is None else self._frame(*self._video)

    def close(self) -> None:
        """Free the renderers."""
        self._drawn.close()

    def _frame(self, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        return self._drawn.frame(self.data, camera, height, width)

    def _observe(self) -> Observation:
        proprio = self._proprio().astype(np.float32)
        if self.observation == "image":
            # Copies: Gymnasium does not want two observations to share memory.
            self._images = self.images() if self.draw_images else {k: image.copy() for k, image in self._images.items()}
            return {"proprio": proprio, **self._images}
        return {"object": self._object().astype(np.float32), "proprio": proprio}

    def _diverged(self) -> bool:
        # MuJoCo resets a diverged simulation by itself and only counts a warning.
        kinds = import_simulator("mujoco").mjtWarning
        bad = (kinds.mjWARN_BADQPOS, kinds.mjWARN_BADQVEL, kinds.mjWARN_BADQACC)
        return any(self.data.warning[kind].number for kind in bad)

    def _check_stable(self) -> None:
        if self._diverged():
            raise UnstableSimulationError(
                f"The simulation of {self.name} became unstable (NaN, infinite or huge values) at step {self._steps}"
            )


def image_key(camera: str) -> str:
    """Return the key of a camera's image in observations and demonstrations."""
    return f"{camera}_image"


def check_arguments(observation: str, render_mode: str | None, render_quality: str) -> None:
    """Find a wrong argument before a simulator is loaded.

    :raises ValueError: Naming it
    """
    if observation not in OBSERVATIONS:
        raise ValueError(f"observation={observation!r} is not available; there is {', '.join(OBSERVATIONS)}")
    if render_mode not in (None, "rgb_array"):
        raise ValueError(f"render_mode is 'rgb_array' or None, not {render_mode!r}")
    check_quality(render_quality)
