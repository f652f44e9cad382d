"""A supervisor: sets every scene at once, and says the same in every episode, or in every second one."""

from __future__ import annotations

from people import ScriptedPerson

from zprl_sb3.robot_envs.real.robots import Signal


def supervisor(
    success: int | None = None,
    every: int = 1,
    quit_after: int | None = None,
    abort: int | None = None,
    leaves_after: int | None = None,
) -> ScriptedPerson:
    """Make one.

    :param success: Env step of the success
    :param every: Only in every so many episodes
    :param quit_after: Episodes after which there is enough
    :param abort: Env step in which the second episode is aborted
    :param leaves_after: Scenes after which no further one is ever set
    """
    script: list[dict[int, Signal]] = []
    for episode in range(1000):
        said = {success: Signal.SUCCESS} if success and episode % every == 0 else {}
        if abort and episode == 1:
            said = {abort: Signal.ABORT}
        if quit_after and episode + 1 == quit_after:
            said = said | {1: Signal.QUIT}
        script.append(said)
    person = ScriptedPerson(script)
    person.scenes = leaves_after
    return person
