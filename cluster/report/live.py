"""What the driver of a run says of itself while it lives (live.json), and what its lock says besides."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.report.duration import ago, brief
from cluster.run.folder_lock import Holder

LIVE_FILE = "live.json"
STARTING, RUNNING, EVALUATING, STOPPING = "starting", "running", "evaluating", "stopping"
FINISHED, STOPPED, FAILED, STALLED, DEAD = "finished", "stopped", "failed", "stalled", "dead"
UNDER_WAY = (STARTING, RUNNING, EVALUATING, STOPPING)
TROUBLE = (FAILED, STALLED, DEAD)
BEAT_LATE_S = 30.0  # a driver that lives beats every two seconds; a full disk or a busy machine may keep it from it
AHEAD_S = 5.0
TURN_LATE_S = 180.0  # its loop goes round every second, unless it waits for a store or a learner to come back


@dataclass(frozen=True)
class Sign:
    """The state of a run, and why it is held to be that."""

    state: str
    why: str = ""


def read_live(folder: Path) -> tuple[dict[str, Any], float | None, str]:
    """(live.json, when it was written by the file system's clock, what is wrong with it); empty where there is none."""
    path = folder / LIVE_FILE
    try:
        text, written = path.read_text(encoding="utf-8"), path.stat().st_mtime
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError("no JSON object")
        return found | {"time": float(found["time"]), "state": str(found["state"])}, written, ""
    except FileNotFoundError:
        return {}, None, ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        return {}, None, f"{LIVE_FILE} can't be read ({type(error).__name__}: {error})"


def sign_of(
    live: dict[str, Any],
    written: float | None,
    holder: Holder,
    complete: bool,
    begun: bool,
    now: float,
    resume: str,
    here: str | None = None,
) -> Sign:
    """What is to be thought of a run.

    Args:
        live, written: as `read_live` gives them.
        holder: of the folder's lock.
        complete: the run has left what only a finished one leaves.
        begun: it has left a line of metrics.
        resume: the command by which it goes on; empty where it can't.
        here: the name of this host.
    """
    go_on = f"; go on with: {resume}" if resume else ""
    here = here or socket.gethostname()
    if not live:
        if holder.held:
            return Sign(RUNNING if begun else STARTING, f"{holder}; it says nothing more of itself")
        if complete:
            return Sign(FINISHED)
        return Sign(STOPPED, f"no process holds its lock{go_on}")
    age = _age(live["time"], written, now)
    state, doing = live["state"], str(live.get("doing") or "")
    driver = f"process {live.get('pid')} on {live.get('host')}"
    # An audit reads the folder of a dead run under its lock.
    another = bool(holder.held and holder.pid and (holder.host, holder.pid) != (live.get("host"), live.get("pid")))
    if state not in UNDER_WAY:
        told = go_on.removeprefix("; ") if state in (STOPPED, FAILED) and "--resume" not in doing else ""
        return Sign(state, "; ".join(filter(None, (doing, told, str(holder) if another else ""))))
    seen_alive = age <= BEAT_LATE_S and (holder.held is None or live.get("host") != here)
    if not another and (holder.held or seen_alive):
        return _living(live, state, doing, age)
    if complete:
        return Sign(FINISHED)
    used = f"; {holder}" if another else ""
    return Sign(
        DEAD, f"its driver ({driver}) was killed, or its machine lost: its last sign is of {ago(age)}{used}{go_on}"
    )


def _age(told: float, written: float | None, now: float) -> float:
    """Seconds since the last beat. The clock of the driver's host or of the file server may be off: one that says it
    was in the future is, and of two the one that says the least is believed.
    """
    ages = [now - moment for moment in (told, written) if moment is not None and moment <= now + AHEAD_S]
    return max(0.0, min(ages, default=0.0))


def _living(live: dict[str, Any], state: str, doing: str, age: float) -> Sign:
    who = f"process {live.get('pid')} on {live.get('host')}"
    if age > BEAT_LATE_S:
        return Sign(STALLED, f"{who} is there, and its last sign is of {ago(age)}: is it stopped, or the disk full?")
    turned = live.get("turned")
    if state != STARTING and isinstance(turned, (int, float)) and (stood := live["time"] - turned) > TURN_LATE_S:
        what = f"since then: {doing}" if doing else "look at its output, at the store and at the Ray dashboard"
        return Sign(STALLED, f"the loop of {who} went round last {ago(stood)}; {what}")
    began = live.get("began")
    if state == STARTING and not doing and isinstance(began, (int, float)):
        return Sign(state, f"for {brief(max(0.0, live['time'] - began))}")
    return Sign(state, doing)
