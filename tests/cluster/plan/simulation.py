"""The loop, event by event: what the cost model's formula is held against. No real time passes."""

from __future__ import annotations

import heapq
from itertools import count
from typing import Any

from cluster.plan.model import SLOTS, Costs, Counts, Loop, step_s


def simulated(loop: Loop, costs: Costs, counts: Counts, iterations: int) -> list[float]:
    """When each step is over, in seconds, as driver, actors, replicas, and ranks work together."""
    number, events = count(), list[tuple[float, int, str, Any]]()
    window, total = (loop.staleness + 1) * loop.items, iterations * loop.items
    denoising = [0.0] * counts.actors  # until when
    busy = [0] * counts.actors
    replicas = {name: [0.0] * n for name, n in counts.replicas.items()}
    handed = arrived = used = gathered = gathering = 0
    ended: list[float] = []
    stepping = False
    took = step_s(loop, costs, counts.ranks)
    gather = -(-loop.groups // counts.ranks) * costs.intake_s

    def at(time: float, what: str, which: Any = None) -> None:
        heapq.heappush(events, (time, next(number), what, which))

    at(0.0, "look")
    while events:
        now, _, what, which = heapq.heappop(events)
        if what == "denoised":
            done = now
            for name, each in costs.score_s.items():
                for _ in range(costs.blocks):
                    free = replicas[name]
                    place = min(range(len(free)), key=lambda i: free[i])
                    free[place] = max(now, free[place]) + each / costs.blocks
                    done = max(done, free[place])
            at(done + costs.publish_s, "published", which)
        elif what == "published":
            busy[which] -= 1
            arrived += 1
        elif what == "gathered":
            gathered += 1
        elif what == "learned":
            stepping = False
            used += loop.items
            ended.append(now)
        # The driver: work for whoever is free, then the learner.
        while handed < min(total, used + window):
            actor = min(range(counts.actors), key=lambda a: busy[a])
            if busy[actor] >= SLOTS:
                break
            busy[actor] += 1
            handed += 1
            denoising[actor] = max(now, denoising[actor]) + costs.rollout_s
            at(denoising[actor], "denoised", actor)
        allowed = len(ended) + 1 + int(stepping)  # one batch is gathered beside a step
        if gathering == gathered < min(allowed, iterations) and arrived >= (gathering + 1) * loop.items:
            gathering += 1
            at(now + gather, "gathered")
        if not stepping and gathered > len(ended):
            stepping = True
            at(now + took, "learned")
            at(now, "look")
    return ended


def steady_s(loop: Loop, costs: Costs, counts: Counts, iterations: int = 24) -> float:
    """Seconds of an iteration once everything is under way."""
    ended = simulated(loop, costs, counts, iterations)
    half = iterations // 2
    return (ended[-1] - ended[half - 1]) / (iterations - half)
