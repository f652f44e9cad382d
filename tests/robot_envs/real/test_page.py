"""The page: over real sockets, and with the fingers and keys of a person in a real browser."""

from __future__ import annotations

import io
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.client import HTTPConnection
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from browser import Browser
from zprl_sb3.robot_envs.real import page as page_module
from zprl_sb3.robot_envs.real import page_server
from zprl_sb3.robot_envs.real.page import PageSupervisor
from zprl_sb3.robot_envs.real.robots import Signal, Status

STATUS = Status("place_orange", "reset", "Put the orange back", 3, 2, 1, 0.0)
JSON = {"Content-Type": "application/json"}


def picture(red: int = 200, width: int = 280, height: int = 110) -> NDArray[np.uint8]:
    return np.tile(np.array([red, 60, 20], dtype=np.uint8), (height, width, 1))


@pytest.fixture
def page() -> Iterator[PageSupervisor]:
    page = PageSupervisor(port=0)
    yield page
    page.close()


def address(page: PageSupervisor) -> tuple[str, int]:
    match = re.match(r"http://(.*):(\d+)/", page.url)
    assert match is not None
    return match[1], int(match[2])


def ask(page: PageSupervisor, path: str, method: str = "GET", body: Any = None, **headers: str) -> tuple[int, Any, Any]:
    """Return status, headers and body; ``TOKEN`` in the path is replaced."""
    connection = HTTPConnection(*address(page), timeout=10)
    text = body if isinstance(body, (str, bytes)) or body is None else json.dumps(body)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path.replace("TOKEN", page.token), text, names)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, answer.headers, content


def say(page: PageSupervisor, word: str, turn: int | None = None) -> dict[str, Any]:
    code, _, body = ask(
        page,
        "/TOKEN/say",
        "POST",
        {"word": word, "turn": page.turn if turn is None else turn},
        Content_Type=JSON["Content-Type"],
    )
    assert code == 200
    return dict(json.loads(body))


def test_the_address_is_printed_and_only_this_computer_listens(capfd: pytest.CaptureFixture[str]) -> None:
    page = PageSupervisor(port=0)
    assert capfd.readouterr().out == f"Supervise at {page.url}\n"
    assert page.url.startswith("http://127.0.0.1:")
    assert len(page.token) >= 32
    other = PageSupervisor(port=0)
    assert other.token != page.token
    other.close()
    page.close()
    page.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address(page), timeout=5)


def test_an_open_address_comes_with_a_warning(capfd: pytest.CaptureFixture[str]) -> None:
    page = PageSupervisor("0.0.0.0", port=0)
    page.close()
    out = capfd.readouterr().out
    assert "0.0.0.0" not in out
    assert "unencrypted" in out


def test_a_port_that_is_taken_is_named(page: PageSupervisor) -> None:
    port = address(page)[1]
    with pytest.raises(OSError, match=f"127.0.0.1:{port} .*in use.*port 0"):
        PageSupervisor(port=port)


@pytest.mark.parametrize(
    "path", ["/", "/state", "/wrong/", "/wrong/state", "/favicon.ico", "/TOKEN2/state", "/x/TOKEN/", "/%FF/"]
)
def test_without_the_token_there_is_nothing(page: PageSupervisor, path: str) -> None:
    for method in ("GET", "POST"):
        code, _, body = ask(page, path, method)
        assert code == 403
        assert page.token not in body.decode()


def test_nothing_is_logged(page: PageSupervisor, capfd: pytest.CaptureFixture[str]) -> None:
    page.show(STATUS, {"front": np.zeros((2, 2), dtype=np.float32)})  # type: ignore[dict-item]
    ask(page, "/TOKEN/")
    ask(page, "/TOKEN/nothing")
    with pytest.raises((OSError, Exception)):  # what the program does wrong ends one request, not the page
        ask(page, "/TOKEN/camera/0")
    time.sleep(0.1)
    assert ask(page, "/TOKEN/state")[0] == 200
    captured = capfd.readouterr()
    assert page.token not in captured.out.partition("\n")[2] + captured.err
    assert "/nothing" not in captured.err


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("localhost:9999", 200),  # a tunnel has another port
        ("127.0.0.1", 200),
        ("[::1]:8420", 200),
        ("192.168.1.20:8420", 200),
        ("evil.example:8420", 403),
        ("127.0.0.1.evil.example", 403),
        ("", 403),
        ("[", 403),
    ],
)
def test_names_that_could_have_been_rebound_are_refused(page: PageSupervisor, host: str, code: int) -> None:
    assert ask(page, "/TOKEN/state", Host=host)[0] == code


