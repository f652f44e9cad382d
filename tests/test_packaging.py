"""The built package holds what the tree holds: each file once, under ``zprl_sb3/``, and nothing else."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

FOLDERS = ("wrappers", "pretrain", "hyperparams", "robot_envs", "scripts")
SUFFIXES = (".py", ".yml", ".yaml", ".typed", ".html", ".xml")


@pytest.fixture(scope="module")
def tracked(repository: Path) -> list[str]:
    if not (repository / ".git").exists() or shutil.which("git") is None:
        pytest.skip("Only a git checkout knows which files belong to the project")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=repository, check=True, capture_output=True, text=True)
    return [name for name in listing.stdout.split("\0") if name and (repository / name).exists()]


@pytest.fixture(scope="module")
def source(repository: Path, tracked: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the tracked files, links as links: building leaves nothing behind in the tree."""
    root = tmp_path_factory.mktemp("source")
    for name in tracked:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(repository / name, root / name, follow_symlinks=False)
    return root


@pytest.fixture(scope="module")
def expected(tracked: list[str]) -> list[str]:
    """Return the names in the wheel that the tracked files stand for."""
    package = [name for name in tracked if name.startswith("zprl_sb3/")]
    mapped = [f"zprl_sb3/{name}" for name in tracked if name.split("/")[0] in FOLDERS]
    return sorted(name for name in package + mapped if name.endswith(SUFFIXES))


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel built straight from the tree."""
    return next(build(source, tmp_path_factory.mktemp("wheel"), "--wheel").glob("*.whl"))


@pytest.fixture(scope="module")
def release(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the sdist and the wheel built from it, as they would be published."""
    return build(source, tmp_path_factory.mktemp("release"))


def build(source: Path, target: Path, *options: str) -> Path:
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), *options, str(source)]
    result = subprocess.run(command, cwd=target, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    # Left in place, setuptools would put files of an earlier build into the next one.
    shutil.rmtree(source / "build", ignore_errors=True)
    return target


def contents(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return sorted(name for name in archive.namelist() if ".dist-info/" not in name)


def test_there_is_a_file_of_every_folder(expected: list[str]) -> None:
    assert {name.split("/")[1] for name in expected} >= {*FOLDERS, "py.typed"}


def test_wheel_holds_every_file_once_and_nothing_else(wheel: Path, expected: list[str]) -> None:
    assert contents(wheel) == expected


def test_wheel_from_the_sdist_holds_the_same(release: Path, expected: list[str]) -> None:
    assert contents(next(release.glob("*.whl"))) == expected


def test_sdist_holds_every_file_once(release: Path, expected: list[str]) -> None:
    with tarfile.open(next(release.glob("*.tar.gz"))) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    sources = [name.removeprefix("zprl_sb3/") if name.split("/")[1] in FOLDERS else name for name in expected]
    assert sorted(name for name in names if name.startswith(("zprl_sb3/", *FOLDERS)) and name.endswith(SUFFIXES)) == (
        sorted(sources)
    )
    assert {"LICENSE", "setup.cfg", "pyproject.toml"} <= set(names)


def test_entry_points(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt"))
        parser = configparser.ConfigParser()
        parser.read_string(archive.read(name).decode())
    assert dict(parser["console_scripts"]) == {"zprl": "zprl_sb3.scripts.cli:entry"}
    assert dict(parser["gymnasium.envs"]) == {"__root__": "zprl_sb3.robot_envs:register_envs"}


def test_links_lead_to_the_mapped_folders(repository: Path) -> None:
    parser = configparser.ConfigParser()
    parser.read(repository / "setup.cfg")
    mapping = dict(line.split(" = ") for line in parser["options"]["package_dir"].strip().splitlines())
    assert mapping.pop("zprl_sb3") == "zprl_sb3"
    assert mapping == {f"zprl_sb3.{folder}": folder for folder in FOLDERS}
    for folder in FOLDERS:
        link = repository / "zprl_sb3" / folder
        assert link.is_symlink()
        assert link.readlink() == Path("..", folder)


def test_folders_are_not_importable_by_their_bare_names(tmp_path: Path) -> None:
    """Outside the repository; inside it the linter forbids it."""
    code = f"import importlib.util as u; print([n for n in {FOLDERS} if u.find_spec(n)])"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "[]"
