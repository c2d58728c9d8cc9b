"""Receive a large answer where it will stay.

redis-py's parser moves each received byte four times (a piece of its own, a growing buffer, a copy, a copy without the
line end). For records of megabytes that costs more than the exchange itself, so that here a large string answer is
received into one allocation, which Arrow reads in place.
"""

from __future__ import annotations

import builtins
from typing import Any

import pyarrow as pa
from redis._parsers import _RESP2Parser
from redis._parsers.socket import SENTINEL, SERVER_CLOSED_CONNECTION_ERROR, SocketBuffer
from redis.exceptions import ConnectionError, TimeoutError

LARGE = 64 << 10  # bytes from which on a string is received in place


class _InPlaceBuffer(SocketBuffer):
    def read(self, length: int, timeout: Any = SENTINEL) -> Any:
        """`length` bytes and the line end behind them: bytes, or a memoryview of a new allocation if large."""
        if length < LARGE or timeout is not SENTINEL:
            return super().read(length, timeout)
        target = memoryview(pa.allocate_buffer(length + 2)).cast("B")
        received = self._buffer.readinto(target)  # what came with earlier answers
        try:
            while received < length + 2:
                more = self._sock.recv_into(target[received:])
                if not more:
                    raise ConnectionError(SERVER_CLOSED_CONNECTION_ERROR)
                received += more
        except builtins.TimeoutError as error:
            raise TimeoutError("Timeout reading from socket") from error
        return target[:length].toreadonly()


class InPlaceParser(_RESP2Parser):
    """redis-py's parser of the RESP2 protocol; string answers of `LARGE` bytes or more come as a memoryview."""

    def on_connect(self, connection: Any) -> None:
        super().on_connect(connection)
        self._buffer = _InPlaceBuffer(self._sock, self.socket_read_size, connection.socket_timeout)
