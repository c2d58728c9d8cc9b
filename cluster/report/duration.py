"""Seconds in words, short."""

from __future__ import annotations

MINUTE, HOUR, DAY = 60, 3600, 86400


def brief(seconds: float) -> str:
    """Such as 0.4 s, 12 s, 3 min 20 s, 2 h 5 min, 1.5 days."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < MINUTE - 0.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), MINUTE)
    if seconds < HOUR - 0.5:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    if seconds < 2 * DAY:
        hours, minutes = divmod(round(seconds / MINUTE), MINUTE)
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{seconds / DAY:.1f} days"


def ago(seconds: float) -> str:
    return f"{brief(max(0.0, seconds))} ago"
