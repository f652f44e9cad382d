"""The simulated people: who demonstrates, and who supervises, both over the side channel."""

import json
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from zprl_sb3.robot_envs.real import simulated
from zprl_sb3.robot_envs.real.robots import Robot, RobotError, Signal, Status
from zprl_sb3.robot_envs.real.simulated.channel import LONGEST, Room

MIXED = {
    "better": {"share": 1, "speed": [0.2, 0.3], "tremor": 0.001, "turn": 0.05, "pause": 0, "offset": 0.002, "miss": 0},
    "worse": {
        "share": 1,
        "speed": [0.12, 0.2],
        "tremor": 0.004,
        "turn": 0.1,
        "pause": 0.4,
        "offset": 0.01,
        "miss": 0.5,
    },
}
LIMIT = {"orange": 450, "tray": 400}


def leader_of(robot, task, **arguments):
    leader = simulated.teleoperator(task, robot.simulation.address, **arguments)
    assert isinstance(leader, Robot)
    leader.connect()
    return leader


def demonstrate(robot, leader, limit, change=lambda action: action):
    """Return what was commanded until the task was done or lost, and whether it was done."""
    actions = []
    for _ in range(limit):
        actions.append(leader.get_observation())
        robot.send_action(change(actions[-1]))
        state = robot.simulation.state()
        if state["success"] or state["failure"]:
            return actions, state["success"]
    return actions, False


def successes(robot, leader, task, seeds):
    won = []
    for seed in seeds:
        robot.simulation.reset(seed)
        won.append(demonstrate(robot, leader, LIMIT[task])[1])
    return won


@pytest.mark.parametrize("task", ["orange", "tray"])
def test_somebody_without_faults_succeeds(connected, task):
    robot = connected(task)
    assert all(successes(robot, leader_of(robot, task), task, range(2)))


@pytest.mark.slow
@pytest.mark.parametrize("task", ["orange", "tray"])
def test_somebody_without_faults_always_succeeds(connected, task):
    robot = connected(task)
    assert all(successes(robot, leader_of(robot, task), task, range(10, 20)))


@pytest.mark.parametrize("idle", ["left", "right"])
def test_one_arm_alone_does_not_lift_the_tray(connected, idle):
    robot = connected("tray")
    home = {name: value for name, value in robot.get_observation().items() if name.startswith(f"{idle}/")}
    heights = []

    def alone(action):
        heights.append(robot.simulation.state()["values"]["tray/position"][2])
        return action | {name: home[name] for name in action if name in home}

    assert not demonstrate(robot, leader_of(robot, "tray"), 110, alone)[1]
    assert max(heights) > 0.02  # it does lift its end


def test_the_same_seeds_are_the_same_demonstration_and_others_another_one(connected):
    robot = connected()

    def episode(seed, scene):
        robot.simulation.reset(scene)
        leader = leader_of(robot, "orange", operators=MIXED, seed=seed)
        return np.array([leader_step(robot, leader) for _ in range(30)])

    def leader_step(robot, leader):
        action = leader.get_observation()
        robot.send_action(action)
        return action["arm/position"]

    first = episode(0, 5)
    assert (first == episode(0, 5)).all()
    assert (first != episode(1, 5)).any()


def test_people_miss_and_try_again(connected):
    robot = connected()
    clumsy = {"worse": MIXED["worse"] | {"miss": 1.0, "speed": 0.25, "pause": 0}}

    def closings(seed):
        robot.simulation.reset(seed)
        actions, _ = demonstrate(robot, leader_of(robot, "orange", operators=clumsy), 250)
        return int((np.diff([action["arm/gripper"][0] for action in actions]) < 0).sum())

    assert any(closings(seed) >= 2 for seed in range(5))


def test_a_leader_is_told_what_is_wrong(connected):
    robot = connected()
    with pytest.raises(RobotError, match="simulation is 'orange'"):
        leader_of(robot, "tray").get_observation()
    with pytest.raises(ValueError, match="'miss'"):
        simulated.teleoperator(
            operators={"okay": {"share": 1, "speed": 1, "tremor": 0, "turn": 0, "pause": 0, "offset": 0}}
        )
    with pytest.raises(ValueError, match="like tcp://127"):
        simulated.teleoperator(address="5570")
    address = robot.simulation.address
    robot.disconnect()
    with pytest.raises(RobotError, match="does not answer"):
        simulated.teleoperator(address=address).get_observation()


# The supervisor


def show(supervisor, phase, episode=1):
    supervisor.show(Status("orange", phase, "", episode, episode - 1, 0, 0.0), {})


@pytest.fixture
def supervised(connected):
    def make(robot_arguments=None, **arguments):
        robot = connected(**(robot_arguments or {}))
        supervisor = simulated.supervisor(robot.simulation.address, **arguments)
        return robot, supervisor

    return make


def pass_time(robot, seconds):
    robot.simulation._advance(round(seconds / 0.002))


def drop_into_bowl(robot):
    bowl = robot.simulation.state()["values"]["bowl/position"]
    robot.simulation.world.scene._set_free("orange", [bowl[0], bowl[1], 0.05])


def test_it_sets_a_scene_once_for_each_episode(supervised):
    robot, person = supervised(seed=40)
    show(person, "reset")
    assert person.ready()
    assert robot.simulation.state()["seed"] == 41
    scene = robot.simulation.state()["scene"]
    assert person.ready()
    assert robot.simulation.state()["scene"] == scene
    show(person, "running")
    show(person, "reset", 2)
    assert person.ready()
    assert robot.simulation.state()["seed"] == 42


