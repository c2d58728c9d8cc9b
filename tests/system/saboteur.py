"""A run whose parts are killed in every phase: python -m tests.system.saboteur RECIPE RUN PHASE:VICTIM ... [KEY=VALUE]

Phases are told apart in the driver's process, where each begins with a call. A victim is killed once, a moment after
its phase has begun for the second time (the first of those that come only once). With --stand-ins the actors are light
ones that publish random latents.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

import cluster.run.actor_pool as actor_pool
import learner.group as group
from actors.terms import recorded_version
from cluster.config.configure import load_config
from cluster.config.recipe import RunConfig
from cluster.run import driver, state, topology
from restoration.base_models import describe
from tests.system.stand_in import remote_stand_in

VICTIMS = {
    "actor": "ray::RolloutActor",
    "reward": "ray::ServeReplica",
    "rank": "ray::RankProcess",
    "store": "valkey-server",
}
# What begins a phase: the method called, and after how many times.
PHASES = {
    "start": ("open_stream", 1),
    "rollout": ("roll", 2),
    "step": ("step", 2),
    "publication": ("weights", 3),
    "checkpoint": ("write", 4),
    "evaluation": ("evaluate", 3),
    "end": ("finish", 1),
}
DELAY_S = 0.05
PATIENCE_S = 15.0  # for a victim that is just being replaced after an earlier kill
seen = Counter[str]()
plan: dict[str, list[str]] = {}


def begins(method: str) -> None:
    seen[method] += 1
    for phase, (name, times) in PHASES.items():
        if name == method and seen[method] == times:
            timers = [threading.Timer(DELAY_S, kill, (phase, victim)) for victim in plan.get(phase, [])]
            for timer in timers:
                timer.start()
            for timer in timers if phase == "end" else []:
                timer.join(2 * PATIENCE_S)


def kill(phase: str, victim: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        for process in psutil.Process().children(recursive=True):
            try:
                if VICTIMS[victim] in " ".join(process.cmdline()):
                    os.kill(process.pid, signal.SIGKILL)
                    print(f"SABOTAGE {phase}: {victim} {process.pid}", flush=True)
                    return
            except (psutil.Error, ProcessLookupError):
                continue
        time.sleep(DELAY_S)
    print(f"SABOTAGE {phase}: no {victim} to be found", flush=True)


def watched(owner: type, name: str, method_of: Callable[..., str]) -> None:
    original = getattr(owner, name)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        begins(method_of(*args))
        return original(self, *args, **kwargs)

    setattr(owner, name, call)


def main() -> None:
    recipe, folder, *rest = sys.argv[1:]
    config = load_config(RunConfig, recipe, [w for w in rest if "=" in w])
    for word in (w for w in rest if "=" not in w and ":" in w):
        phase, victim = word.split(":")
        plan.setdefault(phase, []).append(victim)
    watched(actor_pool.ActorPool, "call", lambda actor, method, *_: method)
    watched(group.LearnerGroup, "_call", lambda method, *_: method)
    watched(state.RunState, "finish", lambda *_: "finish")
    if "--stand-ins" in rest:
        schedule = describe(config.model).schedule(config.sampler)
        version = recorded_version(config.reward.resolved, {"contrast": "contrast-1"})
        topology.remote_actor = remote_stand_in(schedule.fingerprint, version)
        VICTIMS["actor"] = "ray::StandIn"
    driver.train(config, Path(folder))


if __name__ == "__main__":
    main()
