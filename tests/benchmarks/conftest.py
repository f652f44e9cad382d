"""Benchmarks are programs, not modules: how tests get at them."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

RESULT = re.compile(r"RESULT (\w+) (\d+\.\d+) (\S+)")


@pytest.fixture
def benchmark_module(repository: Path) -> Callable[[str], ModuleType]:
    """Return a function that loads a benchmark by its name."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, repository / "benchmarks" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def results() -> Callable[[str], dict[str, tuple[float, str]]]:
    """Return a function that reads figures and units by name from the last lines of an output."""

    def read(output: str) -> dict[str, tuple[float, str]]:
        lines = output.splitlines()
        first = next(k for k, line in enumerate(lines) if line.startswith("RESULT"))
        matches = [RESULT.fullmatch(line) for line in lines[first:]]
        assert all(matches), lines
        return {match[1]: (float(match[2]), match[3]) for match in matches if match}

    return read
