"""How far the clocks of other hosts are from the driver's, as far as its exchanges with them tell."""

from __future__ import annotations

from collections import deque

RECENT = 64  # exchanges with a host: clocks are set now and then


class Clocks:
    """By every answer that a host gives.

    An answer was sent after the question had been asked and before it came: so the driver's clock minus the host's lies
    between asked - arrived and received - sent. Over many exchanges little room is left.
    """

    def __init__(self, here: str) -> None:
        self.here = here  # the driver's host, by which nothing is corrected
        self._seen: dict[str, deque[tuple[float, float]]] = {}

    def heard(self, host: str, asked: float, arrived: float, sent: float, received: float) -> None:
        """One exchange: `asked` and `received` by the driver's clock, the others by the host's."""
        if host != self.here:
            self._seen.setdefault(host, deque(maxlen=RECENT)).append((asked - arrived, received - sent))

    def bounds(self) -> dict[str, tuple[float, float]]:
        """Host -> the least and the most that must be added to its times to have the driver's, in seconds.

        A clock that was set meanwhile leaves no room between them: then what came last counts alone.
        """
        found = {}
        for host, seen in self._seen.items():
            low, high = max(pair[0] for pair in seen), min(pair[1] for pair in seen)
            found[host] = (low, high) if low <= high else seen[-1]
        return found
