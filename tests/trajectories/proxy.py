"""A TCP relay that cuts connections at the worst moment, when the server has acted, or answers in its place."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable


class CuttingProxy:
    """Relays to 127.0.0.1:`port`. `cut_when(request)` true: the request is delivered, its answer is not.

    `answer_with(request)`: what the client gets in the server's place, which doesn't hear of the request.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.cut_when: Callable[[bytes], bool] | None = None
        self.answer_with: Callable[[bytes], bytes | None] | None = None
        self.cuts = self.accepted = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.accepted += 1
                threading.Thread(target=self._relay, args=(client,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        server = socket.create_connection(("127.0.0.1", self._target))
        doomed = threading.Event()

        def forward() -> None:
            with contextlib.suppress(OSError):
                while data := client.recv(1 << 20):
                    if self.answer_with is not None and (own := self.answer_with(data)) is not None:
                        client.sendall(own)
                        continue
                    if self.cut_when is not None and self.cut_when(data):
                        self.cut_when = None
                        self.cuts += 1
                        doomed.set()
                    server.sendall(data)

        threading.Thread(target=forward, daemon=True).start()
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 20):
                if doomed.is_set():
                    break
                client.sendall(data)
        for end in (client, server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
