import ctypes
import os
import subprocess
import sys
import types

import gymnasium as gym
import numpy as np
import pytest

from zprl_sb3.robot_envs.rendering import Cameras, RenderingError, prepare_rendering

mujoco = pytest.importorskip("mujoco")

SCENE = """
<mujoco>
  <worldbody>
    <light pos="0 0 3"/>
    <camera name="front" pos="0 -2 0" xyaxes="1 0 0 0 0 1"/>
    <body><freejoint/><geom type="box" size=".3 .3 .3" rgba="1 0 0 1"/></body>
    <geom type="sphere" size=".2" pos="0 0 1" rgba="0 1 0 1" group="0"/>
    <geom type="sphere" size=".2" pos="0.5 0 -.6" rgba="0 0 1 1" group="1"/>
  </worldbody>
</mujoco>
"""


@pytest.fixture
def scene():
    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


def test_a_frame_is_upright_and_not_mirrored(scene):
    frame = Cameras(scene[0]).frame(scene[1], "front", 80, 80).astype(int)
    assert frame.shape == (80, 80, 3)
    green, blue = (np.argwhere(frame[:, :, k] > frame[:, :, 0] + 20).mean(axis=0) for k in (1, 2))
    assert green[0] < 30
    assert blue[0] > 50
    assert blue[1] > 50


def test_hidden_groups_are_not_drawn(scene):
    frame = Cameras(scene[0], hidden_groups=(1,)).frame(scene[1], "front", 40, 40).astype(int)
    assert not (frame[:, :, 2] > frame[:, :, 0] + 20).any()


def test_drawing_leaves_the_simulation_alone(scene):
    model, data = scene
    before = [np.array(getattr(data, name)) for name in ("qpos", "qvel", "qacc_warmstart", "xpos")]
    data.qpos[2] = 0.3
    Cameras(model).frame(data, "front", 40, 40)
    assert data.qpos[2] == 0.3
    np.testing.assert_array_equal(before[3], data.xpos)
    np.testing.assert_array_equal(before[2], data.qacc_warmstart)


def test_a_frame_depends_on_positions_only(scene):
    model, data = scene
    cameras = Cameras(model)
    data.qpos[0] = 0.3  # Its place in the world is not computed yet.
    before = cameras.frame(data, "front", 40, 40)
    mujoco.mj_forward(model, data)
    np.testing.assert_array_equal(cameras.frame(data, "front", 40, 40), before)


def test_sizes_may_differ_and_exceed_the_models_buffer(scene):
    cameras = Cameras(scene[0], "full")
    assert cameras.frame(scene[1], "front", 500, 700).shape == (500, 700, 3)
    assert cameras.frame(scene[1], "front", 10, 20).shape == (10, 20, 3)


def test_it_draws_again_after_close(scene):
    cameras = Cameras(scene[0])
    frame = cameras.frame(scene[1], "front", 20, 20)
    cameras.close()
    cameras.close()
    np.testing.assert_array_equal(cameras.frame(scene[1], "front", 20, 20), frame)


def test_an_unknown_camera_is_named_with_those_that_exist(scene):
    with pytest.raises(ValueError, match="no camera 'top'; this model has front"):
        Cameras(scene[0]).check(["front", "top"])


def test_an_unknown_quality_is_named(scene):
    with pytest.raises(ValueError, match="'fast' or 'full', not 'good'"):
        Cameras(scene[0], "good")


def test_fast_and_full_differ():
    frames = []
    for quality in ("fast", "full"):
        env = gym.make("zprl/Push-v0", render_quality=quality)
        env.reset(seed=0)
        frames.append(env.unwrapped.images()["corner2_image"].astype(int))
    difference = np.abs(frames[0] - frames[1])
    assert difference.max() > 20
    assert difference.mean() < 20


# As where a package is not installed: code for a process of its own, in which these libraries cannot be loaded.
WITHOUT_LIBRARIES = """
import ctypes

load = ctypes.CDLL.__init__

def lacking(self, name, *arguments, **options):
    if name and str(name).startswith({missing}):
        raise OSError(name + ": cannot open shared object file")
    load(self, name, *arguments, **options)

ctypes.CDLL.__init__ = lacking
"""
EPISODES = """
import os
import gymnasium as gym, numpy as np, zprl_sb3.robot_envs

for name, action in {"Push": [0] * 4, "Lift": [0, 0, 1, 1, 0, 0, 0, 1, 0, 0], "AdroitDoor": [0] * 28}.items():
    env = gym.make(f"zprl/{name}-v0", max_episode_steps=5)
    env.reset(seed=0)
    print([env.step(np.array(action, np.float32))[3] for _ in range(5)], os.environ["MUJOCO_GL"])
env.unwrapped.images()
"""


def run(code, **variables):
    """Run code in a process of its own where no display is and only ``variables`` speak of rendering."""
    unset = ("DISPLAY", "MUJOCO_GL", "PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID", "CUDA_VISIBLE_DEVICES")
    environment = {key: value for key, value in os.environ.items() if key not in unset} | variables
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


