"""A report as one HTML page that needs no server and no network, and as Markdown."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from urllib.parse import quote

from zprl_sb3 import report_text as text
from zprl_sb3.files import slug
from zprl_sb3.report_contents import Section, Video

EMBEDDED = 5_000_000  # bytes of videos that the page holds itself, all together


def markdown(title: str, sections: Iterable[Section], output: Path) -> str:
    """Return a report in Markdown.

    :param title: Its heading
    :param sections: What it says
    :param output: The folder that it lies in, for links
    """
    parts = [f"# {title}"]
    for section in sections:
        parts += [f"## {section.title}", *section.text]
        parts += [f"![{caption}]({quote(picture.name)})" for caption, picture in section.pictures.items()]
        for caption, table in section.tables.items():
            parts += [f"{caption}:", text.markdown(table)]
        if section.videos:
            parts.append("\n".join(f"- [{video.caption}]({_address(video.file, output)})" for video in section.videos))
    return "\n\n".join(parts) + "\n"


def html(title: str, sections: Sequence[Section], figures: Iterable[Path], output: Path) -> str:
    """Return a report as one HTML page: pictures inside, videos too as far as they fit in.

    :param title: Its heading
    :param sections: What it says
    :param figures: The CSV files beside it
    :param output: The folder that it lies in, for links
    """
    links = "\n".join(f'<a href="#{slug(section.title)}">{escape(section.title)}</a>' for section in sections)
    csv = ", ".join(f'<a href="{quote(file.name)}">{escape(file.name)}</a>' for file in figures)
    addresses = _sources([video for section in sections for video in section.videos], output)
    body = "\n".join(_section(section, addresses) for section in sections)
    template = Template((files("zprl_sb3") / "report.html").read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), links=links, body=body, csv=csv)


def _section(section: Section, addresses: dict[Path, str]) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>", *(f"<p>{escape(paragraph)}</p>" for paragraph in section.text)]
    for caption, picture in section.pictures.items():
        shown = f'<img src="{_data(picture, "image/png")}" alt="{escape(caption)}">'
        parts.append(f"<figure>{shown}<figcaption>{escape(caption)}</figcaption></figure>")
    for caption, table in section.tables.items():
        parts.append(f"<h3>{escape(caption)}</h3>\n{text.html(table)}")
    if section.videos:
        parts.append(f'<h3>Videos</h3>\n<div class="videos">{"".join(_videos(section.videos, addresses))}</div>')
    return f'<section id="{slug(section.title)}">\n' + "\n".join(parts) + "\n</section>"


def _videos(videos: Iterable[Video], addresses: dict[Path, str]) -> Iterator[str]:
    for video in videos:
        shown = f'<video controls preload="metadata" src="{addresses[video.file]}"></video>'
        yield f"<figure>{shown}<figcaption>{escape(video.caption)}</figcaption></figure>"


def _sources(videos: Iterable[Video], output: Path) -> dict[Path, str]:
    """Return what a page shows each video from: its bytes where they still fit in, its file where not."""
    sources, room = {}, EMBEDDED
    for video in videos:
        size = video.file.stat().st_size
        fits = size <= room
        sources[video.file] = _data(video.file, "video/mp4") if fits else _address(video.file, output)
        room -= size if fits else 0
    return sources


def _data(file: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


def _address(file: Path, output: Path) -> str:
    return quote(os.path.relpath(file, output))