def test_a_name_of_ones_own_can_be_given() -> None:
    page = PageSupervisor(port=0, names=["Robot.local"])
    assert ask(page, "/TOKEN/state", Host="robot.local:80")[0] == 200
    page.close()


def test_other_pages_may_not_speak(page: PageSupervisor) -> None:
    page.show(STATUS, {})
    body = {"word": "stop", "turn": 1}
    code, headers, _ = ask(page, "/TOKEN/say", "POST", body, Origin="http://evil.example", **JSON_HEADERS)
    assert code == 403
    assert "Access-Control-Allow-Origin" not in headers
    # A form or an image elsewhere can send these without being asked by its browser.
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        assert ask(page, "/TOKEN/say", "POST", body, Content_Type=kind)[0] == 400
    assert ask(page, "/TOKEN/say", "OPTIONS", Origin="http://evil.example")[0] == 501
    assert ask(page, "/TOKEN/say")[0] == 404
    assert page.poll() is None
    own = "http://{}:{}".format(*address(page))
    assert ask(page, "/TOKEN/say", "POST", body, Origin=own, **JSON_HEADERS)[0] == 200
    assert page.poll() is Signal.STOP


JSON_HEADERS = {"Content_Type": "application/json"}


@pytest.mark.parametrize(
    "body",
    ["", "{", "[]", "7", '{"word": "jump", "turn": 1}', '{"word": "stop"}', '{"word": "stop", "turn": "1"}',
     '{"word": "stop", "turn": true}', '{"word": ["stop"], "turn": 1}', "[" * 900, '{"a": "' + "x" * 2000 + '"}',
     b"\xff\xfe"],
)  # fmt: skip
def test_what_is_no_word_is_refused(page: PageSupervisor, body: str | bytes) -> None:
    page.show(STATUS, {})
    assert ask(page, "/TOKEN/say", "POST", body, **JSON_HEADERS)[0] == 400
    assert page.poll() is None


@pytest.mark.parametrize("length", ["-1", "1e3", "99999999999", "²", ""])
def test_lengths_that_are_none_are_refused(page: PageSupervisor, length: str) -> None:
    with socket.create_connection(address(page), timeout=10) as connection:
        head = f"POST /{page.token}/say HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 400")


def test_a_browser_is_told_to_load_nothing_else(page: PageSupervisor) -> None:
    _, headers, body = ask(page, "/TOKEN/")
    nonce = re.search(r"script-src 'nonce-([\w-]+)'", headers["Content-Security-Policy"])
    assert nonce is not None
    assert body.decode().count(f'nonce="{nonce[1]}"') == 2
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["Cache-Control"] == "no-store"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert nonce[1] not in ask(page, "/TOKEN/")[2].decode()


def test_cameras_are_jpegs_of_what_was_shown_last(page: PageSupervisor) -> None:
    page.show(STATUS, {"front": picture(0), "wrist": picture(90)})
    page.show(STATUS, {"front": picture(0), "wrist": picture(200)})
    code, headers, body = ask(page, "/TOKEN/camera/1?17")
    assert (code, headers["Content-Type"]) == (200, "image/jpeg")
    image = np.asarray(Image.open(io.BytesIO(body)))
    assert image.shape == (110, 280, 3)
    np.testing.assert_allclose(image.mean((0, 1)), [200, 60, 20], atol=4)
    for index in ("2", "-1", "x", "", "99999999", "%B2", "../state"):
        assert ask(page, f"/TOKEN/camera/{index}")[0] == 404


