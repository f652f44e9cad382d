"""``zprl``: help, unknown programs, and how errors end."""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import pytest

from zprl_sb3.pretrain.configuration import compose
from zprl_sb3.scripts import cli

ARGPARSE = [name for name in cli.PROGRAMS if name not in ("attach", "pretrain")]  # those are Hydra's


def test_help_names_every_program(zprl: Any) -> None:
    code, out, err = zprl("--help")
    assert (code, err) == (0, "")
    for name, text in cli.PROGRAMS.items():
        assert name in out
        assert text in out


def test_without_a_program_the_help_is_shown_and_it_is_an_error(zprl: Any) -> None:
    code, out, _ = zprl()
    assert code == 2
    assert "usage: zprl PROGRAM" in out


def test_an_unknown_program_is_named(zprl: Any) -> None:
    code, _, err = zprl("trian")
    assert code == 2
    assert "no program 'trian'" in err
    assert "train" in err


@pytest.mark.parametrize("name", ARGPARSE)
def test_every_argument_is_described(name: str, zprl: Any) -> None:
    parser: argparse.ArgumentParser = importlib.import_module(f"zprl_sb3.scripts.{name.replace('-', '_')}").parser()
    for action in parser._actions:
        assert action.help, action.dest
    code, out, _ = zprl(name, "--help")
    assert code == 0
    assert out.startswith(f"usage: zprl {name}")
    assert f"zprl {name} " in out[out.index("examples:") :]


def test_the_help_of_attach_shows_every_setting(zprl: Any) -> None:
    code, out, _ = zprl("attach", "--help")
    assert code == 0
    assert "usage: zprl attach policy=CHECKPOINT demos=FILE output=FOLDER" in out
    config = compose("attach", ["policy=x", "output=y"])
    for key in (*config, *config["options"], *config["training"], *config["evaluation"]):
        assert f"{key}:" in out


def test_the_help_of_pretrain_shows_every_setting(zprl: Any) -> None:
    code, out, _ = zprl("pretrain", "--help")
    assert code == 0
    assert "usage: zprl pretrain demos=FILE output=FOLDER" in out
    config = compose(overrides=["demos=x", "output=y"])
    for key in (*config, *config["model"], *config["training"], *config["evaluation"]):
        assert f"{key}:" in out
    assert "output=runs/push/base-${seed}" in out


def test_a_wrong_argument_shows_the_usage(zprl: Any) -> None:
    code, _, err = zprl("train", "--polcy", "x")
    assert code == 2
    assert "usage: zprl train" in err


def test_help_loads_neither_torch_nor_a_simulator() -> None:
    program = (
        "import sys; from zprl_sb3.scripts import cli; cli.main(['--help']); import zprl_sb3.scripts.collect;"
        "sys.exit(bool({'torch', 'metaworld', 'mujoco'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], stdout=subprocess.DEVNULL, check=False).returncode == 0


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A program ``fail`` that raises its ``error``."""
    module: Any = ModuleType("zprl_sb3.scripts.fail")

    def main(argv: list[str]) -> int:
        raise module.error

    module.main = main
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.PROGRAMS, "fail", "")
    assert isinstance(module, ModuleType)
    return module


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("λ is wrong"), "zprl fail: λ is wrong\n"),
        (KeyError("no such key"), "zprl fail: no such key\n"),
        (OSError(28, "The disk is full"), "zprl fail: [Errno 28] The disk is full\n"),
        (ImportError("no simulator"), "zprl fail: no simulator\n"),
        (FloatingPointError("NaN"), "zprl fail: NaN\n"),
        (gym.error.NameNotFound("no such task"), "zprl fail: no such task\n"),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    failing: Any, zprl: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    failing.error = error
    assert zprl("fail") == (1, "", line)
    monkeypatch.setenv("ZPRL_TRACEBACK", "1")
    with pytest.raises(type(error)):
        zprl("fail")


def test_a_fault_of_ours_keeps_its_traceback(failing: Any, zprl: Any) -> None:
    failing.error = TypeError("a fault")
    with pytest.raises(TypeError, match="a fault"):
        zprl("fail")


def test_ctrl_c_is_exit_code_130(failing: Any, zprl: Any) -> None:
    failing.error = KeyboardInterrupt()
    assert zprl("fail") == (130, "", "")


def test_a_program_that_is_run_as_a_module_behaves_the_same() -> None:
    command = [sys.executable, "-m", "zprl_sb3.scripts.report", "nowhere", "--output", "nowhere"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert (
        result.stderr
        == "zprl report: nowhere has no run.yml: it is not a run of `zprl train`, or has not evaluated yet\n"
    )


@pytest.mark.parametrize(
    ("pages", "tunables", "after"),
    [
        ("always [madvise] never", None, "glibc.malloc.hugetlb=1"),
        ("always [madvise] never", "glibc.malloc.check=1", "glibc.malloc.check=1:glibc.malloc.hugetlb=1"),
        ("always [madvise] never", "glibc.malloc.hugetlb=0", None),
        ("[always] madvise never", None, None),
        ("always madvise [never]", None, None),
        (None, None, None),
    ],
)
def test_the_command_starts_anew_with_huge_pages_where_they_are_for_the_asking(
    pages: str | None, tunables: str | None, after: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if pages is not None:
        (tmp_path / "enabled").write_text(pages)
    monkeypatch.setattr(cli, "HUGE_PAGES", tmp_path / "enabled")
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "zprl_sb3.scripts.cli", "--help"])
    monkeypatch.setattr(sys, "argv", ["zprl", "--help"])
    monkeypatch.setenv("GLIBC_TUNABLES", tunables or "")
    started: list[Any] = []
    monkeypatch.setattr(os, "execv", lambda *command: started.append((command, os.environ["GLIBC_TUNABLES"])))
    assert cli.entry() == 0
    command = (sys.executable, [sys.executable, "-m", "zprl_sb3.scripts.cli", "--help"])
    assert started == ([] if after is None else [(command, after)])


def test_started_anew_it_is_the_same_program() -> None:
    command = [sys.executable, "-m", "zprl_sb3.scripts.cli", "report", "--help"]
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("usage: zprl report")
