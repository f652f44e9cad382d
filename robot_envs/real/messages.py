"""What ``zprl robot-server`` and its clients say to each other: msgpack of a fixed shape, refused where it has another.

A request is one part, an answer a head and, behind it, the images that the head describes, so that these are never
copied into another message. Both name the version. What comes from a client is not trusted: sizes are limited before
and while it is unpacked, and nothing is used that was not checked.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import msgpack
import numpy as np
from PIL import Image

from zprl_sb3.robot_envs.real.robots import Arm, Frame, RobotError, Stopped, Values

VERSION = 2
MAX_REQUEST = 64 * 1024  # bytes
MAX_PART = 64 * 1024 * 1024  # bytes of an answer's head or image
MAX_NAME = 100
MAX_VALUE = 4096  # numbers of one value
OPERATIONS = ("hello", "command", "observe", "step", "hold", "home", "stop", "clear", "bye")
OK, STOPPED, FAILED, NO_SESSION = "ok", "stopped", "failed", "no session"
RAW, JPEG = "raw", "jpeg"
QUALITY = 90  # of JPEG


class BadMessage(ValueError):
    """Bytes that are no message."""


@dataclass(frozen=True)
class Request:
    """What a client asks.

    :param operation: One of :data:`OPERATIONS`
    :param session: What the answer to ``hello`` named; before that empty
    :param number: Grows with every request of a session
    :param stamp: The server's, of the answer before
    :param elapsed: Seconds from that answer's coming to this request's going, by the client's clock
    :param content: Arguments by name
    """

    operation: str
    session: bytes = b""
    number: int = 0
    stamp: float = 0.0
    elapsed: float = 0.0
    content: Mapping[str, Any] = field(default_factory=dict)

    def packed(self) -> bytes:
        """Return it as bytes."""
        return _packed([VERSION, self.operation, self.session, self.number, self.stamp, self.elapsed, self.content])


@dataclass(frozen=True)
class Answer:
    """What the server answers.

    :param number: Of the request
    :param status: :data:`OK`, or of which kind the error is
    :param text: The error's
    :param stamp: The server's clock, in seconds; only the server reads it
    :param took: Seconds from the request's coming to this answer's going
    :param stopped: Why the robot is stopped, if it is
    :param content: Results by name
    """

    number: int
    status: str
    text: str
    stamp: float
    took: float
    stopped: str | None
    content: Mapping[str, Any] = field(default_factory=dict)

    def packed(self) -> bytes:
        """Return its head as bytes."""
        return _packed(
            [VERSION, self.number, self.status, self.text, self.stamp, self.took, self.stopped, self.content]
        )


def read_request(data: bytes) -> Request:
    """Return the request that bytes are.

    :raises BadMessage: If they are none
    """
    if len(data) > MAX_REQUEST:
        raise BadMessage(f"{len(data)} bytes are too many")
    fields = _read(data, 7)
    operation, session, number, stamp, elapsed, content = fields
    if not (isinstance(operation, str) and operation in OPERATIONS):
        raise BadMessage("an unknown operation")
    if not (isinstance(session, bytes) and len(session) <= 16 and type(number) is int and 0 <= number < 1 << 53):
        raise BadMessage("no session and number")
    if not (_is_seconds(stamp) and _is_seconds(elapsed) and isinstance(content, dict)):
        raise BadMessage("no times and arguments")
    return Request(operation, session, number, float(stamp), float(elapsed), content)


def read_answer(data: bytes) -> Answer:
    """Return the answer whose head bytes are.

    :raises BadMessage: If they are none
    """
    number, status, text, stamp, took, stopped, content = _read(data, 8)
    texts = isinstance(status, str) and isinstance(text, str) and (stopped is None or isinstance(stopped, str))
    if not (texts and type(number) is int and _is_seconds(stamp) and _is_seconds(took) and isinstance(content, dict)):
        raise BadMessage("no answer")
    return Answer(number, status, text, float(stamp), float(took), stopped, content)


def packed_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values (float64 arrays by name) as messages have them: shape and bytes by name."""
    arrays = {name: np.asarray(value, dtype="<f8") for name, value in values.items()}
    return {name: [list(array.shape), array.tobytes()] for name, array in arrays.items()}


def read_values(packed: Any) -> Values:
    """Return what :func:`packed_values` was given.

    :raises BadMessage: If it is something else
    """
    if not isinstance(packed, dict):
        raise BadMessage("values are arrays by name")
    return {_name(name): _array(entry) for name, entry in packed.items()}


def read_age(age: Any) -> float:
    """Return how many seconds ago something was measured.

    :raises BadMessage: If that is no time
    """
    if not _is_seconds(age):
        raise BadMessage("no age")
    return float(age)