def test_words_are_taken_for_what_was_seen(page: PageSupervisor) -> None:
    page.show(STATUS, {})
    before = json.loads(ask(page, "/TOKEN/state")[2])
    assert before["asked"] == ["start", "stop", "quit"]
    assert before["status"]["episode"] == 3
    assert say(page, "start")["taken"]
    assert page.ready()
    page.show(replace(STATUS, phase="running"), {})
    seen = page.turn
    page.show(replace(STATUS, episode=4), {})
    page.show(replace(STATUS, phase="running", episode=4), {})
    late = say(page, "success", seen)
    assert not late["taken"]
    assert "over" in late["text"]
    assert page.poll() is None
    assert say(page, "failure")["taken"]
    assert page.poll() is Signal.FAILURE


def test_viewers_who_do_not_read_hold_up_nobody(page: PageSupervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    """They ask for large pictures and leave them lying; the environment goes on, and so do others."""
    monkeypatch.setattr(page_module, "IMAGE_PERIOD", 0.0)
    noise = np.random.default_rng(0).integers(0, 255, (720, 1280, 3), dtype=np.uint8)
    page.show(STATUS, {"front": noise})
    slow = [socket.create_connection(address(page)) for _ in range(8)]
    for connection in slow:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(f"GET /{page.token}/camera/0 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * 20)
    times = []
    for _ in range(60):
        start = time.perf_counter()
        page.show(STATUS, {"front": noise.copy()})
        times.append(time.perf_counter() - start)
        time.sleep(0.01)
    assert np.median(times) < 0.005
    assert ask(page, "/TOKEN/state")[0] == 200
    for connection in slow:
        connection.close()


def test_strangers_make_room_and_viewers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_server, "MAX_CONNECTIONS", 3)
    page = PageSupervisor(port=0)
    viewer = HTTPConnection(*address(page), timeout=10)
    viewer.request("GET", f"/{page.token}/state")
    assert len(viewer.getresponse().read()) > 10
    strangers = []
    for _ in range(20):
        strangers.append(socket.create_connection(address(page)))
        strangers[-1].sendall(b"GET / HTTP/1.1\r\n")
    assert ask(page, "/TOKEN/state")[0] == 200
    viewer.request("POST", f"/{page.token}/say", json.dumps({"word": "stop", "turn": 0}), JSON)
    assert json.loads(viewer.getresponse().read())["taken"]
    for connection in strangers:
        connection.close()
    viewer.close()
    page.close()


def test_where_all_are_viewers_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_server, "MAX_CONNECTIONS", 3)
    page = PageSupervisor(port=0)
    viewers = [HTTPConnection(*address(page), timeout=10) for _ in range(3)]
    for viewer in viewers:
        viewer.request("GET", f"/{page.token}/state")
        viewer.getresponse().read()
    with pytest.raises(OSError):  # noqa: PT011  closed at once, sooner or later in the exchange
        ask(page, "/TOKEN/state")
    viewers.pop().close()
    time.sleep(0.3)
    assert ask(page, "/TOKEN/state")[0] == 200
    for viewer in viewers:
        viewer.close()
    page.close()


class Session(threading.Thread):
    """What an environment does: it asks ten times a second, and goes on with what it is told."""

    def __init__(self, page: PageSupervisor) -> None:
        super().__init__(daemon=True)
        self.page, self.status, self.heard = page, STATUS, list[str]()
        self.over = threading.Event()

    def run(self) -> None:
        count = 0
        while not self.over.wait(0.05):
            count += 1
            self.page.show(self.status, {"front": picture(count % 200), "wrist": picture(90, 240, 180)})
            self.ask()

    def turn(self, phase: str, episode: int | None = None, message: str = "") -> None:
        self.status = replace(self.status, phase=phase, episode=episode or self.status.episode, message=message)

    def ask(self) -> None:
        phases = {Signal.STOP: "stopped", Signal.PAUSE: "paused", Signal.RESUME: "running"}
        said = self.page.poll()
        if said is not None:
            self.heard.append(said.value)
            if said in phases:
                self.turn(phases[said])
            elif said is not Signal.QUIT:
                self.turn("reset", self.status.episode + 1)
        if self.page.ready():
            self.heard.append("start")
            self.turn("running")
        verdict = self.page.verdict()
        if verdict is not None:
            self.heard.append(f"verdict {verdict}")
            self.turn("reset", self.status.episode + 1)
        if self.page.cleared():
            self.heard.append("cleared")
            self.turn("reset")

    def hears(self, *words: str) -> None:
        """Wait until exactly this was heard since the last time."""
        end = time.monotonic() + 10
        while len(self.heard) < len(words) and time.monotonic() < end:
            time.sleep(0.02)
        assert self.heard == list(words)
        self.heard.clear()


