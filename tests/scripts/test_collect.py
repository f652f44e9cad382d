import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import zprl_sb3
from zprl_sb3.pretrain.demonstrations import DemonstrationError, load_demonstrations
from zprl_sb3.robot_envs import collection
from zprl_sb3.robot_envs.metaworld import UnstableSimulationError
from zprl_sb3.scripts import cli
from zprl_sb3.scripts.collect import collect, summary
from zprl_sb3.settings import load_settings

ENV = "zprl/Push-v0"
SHORT = "max_episode_steps=40"


def main(arguments):
    return cli.main(["collect", *arguments])


def command(output, *extra, episodes=4):
    return ["--env", ENV, "--episodes", str(episodes), "--output", str(output), "--set", SHORT, *extra]


def start(arguments):
    """Start the program in a process group of its own, as a terminal does."""
    return subprocess.Popen(
        [sys.executable, "-m", "zprl_sb3.scripts.collect", *arguments],
        cwd=Path(zprl_sb3.__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_episodes(output, count, process):
    deadline = time.monotonic() + 60
    while len(list(Path(f"{output}.partial").glob("episode_*.npz"))) < count:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A collection that nobody interrupted: 4 short episodes."""
    output = tmp_path_factory.mktemp("whole") / "demos.hdf5"
    assert main(command(output)) == 0
    return output


@pytest.fixture(scope="module")
def thirty(tmp_path_factory):
    """Another one, of 30 episodes."""
    output = tmp_path_factory.mktemp("thirty") / "demos.hdf5"
    assert main(command(output, episodes=30)) == 0
    return output


def test_the_file_holds_what_was_asked_for(whole):
    demonstrations = load_demonstrations(whole)
    assert len(demonstrations) == 4
    assert demonstrations.env_id == ENV
    assert demonstrations.env_kwargs == {"max_episode_steps": 40, "observation": "state"}
    assert {key: values[0].shape[1] for key, values in demonstrations.observations.items()} == {
        "object": 17,
        "proprio": 9,
    }
    assert all(len(actions) <= 40 for actions in demonstrations.actions)
    assert not Path(f"{whole}.partial").exists()


def test_the_layouts_differ(whole):
    starts = {observation[0].tobytes() for observation in load_demonstrations(whole).observations["object"]}
    assert len(starts) == 4


def test_the_recorded_actions_lead_through_the_recorded_states(whole):
    import gymnasium as gym
    import h5py

    demonstrations = load_demonstrations(whole)
    env = gym.make(demonstrations.env_id, **demonstrations.env_kwargs)
    with h5py.File(whole) as file:
        demo = file["data/demo_1"]
        observation, _ = env.reset(seed=int(demo.attrs["seed"]))
        for t, action in enumerate(demo["actions"][()].astype(np.float32)):
            np.testing.assert_array_equal(observation["object"], demo["obs/object"][t])
            np.testing.assert_array_equal(env.unwrapped.get_state(), demo["states"][t])
            observation, *_ = env.step(action)
            np.testing.assert_array_equal(observation["object"], demo["next_obs/object"][t])


def test_two_processes_write_the_same_bytes(whole, tmp_path):
    assert main(command(tmp_path / "demos.hdf5", "--jobs", "2")) == 0
    assert (tmp_path / "demos.hdf5").read_bytes() == whole.read_bytes()


def test_another_seed_writes_other_episodes(whole, tmp_path):
    main(command(tmp_path / "demos.hdf5", "--seed", "1", episodes=1))
    other = load_demonstrations(tmp_path / "demos.hdf5").observations["object"][0][0]
    assert (other != load_demonstrations(whole).observations["object"][0][0]).any()


def test_more_episodes_begin_with_the_same_ones(whole, tmp_path):
    main(command(tmp_path / "demos.hdf5", episodes=2))
    few, many = load_demonstrations(tmp_path / "demos.hdf5"), load_demonstrations(whole)
    np.testing.assert_array_equal(few.actions[1], many.actions[1])


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_killed_run_goes_on_where_it_stopped(thirty, tmp_path, jobs):
    output = tmp_path / "killed.hdf5"
    process = start(command(output, "--jobs", jobs, episodes=30))
    wait_for_episodes(output, 3, process)
    process.kill()  # The parent only: its workers must notice.
    process.wait()
    assert not output.exists()
    kept = {path: path.stat().st_mtime_ns for path in Path(f"{output}.partial").glob("episode_*.npz")}
    seen = {}

    def note(paths, *_):
        seen.update(paths)
        return original(paths, *_)

    original = collection.record_episodes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zprl_sb3.scripts.collect.record_episodes", note)
        assert main(command(output, "--jobs", jobs, episodes=30)) == 0
    assert not set(seen.values()) & set(kept)
    assert output.read_bytes() == thirty.read_bytes()


def test_the_workers_of_a_killed_run_end(tmp_path):
    output = tmp_path / "demos.hdf5"
    process = start(command(output, "--jobs", "2", episodes=200))
    wait_for_episodes(output, 2, process)
    process.kill()
    # The workers hold the other end of the pipe: it closes when the last of them is gone.
    process.communicate(timeout=20)


def test_a_killed_worker_is_named(tmp_path):
    output = tmp_path / "demos.hdf5"
    process = start(command(output, "--jobs", "2", episodes=30))
    wait_for_episodes(output, 3, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    worker = next(child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes())
    os.kill(int(worker), signal.SIGKILL)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "probably for lack of memory: use fewer --jobs" in text
    assert "Traceback" not in text


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_ctrl_c_says_how_to_go_on(tmp_path, jobs):
    output = tmp_path / "demos.hdf5"
    process = start(command(output, "--jobs", jobs, episodes=200))
    wait_for_episodes(output, 2, process)
    os.killpg(process.pid, signal.SIGINT)
    text, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Interrupted" in text
    assert ("the episodes under way are finished first" in text) == (jobs == "2")
    assert "The same command goes on from there" in text
    assert "Traceback" not in text
    assert not output.exists()
    assert len(list(Path(f"{output}.partial").glob("episode_*.npz"))) >= 2


def test_a_finished_file_is_left_alone(whole, capsys):
    before = whole.stat().st_mtime_ns
    assert main(command(whole)) == 0
    assert "complete already" in capsys.readouterr().out
    assert whole.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("extra", "named"),
    [(["--seed", "1"], "seed"), (["--episodes", "5"], "episodes"), (["--set", "keep_failures=false"], "settings")],
)
def test_a_finished_file_of_another_collection_is_refused(whole, capsys, extra, named):
    assert main([*command(whole), *extra]) == 1
    assert f"differs in {named}" in capsys.readouterr().err


def test_overwrite_replaces_a_finished_file(tmp_path):
    output = tmp_path / "demos.hdf5"
    main(command(output, episodes=1))
    assert main(command(output, "--seed", "1", "--overwrite", episodes=2)) == 0
    assert len(load_demonstrations(output)) == 2


@pytest.fixture
def unfinished(tmp_path, monkeypatch):
    """The output of a collection that stopped after its first episode."""
    original = collection.save_episode

    def stop_at_the_second(path, episode):
        if path.name == "episode_000001.npz":
            raise KeyboardInterrupt
        original(path, episode)

    with monkeypatch.context() as patch:
        patch.setattr(collection, "save_episode", stop_at_the_second)
        assert main(command(tmp_path / "demos.hdf5")) == 130
    return tmp_path / "demos.hdf5"


@pytest.mark.parametrize(
    ("extra", "named"), [(["--seed", "1"], "seed"), (["--set", "operators.okay.noise=0"], "settings")]
)
def test_another_command_on_an_unfinished_collection_is_refused(unfinished, whole, capsys, extra, named):
    assert main([*command(unfinished), *extra]) == 1
    assert f"differs in {named}" in capsys.readouterr().err
    assert main(command(unfinished)) == 0
    assert unfinished.read_bytes() == whole.read_bytes()


def test_overwrite_drops_an_unfinished_collection(unfinished):
    assert main(command(unfinished, "--seed", "1", "--overwrite", episodes=1)) == 0
    assert len(load_demonstrations(unfinished)) == 1


def test_only_successes_are_kept_on_request(tmp_path):
    settings = load_settings("collect.yml", ENV, ["keep_failures=false", "max_episode_steps=80"])
    path = collect(ENV, 2, 0, tmp_path / "demos.hdf5", settings=settings)
    assert load_demonstrations(path).successes == [True, True]


def test_a_hopeless_task_ends_with_a_message(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(collection, "MAX_ATTEMPTS", 2)
    extra = ["--set", "keep_failures=false", "max_episode_steps=1"]
    assert main([*command(tmp_path / "demos.hdf5"), *extra]) == 1
    assert "no success in 2 attempts" in capsys.readouterr().err


def test_an_unstable_episode_is_tried_again_and_reported(tmp_path, monkeypatch):
    original, calls = collection.demonstrate, []

    def unstable_once(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise UnstableSimulationError("NaN")
        return original(*arguments)

    monkeypatch.setattr(collection, "demonstrate", unstable_once)
    with pytest.warns(UserWarning, match="Episode 0 is tried again"):
        main(command(tmp_path / "demos.hdf5", episodes=1))
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("max_episode_steps=0", "max_episode_steps"),
        ("max_episode_steps=many", "max_episode_steps"),
        ("keep_failures=never", "keep_failures"),
        ("operators=none", "operators"),
        ("env_kwargs.foo=1", "zprl/Push-v0 has no argument 'foo'"),
        ("operators.okay=none", "operators"),
        ("operators.okay.noise=[1,0]", "'okay' needs 'noise'"),
        ("observation=sound", "not available"),
        ("env_kwargs.observation=image", "observation: a setting of its own, not one of env_kwargs"),
        ("env_kwargs.max_episode_steps=9", "max_episode_steps: a setting of its own, not one of env_kwargs"),
        ("speed=3", "unknown setting 'speed'"),
        ("speed", "key=value"),
    ],
)
def test_a_wrong_setting_is_named_before_anything_is_written(tmp_path, capsys, change, message):
    assert main(["--env", ENV, "--output", str(tmp_path / "demos.hdf5"), "--set", change]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("env", "message"), [("zprl/Pusch-v0", "Pusch"), ("CartPole-v1", "demonstrator")])
def test_an_environment_without_demonstrator_is_refused(tmp_path, capsys, env, message):
    assert main(["--env", env, "--output", str(tmp_path / "demos.hdf5")]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("extra", [["--episodes", "0"], ["--jobs", "0"], ["--seed", "-1"]])
def test_numbers_out_of_range_are_refused(tmp_path, extra):
    with pytest.raises(SystemExit) as caught:
        main(["--env", ENV, "--output", str(tmp_path / "demos.hdf5"), *extra])
    assert caught.value.code == 2


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "zprl collect --env zprl/Push-v0" in capsys.readouterr().out


def test_the_summary_has_a_line_for_each_quality(whole):
    demonstrations = load_demonstrations(whole)
    lines = summary(demonstrations).splitlines()
    assert [line.split()[0] for line in lines[1:]] == [
        *(quality for quality in ("better", "okay", "worse") if quality in demonstrations.qualities),
        "all",
    ]
    assert lines[-1].split()[1] == "4"


def test_a_file_of_another_program_is_not_replaced(tmp_path):
    (tmp_path / "demos.hdf5").write_text("precious")
    with pytest.raises(DemonstrationError, match="not an HDF5 file"):
        collect(ENV, 1, 0, tmp_path / "demos.hdf5")
    assert (tmp_path / "demos.hdf5").read_text() == "precious"
