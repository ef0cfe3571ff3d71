"""Length-prefixed MessagePack frames over a Unix socket, for event loops and for blocking code.

A frame is a four-byte big-endian length and a MessagePack array of messages. All messages sent within one iteration of
the event loop leave as one frame, so a decode step of a thousand streams costs one write and one read.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import msgspec

from config.errors import ChannelClosed, ProtocolError
from enginepool.messages import Message

HEADER = 4
MAX_FRAME = 2**30
"""Bytes. A longer frame must be garbage, since bodies are limited to far less."""
HIGH_WATER = 4 * 2**20
"""Unsent bytes above which the peer counts as not reading."""

In = TypeVar("In")

_encoder = msgspec.msgpack.Encoder()


def encode_frame(messages: list[Message]) -> bytes:
    payload = _encoder.encode(messages)
    return len(payload).to_bytes(HEADER, "big") + payload


class FrameReader(Generic[In]):
    """Splits a byte stream into frames and decodes them."""

    def __init__(self, union: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[list[In]] = msgspec.msgpack.Decoder(list[union])
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[In]:
        """Returns the messages completed by `data`; an incomplete frame is kept for the next call.

        Raises:
            ProtocolError: a frame is too long or holds unknown messages.
        """
        self._pending += data
        messages: list[In] = []
        start = 0
        # A view, because slicing a bytearray copies; it must be released before the bytearray can be shortened.
        with memoryview(self._pending) as view:
            while len(view) - start >= HEADER:
                end = start + HEADER + self._length(view[start : start + HEADER])
                if end > len(view):
                    break
                messages += self.decode(view[start + HEADER : end])
                start = end
        del self._pending[:start]
        return messages

    def decode(self, payload: bytes | memoryview) -> list[In]:
        try:
            return self._decoder.decode(payload)
        except msgspec.DecodeError as error:
            raise ProtocolError(f"frame with unknown content: {error}") from error

    @staticmethod
    def _length(header: bytes | memoryview) -> int:
        length = int.from_bytes(header, "big")
        if length > MAX_FRAME:
            raise ProtocolError(f"frame of {length} bytes; the maximum is {MAX_FRAME}")
        return length


class Channel(asyncio.Protocol, Generic[In]):
    """One end of a connection on an event loop. `on_message` gets messages in order, and none once `closed`.

    `union` is the type of incoming messages. `on_pressure(True)` is called when the peer stops reading,
    `on_pressure(False)` when it resumes.
    """

    def __init__(
        self,
        union: Any,
        on_message: Callable[[In], None],
        on_closed: Callable[[Exception | None], None],
        on_pressure: Callable[[bool], None] | None = None,
    ) -> None:
        self._reader: FrameReader[In] = FrameReader(union)
        self._on_message = on_message
        self._on_closed = on_closed
        self._on_pressure = on_pressure
        self._outbox: list[Message] = []
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def closed(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def send(self, message: Message) -> None:
        """Queue a message; it is written at the end of this iteration of the event loop.

        Raises:
            ChannelClosed: the connection is closed.
        """
        if self.closed:
            raise ChannelClosed("the peer is gone")
        if not self._outbox:
            self._loop.call_soon(self._flush)
        self._outbox.append(message)

    def close(self) -> None:
        """Send queued messages and close. `on_closed` is called afterwards."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def _flush(self) -> None:
        if self._outbox and not self.closed:
            assert self._transport is not None
            self._transport.write(encode_frame(self._outbox))
        self._outbox = []

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=HIGH_WATER)

    def data_received(self, data: bytes) -> None:
        try:
            messages = self._reader.feed(data)
        except ProtocolError as error:
            self._fail(error)
            return
        for message in messages:
            # Handling an earlier message of this frame may have closed the channel.
            if self.closed:
                return
            self._on_message(message)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._transport = None
            self._on_closed(exc)

    def pause_writing(self) -> None:
        if self._on_pressure is not None:
            self._on_pressure(True)

    def resume_writing(self) -> None:
        if self._on_pressure is not None:
            self._on_pressure(False)

    def _fail(self, error: Exception) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        self._on_closed(error)


class BlockingChannel(Generic[In]):
    """One end of a connection for code without an event loop: template, loader and CLI."""

    def __init__(self, connection: socket.socket, union: Any) -> None:
        self._socket = connection
        self._reader: FrameReader[In] = FrameReader(union)

    def send(self, message: Message) -> None:
        """Send one message, waiting until it is written.

        Raises:
            ChannelClosed: the peer is gone.
        """
        try:
            self._socket.sendall(encode_frame([message]))
        except OSError as error:
            raise ChannelClosed(str(error)) from error

    def receive(self) -> list[In]:
        """Wait for the next frame and return its messages.

        Raises:
            ChannelClosed: the peer is gone.
            ProtocolError: the peer sent an invalid frame.
        """
        length = FrameReader._length(self._exactly(HEADER))
        return self._reader.decode(self._exactly(length))

    def close(self) -> None:
        self._socket.close()

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            try:
                piece = self._socket.recv(min(count - len(data), 2**20))
            except OSError as error:
                raise ChannelClosed(str(error)) from error
            if not piece:
                raise ChannelClosed("the peer closed the connection")
            data += piece
        return bytes(data)