def test_setting_a_scene_takes_time(supervised):
    robot, person = supervised({"lock_step": None, "speedup": 10.0}, reset_time=2.0)
    show(person, "reset")
    assert not person.ready()
    began = robot.simulation.time
    while not person.ready():
        time.sleep(0.01)
    assert robot.simulation.time - began >= 1.9


def test_success_is_said_once_after_the_time_to_react(supervised):
    robot, person = supervised(reaction=0.4)
    show(person, "reset")
    person.ready()
    show(person, "running")
    assert person.poll() is None
    drop_into_bowl(robot)
    pass_time(robot, 0.1)
    assert person.poll() is None
    pass_time(robot, 0.35)
    assert person.poll() is None
    pass_time(robot, 0.1)
    assert person.poll() is Signal.SUCCESS
    assert person.poll() is None
    assert person.verdict() is True
    show(person, "reset", 2)
    pass_time(robot, 1.0)
    assert person.poll() is None  # what is there still is the episode's before


def test_what_has_fallen_from_the_table_is_a_failure(supervised):
    robot, person = supervised(reaction=0.1)
    show(person, "running")
    assert person.poll() is None
    robot.simulation.world.scene._set_free("orange", [0.5, 0.7, 0.05])
    pass_time(robot, 0.5)
    assert person.poll() is None
    pass_time(robot, 0.2)
    assert person.poll() is Signal.FAILURE
    assert person.verdict() is False


def test_the_script_is_followed(supervised):
    script = [
        {"episode": 1, "after": 0.2, "say": "pause", "seconds": 0.5},
        {"episode": 1, "after": 1.0, "say": "stop", "seconds": 1.0},
        {"episode": 2, "after": 0.0, "say": "abort"},
    ]
    robot, person = supervised({"lock_step": None, "speedup": 20.0}, script=script)
    show(person, "running")
    for signal, phase in ((Signal.PAUSE, "paused"), (Signal.RESUME, "running"), (Signal.STOP, "stopped")):
        while (said := person.poll()) is None:
            time.sleep(0.005)
        assert said is signal
        show(person, phase)
    stopped = robot.simulation.time
    while not person.cleared():
        time.sleep(0.005)
    assert robot.simulation.time - stopped >= 0.8
    show(person, "reset", 2)
    show(person, "running", 2)
    assert person.poll() is Signal.ABORT
    with pytest.raises(ValueError, match="cannot say 'hello'"):
        simulated.supervisor(script=[{"episode": 1, "after": 0.0, "say": "hello"}])


def test_somebody_silent_says_nothing_for_a_while(supervised):
    robot, person = supervised(reaction=0.0, script=[{"episode": 1, "after": 0.0, "say": "silent", "seconds": 2.0}])
    show(person, "running")
    assert person.poll() is None
    drop_into_bowl(robot)
    pass_time(robot, 1.5)
    assert person.poll() is None
    assert person.verdict() is None
    pass_time(robot, 0.6)
    assert person.poll() is Signal.SUCCESS


def test_a_simulation_that_is_gone_makes_nobody_wait(supervised):
    robot, person = supervised()
    show(person, "reset")
    assert person.ready()
    robot.disconnect()
    began = time.monotonic()
    for _ in range(50):
        assert not person.ready()
        assert person.poll() is None
        assert person.verdict() is None
        assert not person.cleared()
    assert time.monotonic() - began < 5.0  # a few tries, and not 200 times somebody's patience
    robot.connect()
    person._ask_again = 0.0
    assert person.ready()


# The side channel


@pytest.mark.parametrize(
    "line",
    [
        b"not JSON\n",
        b"[1]\n",
        b"\xff\xfe\n",
        b"{}\n",
        b'{"do": "reset"}\n',
        b'{"do": "reset", "seed": -1}\n',
        b'{"do": "reset", "seed": true}\n',
        b'{"do": "state", "of": "affairs"}\n',
        b'{"do": "faults", "gravity": 0}\n',
        b'{"do": "faults", "delay": NaN}\n',
        b"[" * (LONGEST - 1) + b"\n",
        b"x" * (LONGEST + 1000) + b"\n",
    ],
)
def test_what_is_no_request_is_answered_with_an_error_and_changes_nothing(connected, line):
    robot = connected()
    before = robot.simulation.state()
    host, port = robot.simulation.address.removeprefix("tcp://").split(":")
    with socket.create_connection((host, int(port)), 5.0) as client:
        client.sendall(line)
        assert "error" in json.loads(client.makefile().readline())
    assert Room(robot.simulation.address).ask("state") == before


def test_faults_are_injected_from_outside(connected):
    robot = connected()
    room = Room(robot.simulation.address)
    room.ask("faults", error="emergency stop pressed", late=0.2)
    assert robot.simulation.faults.late == 0.2
    with pytest.raises(RobotError, match="emergency stop pressed"):
        robot.get_observation()
    with pytest.raises(RobotError, match="no fault 'wind'"):
        room.ask("faults", wind=1.0)


PROCESS = """
import sys
from zprl_sb3.robot_envs.real import simulated
robot = simulated.robot("orange", channel=0, speedup=5.0)
robot.connect()
print(robot.simulation.address, flush=True)
sys.stdin.read()
"""


def test_people_see_and_set_the_scene_of_a_robot_in_another_process():
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        leader, person = simulated.teleoperator(address=address), simulated.supervisor(address, seed=7, reset_time=0.0)
        show(person, "reset")
        while not person.ready():
            time.sleep(0.01)
        assert Room(address).ask("state")["seed"] == 8
        leader.connect()
        start = leader.get_observation()["arm/position"]
        while np.abs(leader.get_observation()["arm/position"] - start).max() < 0.05:
            time.sleep(0.01)
    finally:
        process.kill()
        process.communicate()
    assert not person.ready()
    with pytest.raises(RobotError, match="does not answer"):
        leader.get_observation()
