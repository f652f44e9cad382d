"""Cameras of a MuJoCo model as upright frames, with or without what makes them slow on a CPU."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import logging
import os
import sys
import weakref
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zprl_sb3.robot_envs import import_simulator

QUALITIES = ("fast", "full")
"""``"fast"``: no shadows, reflections and smoothed edges, 4 to 15 times faster without a GPU. The pixels differ, so
demonstrations, training and evaluation must agree."""

LIBRARIES = {"egl": "libEGL.so", "osmesa": "libOSMesa.so"}
BACKENDS = tuple(LIBRARIES)
WITH_DISPLAY = ("", "glfw", "glx")
OFF = ("disable", "disabled", "off", "false", "0")


class RenderingError(OSError):
    """There is no off-screen rendering here; the message says what to set."""


def prepare_rendering() -> None:
    """Choose an off-screen renderer where none is named; to be called before any simulator is imported.

    MuJoCo looks at ``MUJOCO_GL`` while it is imported, and takes a window's renderer where nothing is named. Where no
    renderer can be loaded, none is taken: all but drawing works, and drawing says what is missing.

    :raises RenderingError: If ``MUJOCO_GL`` names a renderer that MuJoCo does not have or that cannot be loaded
    """
    # PyOpenGL tells whoever logs at all that it goes without its C extension.
    logging.getLogger("OpenGL.acceleratesupport").setLevel(logging.WARNING)
    # Once MuJoCo is imported, nothing changes its renderer.
    if sys.platform != "linux" or "mujoco" in sys.modules:
        return
    if not os.environ.get("MUJOCO_GL") and not os.environ.get("DISPLAY"):
        os.environ["MUJOCO_GL"] = next(filter(_can_be_loaded, BACKENDS), OFF[0])
    _check_backend(os.environ.get("MUJOCO_GL", "").lower().strip())


def _check_backend(backend: str) -> None:
    if backend not in (*BACKENDS, *WITH_DISPLAY, *OFF, "enable", "enabled", "on", "true", "1"):
        raise RenderingError(f"MUJOCO_GL={backend!r} is unknown to MuJoCo. {_ADVICE}")
    if backend in BACKENDS and not _can_be_loaded(backend):
        raise RenderingError(
            f"MUJOCO_GL={backend}, but {LIBRARIES[backend]} cannot be loaded here. {_ADVICE}. MUJOCO_GL={OFF[0]} is "
            "enough where nothing is drawn"
        )


def _can_be_loaded(backend: str) -> bool:
    # By the names that PyOpenGL tries. What it cannot load shows as an AttributeError while MuJoCo is imported.
    for version in ("", *(f".{number}" for number in range(10))):
        with contextlib.suppress(OSError):
            ctypes.CDLL(LIBRARIES[backend] + version)
            return True
    return False


_ADVICE = (
    "Set MUJOCO_GL=egl (GPU, or Mesa on a CPU) or MUJOCO_GL=osmesa before Python starts; on Debian and Ubuntu they "
    "need the packages libegl1 and libgl1-mesa-dri, or libosmesa6"
)


def check_quality(quality: str) -> None:
    """Refuse an unknown ``render_quality``.

    :raises ValueError: If it is none of :data:`QUALITIES`
    """
    if quality not in QUALITIES:
        raise ValueError(f"render_quality is {' or '.join(map(repr, QUALITIES))}, not {quality!r}")


class Cameras:
    """Renders what the named cameras of a model see, each upright, as uint8 (height, width, 3).

    A frame depends on positions only: it is drawn from a copy of the state, so that it neither disturbs the simulation
    nor differs when a stored state is rendered later.

    :param model: MuJoCo's ``MjModel``
    :param quality: ``"fast"`` or ``"full"``, see :data:`QUALITIES`
    :param hidden_groups: Groups of geoms that are not drawn, e.g. robosuite's collision meshes
    :raises ValueError: If the quality is unknown
    """

    def __init__(self, model: Any, quality: str = "fast", hidden_groups: Iterable[int] = ()) -> None:
        check_quality(quality)
        self._mujoco = import_simulator("mujoco")
        self._model = model
        self._copy: Any = None
        self._fast = quality == "fast"
        self._hidden_groups = tuple(hidden_groups)
        self._renderers: dict[tuple[int, int], Any] = {}

    def check(self, names: Iterable[str]) -> None:
        """Refuse cameras that the model lacks.

        :raises ValueError: Naming those that it has
        """
        known = [self._model.camera(k).name for k in range(self._model.ncam)]
        for name in names:
            if name not in known:
                raise ValueError(f"There is no camera {name!r}; this model has {', '.join(known) or 'none'}")

    def frame(self, data: Any, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        """Return what a camera sees of ``data`` (MuJoCo's ``MjData``).

        :raises RenderingError: If this machine cannot render
        """
        if (height, width) not in self._renderers:
            self._renderers[height, width] = self._make_renderer(height, width)
        renderer = self._renderers[height, width]
        renderer.update_scene(self._copy_of(data), camera, self._options())
        if self._fast:
            for flag in (self._mujoco.mjtRndFlag.mjRND_SHADOW, self._mujoco.mjtRndFlag.mjRND_REFLECTION):
                renderer.scene.flags[flag] = 0
        frame: NDArray[np.uint8] = renderer.render()
        return frame

    def close(self) -> None:
        """Free the renderers; a later frame makes them anew."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()

    def _copy_of(self, data: Any) -> Any:
        if self._copy is None:
            self._copy = self._mujoco.MjData(self._model)
        copy = self._copy
        copy.qpos[:], copy.mocap_pos[:], copy.mocap_quat[:] = data.qpos, data.mocap_pos, data.mocap_quat
        for update in (self._mujoco.mj_kinematics, self._mujoco.mj_comPos, self._mujoco.mj_camlight):
            update(self._model, copy)
        self._mujoco.mj_tendon(self._model, copy)
        return copy

    def _options(self) -> Any:
        options = self._mujoco.MjvOption()
        options.geomgroup[list(self._hidden_groups)] = 0
        return options

    def _make_renderer(self, height: int, width: int) -> Any:
        context = getattr(self._mujoco.gl_context, "GLContext", None)
        backend = "none" if context is None else context.__module__.rpartition(".")[2]
        if sys.platform == "linux" and backend not in BACKENDS and not os.environ.get("DISPLAY"):
            raise RenderingError(f"MuJoCo was loaded with the renderer {backend!r}, which cannot draw here. {_ADVICE}")
        # Read while the context is made, which has buffers of its own: no larger than needed, they take memory.
        view = self._model.vis
        view.global_.offheight, view.global_.offwidth = height, width
        if self._fast:
            view.quality.offsamples = view.quality.shadowsize = 0
        try:
            renderer = self._mujoco.Renderer(self._model, height, width)
        except Exception as error:  # OpenGL's loaders raise whatever they like.
            raise RenderingError(f"MuJoCo cannot render with {backend} ({error}). {_ADVICE}") from error
        _close_at_exit(self)
        return renderer


_OPEN: weakref.WeakSet[Cameras] = weakref.WeakSet()


def _close_at_exit(cameras: Cameras) -> None:
    # MuJoCo ends OpenGL when Python exits, and then fails noisily to free what is left. What is registered later runs
    # earlier: registered once the first renderer is there, this comes before it.
    if not _OPEN:
        atexit.register(_close_all)
    _OPEN.add(cameras)


def _close_all() -> None:
    for cameras in list(_OPEN):
        cameras.close()