@pytest.fixture
def session(page: PageSupervisor) -> Iterator[Session]:
    session = Session(page)
    session.start()
    yield session
    session.over.set()
    session.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def phone(browser: Browser, page: PageSupervisor, session: Session) -> Iterator[Browser]:
    browser.appear()
    browser.open(page.url)
    browser.wait_for("document.readyState === 'complete' && document.images.length === 2")
    yield browser
    browser.open("about:blank")


SETTLED = "performance.now() - changed > SETTLE"


def tap(phone: Browser, button: str, text: str) -> None:
    """Tap a button once it can be, and says what it must."""
    element = f"document.querySelector('#{button}')"
    phone.wait_for(f"!{element}.disabled && {element}.innerText.startsWith({json.dumps(text)}) && {SETTLED}")
    phone.tap(f"#{button}")


@pytest.mark.slow
def test_a_session_on_a_phone(phone: Browser, session: Session) -> None:
    phone.wait_for("[...document.images].every(image => image.naturalWidth > 0)")
    assert phone.evaluate("[...document.images].map(image => image.alt)") == [
        "What the camera front sees",
        "What the camera wrist sees",
    ]
    assert "Episode 3\n1 of 2 succeeded (50 %)" in phone.text()
    assert "Put the orange back" in phone.text()
    # Cameras are live: the picture changes.
    source = phone.evaluate("document.images[0].src")
    phone.wait_for(f"document.images[0].src !== {json.dumps(source)}")
    tap(phone, "main", "Start episode")
    session.hears("start")
    phone.wait_for("document.querySelector('#name').innerText === 'Running'")
    tap(phone, "success", "Success")
    session.hears("success")
    tap(phone, "main", "Start episode")
    session.hears("start")
    tap(phone, "main", "Pause")
    session.hears("pause")
    tap(phone, "main", "Resume")
    session.hears("resume")
    tap(phone, "failure", "Failure")
    session.hears("failure")
    tap(phone, "main", "Start episode")
    session.hears("start")
    tap(phone, "abort", "Forget")
    session.hears("abort")
    tap(phone, "quit", "Quit")
    session.hears("quit")
    phone.wait_for("document.querySelector('#note').innerText === 'It quits after this episode'")
    assert phone.logged == []


@pytest.mark.slow
def test_a_stop_and_its_two_steps(phone: Browser, session: Session) -> None:
    session.turn("running")
    phone.wait_for("document.querySelector('#name').innerText === 'Running'")
    phone.tap("#stop")  # at once, whatever has just changed
    session.hears("stop")
    tap(phone, "main", "Unlock")
    # The button says something else now, and a second tap at once does nothing.
    phone.wait_for("document.querySelector('#main').innerText.startsWith('Confirm')")
    phone.tap("#main")
    phone.wait_for("document.querySelector('#note').innerText.includes('just changed')")
    time.sleep(1.0)
    session.hears()
    tap(phone, "main", "Confirm: the robot may move")
    session.hears("cleared")