def packed_frame(frame: Frame, encoding: str) -> tuple[dict[str, Any], bytes]:
    """Return how a frame is described, and its image.

    :param frame: RGB, uint8 (H, W, 3)
    :param encoding: :data:`RAW`, or :data:`JPEG`, which is smaller and not what the camera gave
    """
    head = {"number": frame.number, "age": frame.age, "shape": list(frame.image.shape), "encoding": encoding}
    if encoding == RAW:
        return head, np.ascontiguousarray(frame.image).tobytes()
    file = io.BytesIO()
    Image.fromarray(frame.image).save(file, "JPEG", quality=QUALITY)
    return head, file.getvalue()


def read_frame(head: Mapping[str, Any], image: bytes, later: float) -> Frame:
    """Return the frame that :func:`packed_frame` was given.

    :param head: How it is described
    :param image: Its image
    :param later: Seconds that have passed since
    :raises BadMessage: If it is something else
    """
    shape: Any = head.get("shape")
    number, age = head.get("number"), head.get("age")
    if not (_is_shape(shape) and len(shape) == 3 and type(number) is int and _is_seconds(age)):
        raise BadMessage("no frame")
    pixels = np.frombuffer(image, np.uint8) if head.get("encoding") == RAW else _decoded(image)
    if pixels.size != math.prod(shape):
        raise BadMessage(f"an image of {pixels.size} instead of {math.prod(shape)} bytes")
    return Frame(pixels.reshape(shape), number, age + later)


def description(arms: Mapping[str, Arm], cameras: tuple[str, ...], enforced: Mapping[str, Any]) -> dict[str, Any]:
    """Return what client and server must agree upon, by name.

    :param arms: The robot's arms
    :param cameras: Names of the cameras
    :param enforced: What :func:`~zprl_sb3.robot_envs.real.safety.described` returns
    """
    flat: dict[str, Any] = {"arms": sorted(arms)}
    for name, arm in arms.items():
        flat |= {f"{name}.control": arm.control, f"{name}.joints": arm.joints, f"{name}.gripper": arm.gripper}
    return flat | {f"camera {name}": True for name in cameras} | dict(enforced)


def differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Return by name where two descriptions differ, in words.

    :param wanted: The client's; only what it names is compared
    :param found: The server's
    """
    told = []
    for name, value in wanted.items():
        here, there = _plain(value), _plain(found.get(name))
        if name not in found:
            told.append(f"{name} is missing at the server")
        elif here != there:
            told.append(f"{name} is {there} at the server and {here} here")
    return told


def _decoded(image: bytes) -> Any:
    try:
        return np.asarray(Image.open(io.BytesIO(image), formats=["JPEG"]).convert("RGB"))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise BadMessage(f"no JPEG image: {error}") from error


def _packed(fields: Sequence[Any]) -> bytes:
    packed: bytes = msgpack.packb(fields)
    return packed


def _read(data: bytes, count: int) -> list[Any]:
    limits = {"max_bin_len": MAX_REQUEST, "max_str_len": MAX_REQUEST, "max_array_len": 1024, "max_map_len": 1024}
    try:
        fields = msgpack.unpackb(data, max_ext_len=0, strict_map_key=True, **limits)
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise BadMessage(f"no message ({type(error).__name__}: {error})") from error
    if not isinstance(fields, list) or not fields or type(fields[0]) is not int:
        raise BadMessage("no message")
    if fields[0] != VERSION:
        raise BadMessage(f"version {fields[0]}, this computer speaks {VERSION}: install the same release on both")
    if len(fields) != count:
        raise BadMessage(f"{len(fields)} fields instead of {count}")
    return fields[1:]


def _name(name: Any) -> str:
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
        raise BadMessage("no name")
    return name


def _array(entry: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    if not (isinstance(entry, list) and len(entry) == 2 and _is_shape(entry[0]) and isinstance(entry[1], bytes)):
        raise BadMessage("no array")
    shape, data = entry
    if math.prod(shape) > MAX_VALUE or len(data) != 8 * math.prod(shape):
        raise BadMessage(f"{len(data)} bytes for the shape {shape}")
    return np.frombuffer(data, "<f8").reshape(shape).astype(np.float64)


def _is_shape(shape: Any) -> bool:
    fits = isinstance(shape, list) and len(shape) <= 3
    return fits and all(type(size) is int and 0 <= size <= 1 << 16 for size in shape)


def _is_seconds(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def _plain(value: Any) -> Any:
    # msgpack knows no tuples, and numbers may have been written as whole ones.
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def raise_error(answer: Answer) -> None:
    """Raise here what was raised at the server.

    :raises Stopped: If the robot is stopped
    :raises RobotError: For what else was refused
    """
    if answer.status == STOPPED:
        raise Stopped(answer.text)
    if answer.status != OK:
        raise RobotError(answer.text)
