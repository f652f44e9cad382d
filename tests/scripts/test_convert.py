import h5py
import numpy as np
import pytest

from recordings import record_robomimic
from zprl_sb3.pretrain.recording import read_collection
from zprl_sb3.scripts.convert import convert

pytest.importorskip("robosuite")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return record_robomimic(tmp_path_factory.mktemp("robomimic") / "lift.hdf5", steps=16)


def test_a_converted_file_is_taken_by_pretrain(source, tmp_path, zprl):
    demos = tmp_path / "demos.hdf5"
    code, out, err = zprl("convert", source, "--output", demos)
    assert code == 0
    assert "Converting 2 episodes of zprl/Lift-v0" in out
    assert "all             2       0%       16.0" in out
    assert "2/2" in err  # the progress bar
    collection = read_collection(demos)
    assert collection["env_id"] == "zprl/Lift-v0"
    assert collection["converted"]["env_version"] == "1.5.2"
    sizes = ("model.horizon=4", "model.chunk=2", "model.unet_widths=[8,16]", "training.batch_size=8")
    run = f"output={tmp_path / 'base'}"
    code, _, err = zprl(
        *("pretrain", f"demos={demos}", run, "mask=train", "model=state", "training=short", "evaluation.episodes=0"),
        *("training.steps=2", "training.validate_every=2", "training.save_every=2", "device=cpu", *sizes),
    )
    assert code == 0, err
    assert (tmp_path / "base/policy").is_dir()


def test_an_existing_file_is_kept_unless_told_otherwise(source, tmp_path, zprl):
    output = tmp_path / "demos.hdf5"
    output.write_text("precious")
    code, _, err = zprl("convert", source, "--output", output)
    assert code == 1
    assert "exists already" in err
    assert output.read_text() == "precious"
    assert zprl("convert", source, "--output", output, "--overwrite")[0] == 0
    assert h5py.is_hdf5(output)


def test_a_failure_leaves_nothing(source, tmp_path, zprl):
    path = tmp_path / "source.hdf5"
    path.write_bytes(source.read_bytes())
    with h5py.File(path, "a") as file:
        file["data/demo_1/obs/robot0_eef_pos"][...] += 1.0
    code, _, err = zprl("convert", path, "--output", tmp_path / "out/demos.hdf5")
    assert code == 1
    assert "demo_1, obs/robot0_eef_pos: it differs by" in err
    assert list((tmp_path / "out").iterdir()) == []


def test_converting_twice_gives_the_same(source, tmp_path):
    paths = [convert(source, tmp_path / name) for name in ("one.hdf5", "two.hdf5")]
    with h5py.File(paths[0]) as one, h5py.File(paths[1]) as two:
        names = []
        one.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        assert len(names) > 20
        for name in names:
            np.testing.assert_array_equal(one[name][()], two[name][()])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.hdf5"], "none.hdf5: no such file, and no id of a Minari data set"),
        (["{folder}"], "no data set of Minari"),
        (["{folder}", "--observation", "image"], "Minari's data sets have no images"),
        (["{source}", "--render", "fast"], "--render is about images"),
        (["{source}", "--observation", "image"], "holds no images obs/agentview_image"),
    ],
)
def test_what_cannot_be_converted_says_why(source, tmp_path, zprl, arguments, message):
    filled = [argument.format(folder=tmp_path, source=source) for argument in arguments]
    code, _, err = zprl("convert", *filled, "--output", tmp_path / "demos.hdf5")
    assert code == 1
    assert message in err
    assert not (tmp_path / "demos.hdf5").exists()


def test_help_shows_examples(zprl):
    code, out, _ = zprl("convert", "--help")
    assert code == 0
    assert "zprl convert D4RL/door/human-v2" in out


def test_pretrain_points_here(source, tmp_path, zprl):
    code, _, err = zprl("pretrain", f"demos={source}", f"output={tmp_path}")
    assert code == 1
    assert f"Convert it with: zprl convert {source} --output" in err