@pytest.mark.skipif(sys.platform != "linux", reason="MUJOCO_GL names other renderers elsewhere")
class TestWithoutARenderer:
    @pytest.fixture
    def before_the_import(self, monkeypatch):
        """As if MuJoCo were not imported yet, without a display."""
        monkeypatch.delitem(sys.modules, "mujoco")
        monkeypatch.delenv("DISPLAY", raising=False)
        monkeypatch.setenv("MUJOCO_GL", "")

    @pytest.fixture
    def libraries(self, monkeypatch, before_the_import):
        """The names of the libraries that can be loaded, to add to."""
        names = set()

        def load(name):
            if name not in names:
                raise OSError(name)

        monkeypatch.setattr(ctypes, "CDLL", load)
        return names

    @pytest.mark.parametrize(
        ("there", "expected"),
        [
            (["libEGL.so.1", "libOSMesa.so.8"], "egl"),
            (["libEGL.so"], "egl"),
            (["libOSMesa.so.8"], "osmesa"),
            ([], "disable"),
        ],
    )
    def test_the_default_is_what_can_be_loaded(self, libraries, there, expected):
        libraries.update(there)
        for _ in range(2):
            prepare_rendering()
            assert os.environ["MUJOCO_GL"] == expected

    def test_a_display_leaves_the_choice_to_mujoco(self, libraries, monkeypatch):
        monkeypatch.setenv("DISPLAY", ":0")
        prepare_rendering()
        assert os.environ["MUJOCO_GL"] == ""

    @pytest.mark.parametrize(("backend", "other"), [("egl", "libOSMesa.so.8"), ("osmesa", "libEGL.so.1")])
    def test_a_named_renderer_is_not_replaced(self, libraries, monkeypatch, backend, other):
        libraries.add(other)
        monkeypatch.setenv("MUJOCO_GL", backend)
        with pytest.raises(RenderingError, match=rf"^MUJOCO_GL={backend}, but lib\w+.so cannot be loaded.*libegl1"):
            prepare_rendering()
        assert os.environ["MUJOCO_GL"] == backend

    def test_an_unknown_renderer_is_named(self, before_the_import, monkeypatch):
        monkeypatch.setenv("MUJOCO_GL", "vulkan")
        with pytest.raises(RenderingError, match=r"'vulkan'.*MUJOCO_GL=egl"):
            prepare_rendering()

    def test_nothing_is_refused_once_mujoco_is_imported(self, monkeypatch):
        monkeypatch.setenv("MUJOCO_GL", "vulkan")
        prepare_rendering()

    @pytest.mark.slow
    def test_states_need_no_renderer_for_real(self):
        for simulator in ("metaworld", "robosuite", "gymnasium_robotics"):
            pytest.importorskip(simulator)
        result = run(WITHOUT_LIBRARIES.format(missing=("libEGL", "libOSMesa")) + EPISODES)
        assert result.stdout.splitlines() == ["[False, False, False, False, True] disable"] * 3
        assert result.returncode == 1
        assert result.stderr.splitlines()[-1].startswith("zprl_sb3.robot_envs.rendering.RenderingError: MuJoCo was")
        assert "Set MUJOCO_GL=egl" in result.stderr.splitlines()[-1]

    @pytest.mark.slow
    def test_robosuite_refuses_a_gpu_that_cuda_hides(self):
        pytest.importorskip("robosuite")
        code = "import gymnasium, zprl_sb3.robot_envs; gymnasium.make('zprl/Lift-v0')"
        result = run(code, MUJOCO_EGL_DEVICE_ID="1", CUDA_VISIBLE_DEVICES="0")
        assert "RenderingError: robosuite refuses MUJOCO_EGL_DEVICE_ID='1' with" in result.stderr.splitlines()[-1]
        assert result.returncode == 1

    @pytest.mark.parametrize("context", [None, types.new_class("GLContext")])
    def test_a_windows_renderer_without_a_display_says_what_to_set(self, scene, monkeypatch, context):
        monkeypatch.delenv("DISPLAY", raising=False)
        if context is not None:
            context.__module__ = "mujoco.glfw"
        monkeypatch.setattr(mujoco.gl_context, "GLContext", context)
        with pytest.raises(RenderingError, match="Set MUJOCO_GL=egl"):
            Cameras(scene[0]).frame(scene[1], "front", 20, 20)

    @pytest.mark.slow
    @pytest.mark.parametrize("backend", ["vulkan", "glfw", "off"])
    def test_for_real(self, backend):
        code = "import gymnasium, zprl_sb3.robot_envs as r; e = gymnasium.make('zprl/Push-v0', observation='image')"
        result = run(f"{code}; e.reset(seed=0)", MUJOCO_GL=backend)
        assert result.returncode == 1
        assert "Set MUJOCO_GL=egl" in result.stderr.splitlines()[-1]

    def test_a_renderer_that_fails_says_why(self, scene, monkeypatch):
        def fail(*_):
            raise AttributeError("no libEGL")

        monkeypatch.setattr(mujoco, "Renderer", fail)
        with pytest.raises(RenderingError, match=r"no libEGL.*libegl1"):
            Cameras(scene[0]).frame(scene[1], "front", 20, 20)

    def test_python_ends_quietly(self):
        code = (
            "import mujoco; from zprl_sb3.robot_envs.rendering import Cameras; "
            f"model = mujoco.MjModel.from_xml_string('''{SCENE}'''); cameras = Cameras(model); "
            "cameras.frame(mujoco.MjData(model), 'front', 9, 9)"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (result.returncode, result.stderr) == (0, "")
