"""The framed connection between processes: whole messages in order, or a clear end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, get_args

import msgspec
import pytest

from config.errors import ChannelClosed, ProtocolError
from enginepool import messages
from enginepool.channel import HIGH_WATER, MAX_FRAME, BlockingChannel, Channel, FrameReader, encode_frame
from enginepool.messages import (
    Abort,
    Activate,
    Block,
    Chunk,
    FromLoader,
    FromTemplate,
    FromWorker,
    Loaded,
    Manifest,
    Message,
    ModelSpec,
    Ping,
    Pong,
    SegmentRef,
    Submit,
    TensorSpec,
    ToLoader,
    ToTemplate,
    ToWorker,
)

SUBMIT = Submit(7, "/v1/completions", '{"prompt": "虹"}'.encode(), 12.5)
PINGS: list[Message] = [Ping(1), SUBMIT, Ping(2)]
UNIONS = {
    "to a worker": ToWorker,
    "from a worker": FromWorker,
    "to a loader": ToLoader,
    "from a loader": FromLoader,
    "to the template": ToTemplate,
    "from the template": FromTemplate,
    "to the operator": messages.CommandResult,
    "from the operator": messages.Command,
}
MODEL = ModelSpec("m", "/models/m", "bfloat16", {"threads": 2, "nested": {"a": [1, 2.5, None]}})
TENSOR = TensorSpec("model.weight", "bfloat16", (3, 4), 64, 24, "parameter", (1, 3))
BLOCK = Block(64, 24, 2**32 - 1)
MANIFEST = Manifest("m", "key", 128, (TENSOR,), (BLOCK,), {"scale": 0.5, "sizes": {"tuple": [1, None]}}, ("bias",))
SEGMENT = SegmentRef(123, 4, 128)
_EXAMPLES: dict[Any, Any] = {
    int: 2**40,
    float: 0.25,
    str: "text, 虹",
    bool: True,
    bytes: b"\x00\xff",
    "int | None": 3,
    "dict[str, float]": {"copy": 0.5, "map": 1.5},
    "dict[str, Any]": {"key": [1, "two", None]},
    "MpsClient | None": messages.MpsClient("/run/prism/m0", "/run/prism/m0/logs", "GPU-1"),
    "ModelSpec": MODEL,
    "Manifest": MANIFEST,
    "Manifest | None": MANIFEST,
    "SegmentRef": SEGMENT,
    "SegmentRef | None": SEGMENT,
}


def example(kind: type[Message]) -> Message:
    """A message with something in every field."""
    annotations = {field: kind.__annotations__[field] for field in kind.__struct_fields__}
    by_name = {getattr(key, "__name__", key): value for key, value in _EXAMPLES.items()}
    return kind(**{field: by_name[annotation] for field, annotation in annotations.items()})


def members(union: Any) -> tuple[type[Message], ...]:
    return get_args(union) or (union,)


def all_kinds() -> list[type[Message]]:
    return sorted(Message.__subclasses__(), key=lambda kind: kind.__name__)


# --- frames ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("union", UNIONS.values(), ids=UNIONS)
def test_every_message_arrives_as_it_was_sent(union: Any) -> None:
    sent = [example(kind) for kind in members(union)]
    assert FrameReader[Message](union).feed(encode_frame(sent)) == sent


def test_every_kind_of_message_has_a_way_to_travel() -> None:
    assert {kind for union in UNIONS.values() for kind in members(union)} == set(all_kinds())


def test_what_may_be_absent_arrives_as_absent() -> None:
    sent = [Activate(MODEL, None, None, True)]
    assert FrameReader[ToWorker](ToWorker).feed(encode_frame(list(sent))) == sent


def test_a_manifest_arrives_with_its_tensors() -> None:
    sent = Loaded(MANIFEST, SEGMENT)
    (received,) = FrameReader[FromLoader](FromLoader).feed(encode_frame([sent]))
    assert isinstance(received, Loaded)
    assert received.manifest.tensors == (TENSOR,)


def test_a_frame_may_be_cut_at_any_byte() -> None:
    data = encode_frame(PINGS) + encode_frame([Abort(9)])
    for cut in range(len(data) + 1):
        reader = FrameReader[ToWorker](ToWorker)
        assert [*reader.feed(data[:cut]), *reader.feed(data[cut:])] == [*PINGS, Abort(9)]


def test_bytes_may_come_one_at_a_time() -> None:
    reader = FrameReader[ToWorker](ToWorker)
    data = encode_frame(PINGS)
    received = [reader.feed(data[index : index + 1]) for index in range(len(data))]
    assert received == [[]] * (len(data) - 1) + [PINGS]


def test_many_frames_may_come_at_once() -> None:
    data = b"".join(encode_frame([Ping(number)]) for number in range(1000))
    assert FrameReader[ToWorker](ToWorker).feed(data) == [Ping(number) for number in range(1000)]


def test_a_frame_may_be_empty() -> None:
    assert FrameReader[ToWorker](ToWorker).feed(encode_frame([]) + encode_frame([Ping(1)])) == [Ping(1)]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\x93\x01",
        msgspec.msgpack.encode({"Ping": 1}),
        msgspec.msgpack.encode([["Dance", 1]]),
        msgspec.msgpack.encode([["Ping", "one"]]),
        msgspec.msgpack.encode([["Ping"]]),
        msgspec.msgpack.encode([["Submit", 1, "/path", "text for bytes", "soon"]]),
        encode_frame([Pong(1)])[4:],
    ],
    ids=[
        "nothing",
        "no MessagePack",
        "cut",
        "no array",
        "unknown",
        "wrong type",
        "too short",
        "wrong field",
        "wrong way",
    ],
)
def test_a_frame_of_something_else_is_an_error(payload: bytes) -> None:
    with pytest.raises(ProtocolError, match="unknown content"):
        FrameReader[ToWorker](ToWorker).feed(len(payload).to_bytes(4, "big") + payload)


def test_a_frame_that_is_too_long_is_an_error_before_it_is_read() -> None:
    with pytest.raises(ProtocolError, match=str(MAX_FRAME + 1)):
        FrameReader[ToWorker](ToWorker).feed((MAX_FRAME + 1).to_bytes(4, "big"))


# --- on an event loop -----------------------------------------------------------------------------------------


class End:
    """One end of a connection, with all that happened to it. `on_message` may be replaced."""

    def __init__(self, union: Any) -> None:
        self.received: asyncio.Queue[Any] = asyncio.Queue()
        self.closed: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.pressure: asyncio.Queue[bool] = asyncio.Queue()
        self.on_message: Callable[[Any], None] = self.received.put_nowait
        self.channel: Channel[Any] = Channel(
            union, lambda message: self.on_message(message), self.closed.set_result, self.pressure.put_nowait
        )


@asynccontextmanager
async def connected(union: Any = ToWorker) -> AsyncIterator[tuple[End, socket.socket]]:
    """A channel, and the bare socket at its other end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    theirs.setblocking(False)
    end = End(union)
    await asyncio.get_running_loop().create_connection(lambda: end.channel, sock=ours)
    try:
        yield end, theirs
    finally:
        theirs.close()
        end.channel.close()
        await asyncio.wait((end.closed,))


