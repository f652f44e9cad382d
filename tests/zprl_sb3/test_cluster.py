"""Ray: what is refused before anything runs, what a node answers, how much of a cluster a job gets."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from zprl_sb3.cluster import Cluster, _on_node, shares
from zprl_sb3.jobs import Job


@pytest.mark.parametrize(
    ("resources", "count", "expected"),
    [
        ({"CPU": 8.0}, None, (8, 0)),
        ({"CPU": 8.0}, 3, (3, 0)),
        ({"CPU": 8.0}, 100, (8, 0)),
        ({"CPU": 8.0, "GPU": 2.0}, None, (2, 1)),
        ({"CPU": 8.0, "GPU": 2.0}, 1, (1, 1)),
        ({"CPU": 8.0, "GPU": 2.0}, 3, (3, 1 / 2)),
        ({"CPU": 8.0, "GPU": 2.0}, 100, (8, 1 / 4)),
    ],
)
def test_a_job_gets_a_cpu_and_its_part_of_the_gpus(
    resources: dict[str, float], count: int | None, expected: tuple[int, float]
) -> None:
    assert shares(resources, count) == expected


def test_a_cluster_without_nodes_is_refused() -> None:
    with pytest.raises(ConnectionError, match="has no CPUs: start its nodes first"):
        shares({"memory": 1.0}, None)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'zprl-sb3\[ray\]'"):
        Cluster()


def test_where_there_is_no_cluster_it_is_said_at_once() -> None:
    pytest.importorskip("ray")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(ConnectionError, match=f"No Ray cluster at {address}: .*refused"):
        Cluster(address)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return where somebody has started a benchmark; this process, as Ray's, is elsewhere."""
    (tmp_path / "ray").mkdir()
    monkeypatch.chdir(tmp_path / "ray")
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def test_a_node_with_another_file_system_says_so(elsewhere: Path) -> None:
    job = Job("a/b-0", Path("out", "b-0"), (), ())
    text = f"{socket.gethostname()} does not share the file system of the benchmark: there is no {elsewhere}/out/b-0"
    assert _on_node(job, elsewhere) == text
    assert "does not share the file system" in str(_on_node(job, elsewhere / "nowhere"))


def test_on_a_node_relative_paths_are_those_of_the_benchmark(elsewhere: Path) -> None:
    (elsewhere / "out" / "b-0").mkdir(parents=True)
    job = Job("a/b-0", Path("out", "b-0"), (), ())
    assert _on_node(job, elsewhere) is None
    assert Path(os.getcwd()) == elsewhere
    (elsewhere / "out" / "b-0" / "log.txt").mkdir()
    failing = Job("a/b-0", Path("out", "b-0"), (("train",),), ())
    assert str(_on_node(failing, elsewhere)).startswith(f"on {socket.gethostname()}: [Errno 21] Is a directory")
