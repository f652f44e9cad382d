"""``scripts/install.sh`` on machines that lack something. Every program it calls is a stub: nothing is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

BASH = shutil.which("bash")
PACKAGES = ["libosmesa6", "libegl1", "libgl1", "libgl1-mesa-dri", "libgles2"]
PYTHON_STUB = """
case "$*" in
    *version_info*) echo "{version}" ;;
    *sysconfig*) echo "{root}/include" ;;
    *ensurepip*) exit {no_venv} ;;
    "-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python && echo "venv of ${{0##*/}}" >> "{root}/calls" ;;
    "-m pip --version") ;;
    *) echo "${{0##*/}} $*" >> "{root}/calls" ;;
esac
"""
APT_STUB = """
echo "apt-get $*" >> "{root}/calls"
case "$*" in *recommends*) ;; *) exit ;; esac
while [ "$1" != --no-install-recommends ]; do shift; done
shift
[ $# -le {longest} ] || exit 100
for package; do : > "{root}/has-$package"; done
"""

pytestmark = pytest.mark.skipif(BASH is None, reason="the script is for bash")


class Machine:
    """A folder with a copy of the script, and a PATH that leads only to what a test puts there."""

    def __init__(self, root: Path, script: Path) -> None:
        self.root, self.bin = root, root / "bin"
        for folder in ("bin", "scripts", "include"):
            (root / folder).mkdir()
        (root / "calls").touch()
        shutil.copy(script, root / "scripts" / "install.sh")
        for name in ("dirname", "grep", "env", "mkdir", "cp"):
            (self.bin / name).symlink_to(shutil.which(name) or "")

    def add(self, name: str, body: str = "") -> Path:
        """Put a program into the PATH, or beside it where ``name`` is a path with folders."""
        path = self.bin / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!{BASH}\n{body}")
        path.chmod(0o755)
        return path

    def add_python(self, name: str = "python3", version: str = "3 12", has_venv: bool = True) -> Path:
        return self.add(name, PYTHON_STUB.format(version=version, root=self.root, no_venv=int(not has_venv)))

    def add_compiler(self) -> None:
        for name in ("cc", "c++"):
            self.add(name)
        (self.root / "include" / "Python.h").touch()

    def add_apt(self, installed: list[str], user: int = 0, one_at_a_time: bool = False) -> None:
        """Let it be Debian: ``apt-get install`` succeeds, unless ``one_at_a_time`` refuses longer lists."""
        for package in installed:
            (self.root / f"has-{package}").touch()
        self.add("id", f"echo {user}\n")
        self.add("dpkg-query", f'[ -e "{self.root}/has-${{@: -1}}" ] && echo "install ok installed"\n')
        self.add("apt-get", APT_STUB.format(root=self.root, longest=1 if one_at_a_time else 99))

    def install(self, **environment: str) -> tuple[int, str, str]:
        """Run the script: exit code, standard output, standard error."""
        result = subprocess.run(
            [str(BASH), str(self.root / "scripts" / "install.sh")],
            env={"PATH": str(self.bin), **environment},
            cwd=os.sep,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return result.returncode, result.stdout, result.stderr

    def calls(self) -> list[str]:
        """Return what the stubs were asked to do."""
        return (self.root / "calls").read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path, repository: Path) -> Machine:
    return Machine(tmp_path, repository / "scripts" / "install.sh")


def assert_installed(machine: Machine, python: str = "python3") -> None:
    """The virtual environment was made, then torch alone and pinned, then the rest."""
    pip = "python -m pip install -q --disable-pip-version-check -c constraints.txt"
    calls = [call for call in machine.calls() if not call.startswith("apt-get")]
    assert calls == [
        f"venv of {python}",
        f"{pip} torch",
        f"{pip} -e .[sim,analysis,dev]",
        f"{pip} --no-deps --no-build-isolation robomimic",
    ]


def test_no_python(machine: Machine) -> None:
    code, _, err = machine.install()
    assert code == 1
    assert "no Python 3.10 or newer was found" in err
    assert "make install PYTHON=/path/to/python3" in err
    assert not (machine.root / ".venv").exists()


@pytest.mark.parametrize("version", ["3 9", "2 7", ""])
def test_only_pythons_that_do_not_suit(machine: Machine, version: str) -> None:
    machine.add_python(version=version)
    machine.add("python3.12", "echo 'pyenv: python3.12: command not found' >&2; exit 127\n")
    code, _, err = machine.install()
    assert code == 1
    assert "no Python 3.10 or newer was found" in err
    assert not machine.calls()


def test_a_python_that_was_named_and_does_not_suit(machine: Machine) -> None:
    machine.add_python()
    old = machine.add_python("old/python", "3 9")
    assert machine.install(PYTHON=str(old))[0] == 1
    assert f"PYTHON={old} is not Python 3.10 or newer (it is 3.9)" in machine.install(PYTHON=str(old))[2]
    code, _, err = machine.install(PYTHON="/nowhere/python3")
    assert code == 1
    assert "PYTHON=/nowhere/python3 is not Python 3.10 or newer (it cannot be run)" in err
    assert not machine.calls()


def test_a_python_in_a_folder_with_a_space(machine: Machine) -> None:
    python = machine.add_python("my programs/python3.11", "3 11")
    assert machine.install(PYTHON=str(python))[0] == 0
    assert_installed(machine, "python3.11")


def test_the_first_python_that_suits_is_taken(machine: Machine) -> None:
    for name, version in (("python3", "3 9"), ("python3.11", "3 11"), ("python3.13", "3 13")):
        machine.add_python(name, version)
    code, out, _ = machine.install()
    assert code == 0
    assert "making .venv with python3.11 (3.11)" in out
    assert_installed(machine, "python3.11")


def test_a_python_that_is_too_new_for_robosuite_is_taken_last_and_says_so(machine: Machine) -> None:
    machine.add_python(version="3 14")
    code, _, err = machine.install()
    assert code == 0
    assert "python3 is newer than 3.12: robosuite and its environments are left out" in err
    assert_installed(machine)


def test_without_apt_get_the_user_sees_to_the_system(machine: Machine) -> None:
    machine.add_python()
    code, out, err = machine.install()
    assert code == 0
    assert "no apt-get here: see to a C compiler, Python's headers, EGL or OSMesa yourself" in err
    assert out.splitlines()[-1] == "install: done"
    assert_installed(machine)


def test_apt_get_is_left_alone_where_that_was_asked_for(machine: Machine) -> None:
    machine.add_python(has_venv=False)
    machine.add_apt(installed=PACKAGES[1:-1])
    code, _, err = machine.install(SYSTEM_PACKAGES="no")
    assert code == 0
    assert "these system packages are missing" in err
    missing = "libosmesa6 libgles2 build-essential python3.12-dev python3.12-venv"
    assert f"sudo apt-get install -y --no-install-recommends {missing}\n" in err
    assert_installed(machine)
    assert not any(call.startswith("apt-get") for call in machine.calls())


@pytest.mark.parametrize("packages", ["no", "yes"])
def test_nothing_is_said_where_nothing_is_missing(machine: Machine, packages: str) -> None:
    machine.add_python()
    machine.add_compiler()
    machine.add_apt(installed=PACKAGES)
    assert machine.install(SYSTEM_PACKAGES=packages)[::2] == (0, "")
    assert_installed(machine)


def test_without_root_and_sudo_it_says_what_to_run(machine: Machine) -> None:
    machine.add_python()
    machine.add_compiler()
    machine.add_apt(installed=PACKAGES[1:], user=1000)
    code, _, err = machine.install()
    assert code == 0
    assert "sudo apt-get install -y --no-install-recommends libosmesa6\n" in err
    assert_installed(machine)


@pytest.mark.parametrize("one_at_a_time", [False, True])
def test_root_installs_what_is_missing(machine: Machine, one_at_a_time: bool) -> None:
    machine.add_python()
    machine.add_compiler()
    machine.add_apt(installed=PACKAGES[2:], one_at_a_time=one_at_a_time)
    code, out, err = machine.install()
    assert (code, err) == (0, "")
    assert "system packages: libosmesa6 libegl1" in out
    installs = [call.partition("recommends ")[2] for call in machine.calls() if "apt-get -qq -o" in call]
    assert installs == ["libosmesa6 libegl1", *(["libosmesa6", "libegl1"] if one_at_a_time else [])]
    assert_installed(machine)


def test_a_virtual_environment_that_works_is_kept(machine: Machine) -> None:
    machine.add_python()
    for _ in range(2):
        assert machine.install()[0] == 0
    assert [call for call in machine.calls() if call.startswith("venv")] == ["venv of python3"]


def test_one_without_pip_is_made_anew(machine: Machine) -> None:
    machine.add_python()
    machine.add("../.venv/bin/python", "exit 1\n")
    assert machine.install()[0] == 0
    assert_installed(machine)
