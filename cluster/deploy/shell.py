"""Lines of shell that several targets have in common: secrets in files, and what a process of Ray needs to know."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence

PASSWORD_FILE, TOKEN_FILE = "store_password", "ray_token"


def draw_secrets(folder: str) -> list[str]:
    """Files that only their user reads, drawn once; what the script writes besides is as its user has it.

    `folder` is a word of shell as it stands.
    """
    return [
        "(",
        "    umask 077",
        f"    mkdir -p {folder}",
        f"    for secret in {TOKEN_FILE} {PASSWORD_FILE}; do",
        f"        [ -s {folder}/$secret ] || openssl rand -hex 32 > {folder}/$secret",
        "    done",
        ")",
    ]


def environment(secrets: str) -> list[str]:
    """Of every process that starts or joins Ray; `secrets` is a word of shell as it stands."""
    return [
        f"export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={secrets}/{TOKEN_FILE}",
        "export RAY_USAGE_STATS_ENABLED=0 OMP_WAIT_POLICY=PASSIVE",
    ]


def password(secrets: str, variable: str) -> str:
    """Of the driver and the store."""
    return f'{variable}="$(cat {secrets}/{PASSWORD_FILE})"; export {variable}'


def resources_flag(offers: Mapping[str, int]) -> list[str]:
    """The flag of `ray start`, none without custom resources."""
    return [f"--resources={shlex.quote(json.dumps(dict(offers)))}"] if offers else []


def script(lines: Sequence[str]) -> str:
    return "\n".join(lines) + "\n"