async def drain(end: socket.socket, stop: asyncio.Future[Any] | asyncio.Task[Any]) -> int:
    """Read and throw away until `stop` is done; returns how many bytes."""
    count = 0
    while not stop.done():
        read = asyncio.create_task(asyncio.get_running_loop().sock_recv(end, 2**20))
        await asyncio.wait((read, stop), return_when=asyncio.FIRST_COMPLETED)
        count += len(read.result()) if read.done() else 0
        read.cancel()
        await asyncio.wait((read,))
    return count


async def test_messages_pass_in_both_directions_and_in_order() -> None:
    async with connected() as (end, peer):
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(peer, encode_frame(PINGS))
        assert [await end.received.get() for _ in PINGS] == PINGS
        end.channel.send(Pong(1))
        end.channel.send(Pong(2))
        assert await loop.sock_recv(peer, 1000) == encode_frame([Pong(1), Pong(2)])


async def test_what_is_sent_in_one_turn_of_the_loop_leaves_as_one_frame() -> None:
    async with connected() as (end, peer):
        for number in range(100):
            end.channel.send(Pong(number))
        data = await asyncio.get_running_loop().sock_recv(peer, 100_000)
        assert data == encode_frame([Pong(number) for number in range(100)])


async def test_garbage_closes_the_connection_and_says_why() -> None:
    async with connected() as (end, peer):
        await asyncio.get_running_loop().sock_sendall(peer, encode_frame([Ping(1)]) + b"\x00\x00\x00\x01\xc1")
        assert isinstance(await end.closed, ProtocolError)
        assert end.channel.closed
        assert await asyncio.get_running_loop().sock_recv(peer, 1) == b""


