"""The page as text. That a browser shows it is tested with scripts.report."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pandas as pd
import pytest

from zprl_sb3 import report_page
from zprl_sb3.report_contents import Section, Video
from zprl_sb3.report_page import html, markdown


@pytest.fixture
def section(tmp_path: Path) -> Section:
    """Return a section with everything, whose names would be tags and whose videos lie elsewhere."""
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.png").write_bytes(b"picture")
    videos = [tmp_path / "zprl 0" / f"{name}.mp4" for name in ("first", "second", "third")]
    videos[0].parent.mkdir()
    for size, file in zip((4, 5, 1), videos, strict=True):
        file.write_bytes(b"x" * size)
    table = pd.DataFrame([{"method": "<b>", "x": "1"}])
    return Section(
        "test/<A>-v0",
        ["Some <text>."],
        {"Learning <curves>": tmp_path / "report" / "report.png"},
        {"A <table>": table},
        [Video(file, f"<{file.stem}>") for file in videos],
    )


def test_a_page_holds_its_pictures_and_no_foreign_tags(section: Section, tmp_path: Path) -> None:
    page = html("A & B", [section], [tmp_path / "table.csv"], tmp_path / "report")
    assert f'<img src="data:image/png;base64,{base64.b64encode(b"picture").decode()}"' in page
    assert "<title>A &amp; B</title>" in page
    for text in ("Some &lt;text&gt;.", "Learning &lt;curves&gt;", "A &lt;table&gt;", "&lt;b&gt;", "&lt;first&gt;"):
        assert text in page
    assert not re.search("<(A|b|text|curves|table>|first)>", page.replace("<table>\n<thead>", ""))
    assert '<a href="#test-A--v0">test/&lt;A&gt;-v0</a>' in page
    assert '<section id="test-A--v0">' in page
    assert '<a href="table.csv">table.csv</a>' in page
    assert "$" not in page


def test_a_page_needs_nothing_from_elsewhere(section: Section, tmp_path: Path) -> None:
    page = html("title", [section], [], tmp_path / "report")
    assert "<script" not in page
    assert "http:" not in page
    assert "https:" not in page
    assert all(link.startswith(("#", "data:")) for link in re.findall(r'(?:href|src)="([^"]*)"', page))


def test_videos_are_held_while_there_is_room(section: Section, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_page, "EMBEDDED", 5)
    page = html("title", [section], [], tmp_path / "report")
    sources = re.findall(r'<video [^>]*src="([^"]*)"', page)
    held = [f"data:video/mp4;base64,{base64.b64encode(b'x' * size).decode()}" for size in (4, 1)]
    assert sources == [held[0], "../zprl%200/second.mp4", held[1]]


def test_markdown_links_what_it_cannot_hold(section: Section, tmp_path: Path) -> None:
    text = markdown("title", [section], tmp_path / "report")
    assert text.startswith(
        "# title\n\n## test/<A>-v0\n\nSome <text>.\n\n![Learning <curves>](report.png)\n\nA <table>:\n\n|"
    )
    assert text.endswith(
        "- [<first>](../zprl%200/first.mp4)\n- [<second>](../zprl%200/second.mp4)\n- [<third>](../zprl%200/third.mp4)\n"
    )
