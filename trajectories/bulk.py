"""Receive a large answer where it will stay.

redis-py's parser moves each received byte four times (a piece of its own, a growing buffer, a copy, a copy without
the line end). For a record of megabytes that costs more than all the rest of an exchange, so that here a large string
answer is received into one allocation, which Arrow reads in place.
"""

from __future__ import annotations

import builtins
from typing import Any

import pyarrow as pa
from redis._parsers import _RESP2Parser
from redis._parsers.socket import SENTINEL, SERVER_CLOSED_CONNECTION_ERROR, SocketBuffer
from redis.exceptions import ConnectionError, TimeoutError

LARGE = 64 << 10  # bytes from which on a string is received in place
_LINE_END = 2  # bytes


class InPlaceBuffer(SocketBuffer):
    """What redis-py reads from a socket, large strings apart."""

    def read(self, length: int, timeout: Any = SENTINEL) -> Any:
        """`length` bytes, and the line end behind them, which is dropped.

        Returns:
            bytes; from `LARGE` on a memoryview (read only) of an allocation of its own.

        Raises:
            ConnectionError, TimeoutError: as redis-py has them.
        """
        if length < LARGE or timeout is not SENTINEL:
            return super().read(length, timeout)
        target = memoryview(pa.allocate_buffer(length + _LINE_END)).cast("B")
        received = self._buffer.readinto(target)  # what came together with an earlier answer
        try:
            while received < len(target):
                more = self._sock.recv_into(target[received:])
                if not more:
                    raise ConnectionError(SERVER_CLOSED_CONNECTION_ERROR)
                received += more
        except builtins.TimeoutError as error:
            raise TimeoutError("Timeout reading from socket") from error
        return target[:length].toreadonly()


class InPlaceParser(_RESP2Parser):
    """redis-py's parser of the RESP2 protocol, with an `InPlaceBuffer`."""

    def on_connect(self, connection: Any) -> None:
        super().on_connect(connection)
        self._buffer = InPlaceBuffer(self._sock, self.socket_read_size, connection.socket_timeout)
