"""What a person said counts once, for what they meant, and not for what came after it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from zprl_sb3.robot_envs.real import decisions
from zprl_sb3.robot_envs.real.decisions import ASKED, Decisions, Word
from zprl_sb3.robot_envs.real.robots import RobotError, Signal, Status

STATUS = Status("place_orange", "reset", "", 1, 0, 0, 0.0)


def at(phase: str, episode: int = 1, before: Decisions | None = None) -> Decisions:
    said = before or Decisions()
    said.turn_to(replace(STATUS, phase=phase, episode=episode))
    return said


def test_a_start_counts_once() -> None:
    said = at("reset")
    assert not said.ready()
    assert said.say(Word.START, said.turn).taken
    assert said.ready()
    assert not said.ready()


def test_a_start_before_the_scene_is_asked_for_is_refused_and_said_to_be() -> None:
    said = at("preparing")
    answer = said.say(Word.START, said.turn)
    assert not answer.taken
    assert answer.text == "start was not taken: it is not asked for now (preparing)"
    at("reset", before=said)
    assert not said.ready()
    assert said.say(Word.STOP, said.turn).taken


@pytest.mark.parametrize("word", [Word.SUCCESS, Word.FAILURE, Word.ABORT])
def test_an_outcome_is_a_signal_once(word: Word) -> None:
    said = at("running", before=at("reset"))
    assert said.say(word, said.turn).taken
    assert said.poll() is Signal(word.value)
    assert said.poll() is None


@pytest.mark.parametrize("word", [Word.SUCCESS, Word.FAILURE, Word.ABORT, Word.PAUSE])
def test_what_was_said_of_an_episode_is_not_taken_for_the_next(word: Word) -> None:
    said = at("running", before=at("reset"))
    seen = said.turn
    at("running", 2, at("reset", 2, said))
    answer = said.say(word, seen)
    assert not answer.taken
    assert "over" in answer.text
    assert said.poll() is None
    assert said.verdict() is None


def test_nor_where_an_episode_has_the_same_number_again() -> None:
    said = at("running", before=at("reset"))
    seen = said.turn
    at("running", 1, at("reset", 1, said))
    assert not said.say(Word.SUCCESS, seen).taken


def test_what_was_said_and_not_asked_for_ends_with_the_episode() -> None:
    said = at("running", before=at("reset"))
    said.say(Word.SUCCESS, said.turn)
    at("running", 2, at("reset", 2, said))
    assert said.poll() is None


def test_a_success_at_the_last_moment_is_the_verdict() -> None:
    said = at("running", before=at("reset"))
    seen = said.turn
    said.say(Word.SUCCESS, seen)
    at("judging", before=said)
    assert said.poll() is None
    assert said.verdict() is True
    assert said.verdict() is None
    # It was on its way when the time was up.
    assert said.say(Word.FAILURE, seen).taken
    assert said.verdict() is False


def test_of_two_verdicts_failure_counts() -> None:
    said = at("judging", before=at("reset"))
    said.say(Word.SUCCESS, said.turn)
    said.say(Word.FAILURE, said.turn)
    assert said.verdict() is False
    assert said.verdict() is None


def test_an_episode_without_a_verdict_can_be_forgotten() -> None:
    said = at("judging", before=at("reset"))
    said.say(Word.ABORT, said.turn)
    assert said.verdict() is None
    assert said.poll() is Signal.ABORT


def test_the_most_urgent_signal_comes_first_and_answers_for_the_others() -> None:
    said = at("running", before=at("reset"))
    for word in (Word.QUIT, Word.PAUSE, Word.SUCCESS, Word.FAILURE, Word.ABORT):
        assert said.say(word, said.turn).taken
    assert said.poll() is Signal.ABORT
    assert said.poll() is Signal.QUIT
    assert said.poll() is None


def test_a_stop_takes_back_what_was_said_before_it_but_the_wish_to_end() -> None:
    said = at("running", before=at("reset"))
    for word in (Word.SUCCESS, Word.QUIT, Word.STOP):
        said.say(word, said.turn)
    assert said.poll() is Signal.STOP
    assert said.poll() is Signal.QUIT
    assert said.poll() is None


@pytest.mark.parametrize("phase", ["starting", *ASKED])
def test_a_stop_always_counts_however_old(phase: str) -> None:
    said = Decisions() if phase == "starting" else at(phase)
    assert said.say(Word.STOP, -5).taken
    assert said.poll() is Signal.STOP


def test_a_stop_takes_back_a_start() -> None:
    said = at("reset")
    said.say(Word.START, said.turn)
    said.say(Word.STOP, said.turn)
    assert not said.ready()


@pytest.mark.parametrize("phase", list(ASKED))
def test_what_is_not_asked_for_is_refused(phase: str) -> None:
    said = at(phase)
    for word in set(Word) - {*ASKED[phase], Word.STOP, Word.QUIT}:
        answer = said.say(word, said.turn)
        assert not answer.taken
        assert word.value in answer.text
    assert (said.ready(), said.poll(), said.verdict(), said.cleared()) == (False, None, None, False)


def test_a_late_resume_does_not_end_a_later_pause() -> None:
    said = at("paused", before=at("running", before=at("reset")))
    seen = said.turn
    at("paused", before=at("running", before=said))
    assert not said.say(Word.RESUME, seen).taken
    assert said.say(Word.RESUME, said.turn).taken
    assert said.poll() is Signal.RESUME


def test_a_start_for_a_reset_that_a_stop_ended_is_forgotten() -> None:
    said = at("reset")
    said.say(Word.START, said.turn)
    at("reset", before=at("stopped", before=said))
    assert not said.ready()


def test_a_stop_is_cleared_by_two_acts_that_are_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    said, now = at("stopped"), [100.0]
    monkeypatch.setattr(decisions.time, "monotonic", lambda: now[0])
    assert "unlock" in said.say(Word.CLEAR, said.turn).text
    assert said.say(Word.UNLOCK, said.turn).taken
    # A double click does not count as both.
    now[0] += 0.3
    assert not said.say(Word.CLEAR, said.turn).taken
    assert not said.cleared()
    now[0] += 1.0
    assert said.say(Word.CLEAR, said.turn).taken
    assert said.cleared()
    assert not said.cleared()
    # The next stop needs both again.
    at("stopped", before=at("reset", before=said))
    assert not said.say(Word.CLEAR, said.turn).taken


def test_an_unlocked_stop_locks_itself_again(monkeypatch: pytest.MonkeyPatch) -> None:
    said, now = at("stopped"), [100.0]
    monkeypatch.setattr(decisions.time, "monotonic", lambda: now[0])
    said.say(Word.UNLOCK, said.turn)
    now[0] += decisions.CLEAR_WITHIN + 0.1
    assert not said.unlocked
    assert not said.say(Word.CLEAR, said.turn).taken


def test_a_stop_said_twice_is_cleared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    said, now = at("running", before=at("reset")), [100.0]
    monkeypatch.setattr(decisions.time, "monotonic", lambda: now[0])
    said.say(Word.STOP, said.turn)
    assert said.poll() is Signal.STOP
    said.say(Word.STOP, said.turn)
    at("stopped", before=said)
    said.say(Word.UNLOCK, said.turn)
    now[0] += 2
    said.say(Word.CLEAR, said.turn)
    assert said.cleared()
    assert said.poll() is None


def test_a_stop_takes_back_that_it_was_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    said, now = at("stopped"), [100.0]
    monkeypatch.setattr(decisions.time, "monotonic", lambda: now[0])
    said.say(Word.UNLOCK, said.turn)
    now[0] += 2
    said.say(Word.CLEAR, said.turn)
    said.say(Word.STOP, said.turn)
    assert not said.cleared()
    assert not said.unlocked


def test_a_stop_is_passed_on_at_once() -> None:
    said, calls = at("running", before=at("reset")), list[str]()
    said.on_stop = lambda: calls.append("stopped")
    said.say(Word.SUCCESS, said.turn)
    assert calls == []
    said.say(Word.STOP, said.turn)
    assert calls == ["stopped"]
    assert said.poll() is Signal.STOP


def test_a_stop_that_the_robot_does_not_confirm_is_said_to_be_so() -> None:
    said = at("running", before=at("reset"))

    def unreachable() -> None:
        raise RobotError("no answer from tcp://127.0.0.1:5560")

    said.on_stop = unreachable
    answer = said.say(Word.STOP, said.turn)
    assert not answer.taken
    assert "own emergency stop" in answer.text
    assert "5560" in answer.text
    assert said.poll() is Signal.STOP
