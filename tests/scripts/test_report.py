"""``zprl report``: its files, and its page in a real browser. What it says is tested with zprl_sb3.report_contents."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from runs import evaluation, run_folder, write_evaluation
from zprl_sb3 import report_page
from zprl_sb3.scripts.report import report

PNG = b"\x89PNG\r\n\x1a\n"


def copy_of(run: Path, output: Path, seed: int, rows: int | None = None) -> Path:
    """Return a run with another seed, and with its first rows only."""
    output.mkdir()
    content = yaml.safe_load((run / "run.yml").read_text())
    (output / "run.yml").write_text(yaml.safe_dump(content | {"seed": seed}))
    lines = (run / "evaluations.csv").read_text().splitlines()
    (output / "evaluations.csv").write_text("\n".join(lines[: None if rows is None else rows + 1]) + "\n")
    return output


def test_runs_become_a_page_and_files_beside_it(toy_run: Path, tmp_path: Path, zprl: Any) -> None:
    other = copy_of(toy_run, tmp_path / "other", seed=1)
    code, out, err = zprl("report", toy_run, other, "--output", tmp_path / "report")
    assert (code, err) == (0, "")
    names = {"report.html", "report.md", "report.png", "table.csv", "across_tasks.csv", "runs.csv", "curves.csv"}
    assert {file.name for file in (tmp_path / "report").iterdir()} == names
    assert (tmp_path / "report" / "report.png").read_bytes().startswith(PNG)
    text = (tmp_path / "report" / "report.md").read_text()
    assert "![Success against env steps](report.png)" in text
    rows = [line for line in text.splitlines() if line.startswith("| helpers:test/PointReach")]
    assert [row.split("|")[2].strip() for row in rows] == ["ZPRL, λ = 0.5"] * 3  # the group, and two runs
    assert rows[0] in out
    assert f"Wrote {tmp_path / 'report' / 'report.html'}" in out


def test_a_run_that_still_trains_is_reported_as_far_as_it_came(toy_run: Path, tmp_path: Path) -> None:
    started = copy_of(toy_run, tmp_path / "started", seed=1, rows=1)
    page, table = report([toy_run, started], tmp_path / "report")
    assert page == tmp_path / "report" / "report.html"
    assert len(table.splitlines()) == 3
    assert "| 2 | 0–117 |" in table


@pytest.mark.parametrize("missing", ["run.yml", "evaluations.csv"])
def test_a_folder_that_is_not_a_run_is_refused(toy_run: Path, tmp_path: Path, zprl: Any, missing: str) -> None:
    run = copy_of(toy_run, tmp_path / "run", seed=0)
    (run / missing).unlink()
    code, _, err = zprl("report", run, "--output", tmp_path / "report")
    assert code == 1
    assert err == f"zprl report: {run} has no {missing}: it is not a run of `zprl train`, or has not evaluated yet\n"
    assert not (tmp_path / "report").exists()


def test_a_folder_that_is_not_a_run_does_not_stop_the_others(toy_run: Path, tmp_path: Path, zprl: Any) -> None:
    code, out, err = zprl("report", tmp_path, toy_run, "--output", tmp_path / "report")
    assert code == 0
    assert err.startswith(f"zprl report: left out: {tmp_path} has no run.yml")
    assert out.count("PointReach") == 1
    code, _, err = zprl("report", tmp_path, tmp_path, "--output", tmp_path / "report")
    assert code == 1
    assert "None of these 2 folders can be reported" in err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.yml", "{env_id: a, seed: 1, policy: b, settings: []}"),
        ("evaluations.csv", "env_steps,success_rate\n0,a\n"),
    ],
)
def test_a_damaged_run_does_not_stop_the_others(
    toy_run: Path, tmp_path: Path, zprl: Any, name: str, content: str
) -> None:
    run = copy_of(toy_run, tmp_path / "run", seed=1)
    (run / name).write_text(content)
    code, out, err = zprl("report", run, toy_run, "--output", tmp_path / "report")
    assert code == 0
    assert err.startswith(f"zprl report: left out: {run / name} ")
    assert err.count("\n") == out.count("PointReach") == 1


def test_a_run_that_may_not_be_read_does_not_stop_the_others(
    toy_run: Path, tmp_path: Path, zprl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, read = copy_of(toy_run, tmp_path / "run", seed=1), Path.read_text

    def forbidding(path: Path, *arguments: Any, **more: Any) -> str:
        if path == run / "run.yml":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *arguments, **more)

    monkeypatch.setattr(Path, "read_text", forbidding)
    code, out, err = zprl("report", run, toy_run, "--output", tmp_path / "report")
    assert code == 0
    assert err == f"zprl report: left out: [Errno 13] Permission denied: '{run / 'run.yml'}'\n"
    assert out.count("PointReach") == 1


def test_the_same_run_twice_is_one_seed(toy_run: Path, tmp_path: Path, zprl: Any) -> None:
    code, out, _ = zprl(
        "report", toy_run, f"{toy_run}/", toy_run / ".." / toy_run.name, "--output", tmp_path / "report"
    )
    assert code == 0
    assert out.count("PointReach") == 1
    assert len((tmp_path / "report" / "runs.csv").read_text().splitlines()) == 2


def test_a_checkpoint_is_not_a_run(toy_policy: Path, tmp_path: Path, zprl: Any) -> None:
    code, _, err = zprl("report", toy_policy, "--output", tmp_path / "report")
    assert code == 1
    assert "has no run.yml" in err


@pytest.mark.parametrize(("name", "content"), [("run.yml", "seed: ["), ("run.yml", "seed: 1"), ("evaluations.csv", "")])
def test_a_damaged_run_is_one_line(toy_run: Path, tmp_path: Path, zprl: Any, name: str, content: str) -> None:
    run = copy_of(toy_run, tmp_path / "run", seed=0)
    (run / name).write_text(content)
    code, _, err = zprl("report", run, "--output", tmp_path / "report")
    assert code == 1
    assert str(run) in err
    assert err.count("\n") == 1


def test_a_report_is_written_anew(toy_run: Path, tmp_path: Path) -> None:
    other = copy_of(toy_run, tmp_path / "other", seed=1)
    report([toy_run, other], tmp_path / "report")
    report([toy_run], tmp_path / "report")
    assert pd.read_csv(tmp_path / "report" / "runs.csv")["folder"].tolist() == [str(toy_run)]
    assert (tmp_path / "report" / "report.html").read_text().count("2 seeds") == 0
    assert not list((tmp_path / "report").glob(".*"))
    shutil.rmtree(tmp_path / "report")


# A page that shows a report in a frame and says what the browser has made of it.
PROBE = """<!DOCTYPE html>
<pre id="found">nothing</pre>
<iframe id="page" src="report/report.html" width="600" height="800"></iframe>
<script>
page.onload = async () => {
  const inside = page.contentDocument, videos = [...inside.querySelectorAll("video")];
  await Promise.all(videos.map(video => video.readyState || video.error ? 0 : new Promise(done => {
    video.onloadedmetadata = video.onerror = done;
  })));
  found.textContent = JSON.stringify({
    title: inside.title,
    images: [...inside.images].map(image => image.naturalWidth),
    videos: videos.map(video => [video.currentSrc.slice(0, 5), video.videoWidth]),
    rows: [...inside.querySelectorAll("tbody")].map(body => body.rows.length),
    headings: [...inside.querySelectorAll("h2")].map(heading => heading.textContent),
    width: inside.documentElement.scrollWidth,
  });
};
</script>
"""


def shown_by_browser(folder: Path) -> dict[str, Any]:
    """Open ``report/report.html`` of a folder from its file, without a network, and return what the probe finds."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    browser = next((path for name in names if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip("No Chromium or Chrome on PATH: the page cannot be opened (Debian: apt-get install chromium)")
    (folder / "probe.html").write_text(PROBE)
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={folder / 'browser'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    # The probe may look into the frame; the time of timers is skipped, that of loading is not.
    command += ["--allow-file-access-from-files", "--virtual-time-budget=60000", "--dump-dom"]
    address = (folder / "probe.html").as_uri()
    environment = os.environ | {"HOME": str(folder)}
    result = subprocess.run([*command, address], capture_output=True, text=True, timeout=300, env=environment)
    answer = result.stdout.partition('<pre id="found">')[2].partition("</pre>")[0]
    assert answer.startswith("{"), result.stdout + result.stderr
    return dict(json.loads(answer))


def write_video(file: Path) -> int:
    """Write a video of 64 x 48 pixels and return its size in bytes."""
    imageio = pytest.importorskip("imageio.v3")
    file.parent.mkdir()
    frames = np.arange(0, 200, 20, dtype=np.uint8)[:, None, None, None]
    imageio.imwrite(file, np.tile(frames, (1, 48, 64, 3)), plugin="pyav", codec="libx264", fps=10)
    return file.stat().st_size


@pytest.mark.slow
def test_the_page_is_shown_by_a_real_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[Path] = []
    for task in ("A", "B"):
        for steering in ("latent", "noise"):
            runs.append(
                run_folder(tmp_path / task / steering, [0.2, 0.5, 0.8], env_id=f"test/{task}-v0", steering=steering)
            )
        write_evaluation(tmp_path / task / "base_evaluation.json", {"base": evaluation(0.25, env_id=f"test/{task}-v0")})
    write_evaluation(runs[0] / "evaluation.json", evaluation(0.75, env_id="test/A-v0"))
    size = write_video(runs[0] / "videos" / "episode_0_success.mp4")
    write_video(runs[1] / "videos" / "episode_0_failure.mp4")
    monkeypatch.setattr(report_page, "EMBEDDED", size)
    report(runs, tmp_path / "report")
    found = shown_by_browser(tmp_path)
    assert found["title"] == "test/A-v0, test/B-v0: 4 runs"
    assert found["headings"] == ["Success", "Methods compared", "test/A-v0", "test/B-v0", "Runs"]
    # All pictures have been decoded, and both videos: the one that the page holds and the one beside it.
    assert len(found["images"]) == 4
    assert min(found["images"]) > 1000
    assert found["videos"] == [["data:", 64], ["file:", 64]]
    # Success, interquartile means, improvements, the evaluations of two tasks, runs.
    assert found["rows"] == [4, 2, 1, 2, 1, 4]
    assert found["width"] <= 600, "the page is wider than its window"
