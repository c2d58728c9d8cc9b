"""The least that a run needs to be allowed in its store, as a line of an ACL."""

from __future__ import annotations

# What `trajectories/` sends, and what its scripts call: the server asks for the right to both. Everything here is used
# (tests/benchmarks/test_rights.py counts it); INFO may be left out, and with it the check of the server's settings.
COMMANDS = (
    *("info", "multi", "exec", "eval"),
    *("get", "set", "incrby", "decrby", "strlen", "exists", "rename", "unlink"),
    *("hget", "hset", "hsetnx", "hexists", "hmget", "hscan", "hlen"),
    *("xadd", "xack", "xclaim", "xdel", "xlen", "xpending", "xrange", "xread", "xreadgroup", "xsetid"),
    *("xgroup|create", "xinfo|groups", "xinfo|stream"),
)
KEYS = "restorl:*"
USER = "restorl-run"


def rules() -> list[str]:
    """The user's rights, as the words behind its password."""
    return ["resetchannels", f"~{KEYS}", "-@all", *(f"+{command}" for command in COMMANDS)]


def acl_line(password: str, user: str = USER) -> str:
    """A line of the server's configuration, or of its ACL file."""
    return " ".join(("user", user, "reset", "on", f">{password}", *rules()))
