from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import psutil
import pytest

from zprl_sb3.interrupts import SIGNALS, TERMINATED, Interrupts, interrupts_wait

ENDS = [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
PROGRAM = """
import time
from zprl_sb3.interrupts import interrupts_wait
with interrupts_wait() as pending:
    print("ready", flush=True)
    while {condition}:
        time.sleep(0.01)
    print("whole", flush=True)
    raise pending.exception()
"""


@pytest.fixture(autouse=True)
def _same_handlers_afterwards() -> Iterator[None]:
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before


def wait_during(block: Callable[[Interrupts], None]) -> None:
    with interrupts_wait() as pending:
        block(pending)


def get(*numbers: int) -> None:
    for number in numbers:
        signal.raise_signal(number)


@pytest.mark.parametrize(("number", "error"), ENDS)
def test_a_signal_waits_until_the_block_answers(number: int, error: type[BaseException]) -> None:
    done = []

    def work(pending: Interrupts) -> None:
        for unit in range(5):
            assert not pending
            if unit == 2:
                get(number)
            done.append(unit)
            if pending:
                raise pending.exception()

    with pytest.raises(error):
        wait_during(work)
    assert done == [0, 1, 2]


@pytest.mark.parametrize(("number", "error"), ENDS)
def test_a_signal_that_nobody_looked_at_is_not_lost(number: int, error: type[BaseException]) -> None:
    done = []

    def work(_: Interrupts) -> None:
        get(number)
        done.append(True)

    with pytest.raises(error):
        wait_during(work)
    assert done


def test_sigterm_has_the_exit_status_that_schedulers_expect() -> None:
    with pytest.raises(SystemExit) as caught:
        wait_during(lambda _: get(signal.SIGTERM))
    assert caught.value.code == TERMINATED == 143


def test_an_error_goes_before_a_signal() -> None:
    def fail(_: Interrupts) -> None:
        get(signal.SIGINT)
        1 / 0

    with pytest.raises(ZeroDivisionError):
        wait_during(fail)


def test_a_second_ctrl_c_stops_at_once() -> None:
    def hang(_: Interrupts) -> None:
        get(signal.SIGINT, signal.SIGINT)
        pytest.fail("went on")

    with pytest.raises(KeyboardInterrupt):
        wait_during(hang)


def test_a_second_sigterm_waits_like_the_first() -> None:
    done = []

    def work(pending: Interrupts) -> None:
        get(signal.SIGTERM, signal.SIGTERM, signal.SIGINT)
        done.append(pending.exception())

    with pytest.raises(SystemExit):
        wait_during(work)
    assert isinstance(done[0], SystemExit)  # the first signal decides


def test_ctrl_c_says_how_to_stop_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        wait_during(lambda _: get(signal.SIGINT))
    assert "Ctrl-C again stops at once" in capfd.readouterr().err


def test_a_broken_pipe_does_not_fall_into_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: object) -> int:
        raise BrokenPipeError

    done = []

    def work(_: Interrupts) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", write)
            get(signal.SIGINT)
        done.append(True)

    with pytest.raises(KeyboardInterrupt):
        wait_during(work)
    assert done


def test_ignored_signals_stay_ignored() -> None:
    """As with nohup, and for a job in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts_wait() as pending:
            get(signal.SIGINT)
            assert not pending
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_block_within_a_block_has_its_own_signals() -> None:
    with interrupts_wait() as outer:
        with pytest.raises(SystemExit):
            wait_during(lambda _: get(signal.SIGTERM))
        assert not outer


def test_another_thread_handles_no_signals() -> None:
    seen: list[object] = []

    def work(pending: Interrupts) -> None:
        seen.extend([bool(pending), [signal.getsignal(number) for number in SIGNALS]])

    before = [signal.getsignal(number) for number in SIGNALS]
    thread = threading.Thread(target=wait_during, args=(work,))
    thread.start()
    thread.join()
    assert seen == [False, before]


@pytest.mark.parametrize(
    ("condition", "numbers", "output", "code"),
    [
        ("not pending", [signal.SIGTERM], "whole\n", 143),
        ("not pending", [signal.SIGINT], "whole\n", -signal.SIGINT),
        ("True", [signal.SIGINT, signal.SIGINT], "", -signal.SIGINT),
    ],
)
def test_a_process_ends_as_it_should(condition: str, numbers: list[int], output: str, code: int) -> None:
    """With the exit status of its signal, and even though it hangs."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(condition=condition)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        assert process.stdout.readline() == "ready\n"
        for earlier, number in enumerate(numbers):
            if earlier:  # two signals in one instant would count as one
                assert any("Ctrl-C again" in line for line in process.stderr)
            process.send_signal(number)
        assert process.communicate(timeout=30)[0] == output
        assert process.returncode == code
    finally:
        process.kill()


CHILD = """
import time
from zprl_sb3.interrupts import end_with_parent
end_with_parent()
print("on", flush=True)
time.sleep(300)
"""
STARTER = f"""
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], env={{**os.environ, "ZPRL_PARENT": str(os.getpid())}})
print(child.pid, flush=True)
time.sleep(300)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_process_ends_with_the_one_that_started_it() -> None:
    with subprocess.Popen([sys.executable, "-c", STARTER], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        child = psutil.Process(int(starter.stdout.readline()))
        assert starter.stdout.readline() == "on\n"
        starter.kill()
        psutil.wait_procs([child], timeout=60)
        assert not child.is_running()


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_process_whose_starter_has_ended_does_not_begin() -> None:
    ended = subprocess.run([sys.executable, "-c", CHILD], env={**os.environ, "ZPRL_PARENT": "1"}, timeout=60)
    assert ended.returncode == TERMINATED