@pytest.mark.slow
def test_keys_and_time_outs(phone: Browser, session: Session) -> None:
    phone.wait_for(f"!document.querySelector('#main').disabled && {SETTLED}")
    phone.press("Enter", "Enter", "\r")
    session.hears("start")
    session.turn("judging")
    phone.wait_for(f"document.querySelector('#name').innerText.startsWith('Time is up') && {SETTLED}")
    assert phone.evaluate("document.querySelector('#main').disabled")
    phone.press("S", "KeyS", "S")
    session.hears("verdict True")
    phone.wait_for(f"!document.querySelector('#main').disabled && {SETTLED}")
    phone.press("f", "KeyF", "f")
    phone.wait_for("document.querySelector('#note').innerText === 'Not taken: failure is not asked for now'")
    phone.evaluate("document.querySelector('#main').focus()")
    phone.press(" ", "Space", " ")  # stops, whatever has the focus, and does not press that
    session.hears("stop")
    time.sleep(0.5)
    session.hears()


@pytest.mark.slow
def test_a_finger_on_its_way_when_the_episode_ends(phone: Browser, session: Session, page: PageSupervisor) -> None:
    """The page still shows the old episode: no answer has come since. Its click is not taken for the new one."""
    session.turn("running")
    phone.wait_for(f"!document.querySelector('#success').disabled && {SETTLED}")
    phone.evaluate(
        "(() => { const real = ask; ask = (p, o) => p === 'state' ? new Promise(() => {}) : real(p, o); })()"
    )
    phone.wait_for("performance.now() - heard > 300")
    session.turn("reset", 4)
    time.sleep(0.2)
    session.turn("running", 4)
    time.sleep(0.2)
    phone.tap("#success")
    phone.wait_for("document.querySelector('#note').innerText.includes('something that is over')")
    session.hears()


@pytest.mark.slow
def test_a_lost_connection_is_seen(phone: Browser, session: Session, page: PageSupervisor) -> None:
    phone.wait_for("document.querySelector('#lost').hidden")
    session.over.set()  # the program does something else
    phone.wait_for("document.querySelector('#lost').innerText.startsWith('No news from the program for')")
    page.close()
    phone.wait_for("document.querySelector('#lost').innerText.startsWith('Connection lost')")
    assert phone.evaluate("[...document.querySelectorAll('button')].filter(b => !b.disabled).map(b => b.id)") == [
        "stop"
    ]
    phone.tap("#stop")
    phone.wait_for("document.querySelector('#note').innerText.startsWith('STOP NOT DELIVERED')")


CONTRAST = """
(() => {
  const channel = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const numbers = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = c => { const [r, g, b] = numbers(c).map(channel); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = e => { for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor; if (numbers(c)[3] !== 0) return c; } return "rgb(255, 255, 255)"; };
  const seen = [...document.querySelectorAll("button, h1, h2, p, #counts")].filter(e => e.offsetHeight);
  return Math.min(...seen.map(e => {
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  }));
})()
"""


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_it_can_be_read_and_touched(phone: Browser, session: Session, dark: bool) -> None:
    phone.appear(360, 640, dark)
    ground = phone.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(16, 18, 22)" if dark else "rgb(244, 245, 247)")
    for phase in ("preparing", "reset", "running", "paused", "judging", "stopped"):
        session.turn(phase, message="What is waited for")
        phone.wait_for(f"document.querySelector('#phase').dataset.phase === '{phase}'")
        # Of WCAG 2.2, AA: contrast of text; targets larger than it asks for; all buttons on a small screen at once.
        assert phone.evaluate(CONTRAST) >= 4.5, phase
        boxes = phone.evaluate(
            "[...document.querySelectorAll('button')].map(b => b.getBoundingClientRect())"
            ".map(r => [r.left, r.top, r.right, r.bottom])"
        )
        for left, top, right, bottom in boxes:
            assert min(right - left, bottom - top) >= 48
            assert left >= 0
            assert right <= 360
            assert top >= 0
            assert bottom <= 640
        assert phone.evaluate("document.documentElement.scrollWidth") <= 360
    # Every button has a name for those who cannot see it.
    assert phone.evaluate("[...document.querySelectorAll('button')].every(b => b.innerText || b.ariaLabel)")
