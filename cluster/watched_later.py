"""What a Ray of our own is watched with, started once the run itself is up.

`ray.init` starts the dashboard, the log monitor and the autoscaler's monitor, and waits for the first. On a laptop
these dozen processes import for as long as the roles of the run do, on the same cores, and no step needs them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import psutil

from cluster.processes import marking

DASHBOARD = "start_api_server"
LATER = (DASHBOARD, "start_monitor", "start_log_monitor")  # private methods of Ray's node
NICENESS = 15  # as Ray's workers, once they are up
START_TIMEOUT_S = 600  # of the dashboard, which gets what the roles leave it
STOP_S, PAUSE_S = 10.0, 0.1


class WatchedLater:
    """Keeps those processes out of `ray.init`, starts them later in a thread of its own.

    Args:
        mark: what the processes of the cluster carry, see `cluster.processes`.
    """

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self.url = ""  # of the dashboard, once it is up
        self._starts: list[Callable[[], None]] = []
        self._node: Any = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def left_out(self) -> Iterator[None]:
        """Within, ray.init starts none of them. Whatever Ray no longer has under these names it starts by itself."""
        from ray._private.node import Node

        self._starts.clear()
        with contextlib.ExitStack() as undo:
            for name in LATER:
                start = getattr(Node, name, None)
                if start is not None:
                    undo.callback(setattr, Node, name, start)
                    setattr(Node, name, self._noting(name, start))
            yield

    def _noting(self, name: str, start: Callable[..., None]) -> Callable[..., None]:
        def note(node: Any, **options: Any) -> None:
            if name == DASHBOARD:
                self._node = node
                node._webui_url = ""  # as Ray has it without one
                if not options.get("include_dashboard", True):
                    return  # what is left of it then reports usage, which a cluster of our own doesn't
            self._starts.append(partial(start, node, **options))

        return note

    def start(self, told: Callable[[str], None]) -> None:
        """Begin to start them; `told` gets a line when the dashboard is up, or why it isn't."""
        if self._starts:
            self._thread = threading.Thread(target=self._run, args=(told,), name="watched-later", daemon=True)
            self._thread.start()

    def _run(self, told: Callable[[str], None]) -> None:
        from ray._private import ray_constants

        with contextlib.suppress(AttributeError, OSError):
            # On Linux a thread has a policy of its own, which its children inherit: they take what is left over.
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        ray_constants.RAY_DASHBOARD_STARTUP_TIMEOUT_S = START_TIMEOUT_S
        try:
            with marking(self.mark):
                for start in self._starts:
                    if not self._stopping.is_set():
                        start()
        except Exception as error:
            if not self._stopping.is_set():
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                told(f"WARNING: Ray's dashboard can't be started, the run goes on without ({reason})")
        else:
            self._as_others()
            if not self._stopping.is_set() and self._node is not None and self._node.webui_url:
                self.url = f"http://{self._node.webui_url}"
                told(f"Ray dashboard: {self.url}")
        self._stopping.wait()  # Linux ends them with the thread that started them

    def _as_others(self) -> None:
        """From here on they have their share: whoever opens the dashboard of a busy machine waits for it."""
        for child in psutil.Process().children():
            for process in (child, *child.children(recursive=True)):
                with contextlib.suppress(psutil.Error, AttributeError, OSError):
                    if os.sched_getscheduler(process.pid) == os.SCHED_IDLE:
                        os.sched_setscheduler(process.pid, os.SCHED_OTHER, os.sched_param(0))
                        process.nice(NICENESS)

    def stop(self) -> None:
        """End them, before Ray is shut down: what would wait for a dashboard waits no longer."""
        self._stopping.set()
        log = logging.getLogger("ray._private.services")
        log.disabled, before = True, log.disabled  # it would tell at length that the dashboard was killed
        try:
            for _ in range(int(STOP_S / PAUSE_S)):
                if self._thread is None or not self._thread.is_alive():
                    return
                for child in psutil.Process().children():
                    with contextlib.suppress(psutil.Error):
                        if any(part.endswith("dashboard.py") for part in child.cmdline()):
                            child.kill()
                self._thread.join(PAUSE_S)
        finally:
            log.disabled = before