async def test_a_closed_channel_takes_no_more() -> None:
    async with connected() as (end, peer):
        peer.close()
        assert await end.closed is None
        with pytest.raises(ChannelClosed):
            end.channel.send(Pong(1))


async def test_what_was_sent_before_closing_still_arrives() -> None:
    async with connected() as (end, peer):
        end.channel.send(Pong(1))
        end.channel.close()
        loop = asyncio.get_running_loop()
        assert await loop.sock_recv(peer, 1000) == encode_frame([Pong(1)])
        assert await loop.sock_recv(peer, 1000) == b""
        assert await end.closed is None


async def test_no_message_arrives_after_the_channel_was_closed_by_one() -> None:
    async with connected() as (end, peer):
        seen: list[Any] = []

        def close_at_once(message: Any) -> None:
            seen.append(message)
            end.channel.close()

        end.on_message = close_at_once
        await asyncio.get_running_loop().sock_sendall(peer, encode_frame([Ping(1), Ping(2)]))
        await end.closed
        assert seen == [Ping(1)]


async def test_a_peer_that_does_not_read_is_felt_and_told_when_it_goes_on() -> None:
    async with connected() as (end, peer):
        for number in range(3):
            end.channel.send(Chunk(number, bytes(HIGH_WATER)))
        assert await end.pressure.get() is True
        relieved = asyncio.create_task(end.pressure.get())
        assert await drain(peer, relieved) > 2 * HIGH_WATER
        assert await relieved is False


# --- for blocking code ----------------------------------------------------------------------------------------


def test_blocking_code_sends_and_receives_the_same_frames() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        worker: BlockingChannel[ToWorker] = BlockingChannel(ours, ToWorker)
        theirs.sendall(encode_frame(PINGS) + encode_frame([Abort(1)]))
        assert worker.receive() == PINGS
        assert worker.receive() == [Abort(1)]
        worker.send(Pong(1))
        assert theirs.recv(1000) == encode_frame([Pong(1)])


@pytest.mark.parametrize("sent", [b"", b"\x00\x00", encode_frame(PINGS)[:-1]])
def test_blocking_code_is_told_when_the_peer_is_gone(sent: bytes) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours:
        channel: BlockingChannel[ToWorker] = BlockingChannel(ours, ToWorker)
        theirs.sendall(sent)
        theirs.close()
        with pytest.raises(ChannelClosed):
            channel.receive()
        with pytest.raises(ChannelClosed):
            channel.send(Pong(1))


@pytest.mark.parametrize("sent", [b"\x00\x00\x00\x01\xc1", b"\xff\xff\xff\xff"])
def test_blocking_code_is_told_when_the_peer_sends_something_else(sent: bytes) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        theirs.sendall(sent)
        with pytest.raises(ProtocolError):
            BlockingChannel[ToWorker](ours, ToWorker).receive()
