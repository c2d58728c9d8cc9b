"""The way into Ray: a cluster of our own, one that runs already, or the one whose job we are.

`connect` is all a driver needs. It works the same when `restorl train` is run directly and when it is the entry
point of a Ray job, where it joins the cluster that runs the job:

    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=...     # the same for `ray start` and for `ray job submit`
    ray job submit -- $(python -c "from cluster.jobs import entrypoint; print(entrypoint())") train configs/demo.yaml

The entry point names this environment's interpreter by its path: a plain `python` would be the one first on the PATH
of whoever started the head, which need not have Ray.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shlex
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from cluster.files import write_text
from cluster.local_ray import (
    LocalRay,
    address_of_ray_start,
    folder_of_sessions,
    logs_of_own_session,
    on_loopback,
    room_for_sockets,
    too_long_for_sockets,
)
from cluster.run.interrupts import keep_handlers
from restoration.whole_files import naming

CONNECTION_FILE = "ray.json"
TOKEN_FILE = "ray_token"
REACH_TIMEOUT_S = 5.0
# Roles share cores: a spinning OpenMP thread of one would starve the others.
WORKER_ENV = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
# The node is called 127.0.0.1, and listens there only; who joins must call it so too.
LOOPBACK_ENV = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
LOCAL_ENV = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_agent_register_timeout_ms": "120000",  # 30 s: a busy laptop's node would end before it is up
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default; unset, Ray warns in every process
}


OpenDashboard = Callable[[Callable[[str], None]], None]


class ClusterError(RuntimeError):
    """Ray can't be started or reached; the message says where and what to do."""


@dataclass(frozen=True)
class ClusterSettings:
    """Where Ray runs.

    Attributes:
        address: "local" starts a cluster of our own on this machine, "auto" joins that of RAY_ADDRESS or of
            `ray start` on this machine (never the own one of another run), "host:port" or "ray://host:port" a certain
            one. Within a Ray job, and where RAY_ADDRESS is set, "local" means "auto".
        num_cpus, num_gpus, resources, object_store_mb: of a local cluster; null lets Ray count.
        dashboard, dashboard_port: of a local cluster; it listens on loopback.
        metrics_port: of a local cluster, where Prometheus finds the metrics (without a token); null takes a free one.
        namespace: of the actors.
        auth: "token" or "disabled". "auto": token for a local cluster, else what RAY_AUTH_MODE or a token file says.
        token_path: file of the token for a cluster that isn't ours; null takes RAY_AUTH_TOKEN_PATH, RAY_AUTH_TOKEN or
            ~/.ray/auth_token. A local cluster gets a new token in the run folder.
        autoscaling: nodes may be added, so that roles may ask for more than there is at the start.
        log_to_driver: show the output of actors.
    """

    address: str = "local"
    num_cpus: int | None = None
    num_gpus: int | None = None
    resources: dict[str, float] = field(default_factory=dict)
    object_store_mb: int | None = None
    dashboard: bool = True
    dashboard_port: int | None = None
    metrics_port: int | None = None
    namespace: str = "restorl"
    auth: str = "auto"
    token_path: str | None = None
    autoscaling: bool = False
    log_to_driver: bool = False

    def __post_init__(self) -> None:
        if self.address not in ("local", "auto") and _host_and_port(self.address) is None:
            raise ValueError(f"cluster.address={self.address!r}; give local, auto, host:port or ray://host:port")
        if self.auth not in ("auto", "token", "disabled"):
            raise ValueError(f"cluster.auth={self.auth!r}; choose auto, token or disabled")
        if not self.namespace:
            raise ValueError("cluster.namespace is empty; give a name")
        for name in ("num_cpus", "num_gpus", "object_store_mb"):
            value = getattr(self, name)
            if value is not None and value < (0 if name == "num_gpus" else 1):
                raise ValueError(f"cluster.{name}={value}; give a positive number or null")


class Connection:
    """An open connection; `shutdown` (or leaving the `with`) closes it, and stops the cluster if it is ours.

    Attributes:
        address: "host:port" where another process joins, or the ray:// address.
        local: whether the cluster is ours.
        metrics_ports: of the nodes on this machine.
    """

    def __init__(self, address: str, namespace: str, exits: ExitStack, open_dashboard: OpenDashboard, local: bool):
        self.address, self.namespace, self.local = address, namespace, local
        self._exits, self._open_dashboard = exits, open_dashboard

    @property
    def logs(self) -> Path | None:
        """Folder of the logs of a cluster of our own; it stays when the cluster has ended."""
        return logs_of_own_session() if self.local else None

    def open_dashboard(self, told: Callable[[str], None]) -> None:
        """`told` gets a line with the dashboard's address: at once, or when that of a cluster of our own is up.

        It starts beside what runs, from another thread. Without one nothing is told; one that fails is told as such.
        """
        self._open_dashboard(told)

    @property
    def metrics_ports(self) -> list[int]:
        import ray

        return [node["MetricsExportPort"] for node in ray.nodes() if node["Alive"]]

    def shutdown(self) -> None:
        """Leave, or stop a cluster of our own to its last process; a second call does nothing."""
        self._exits.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()


def connect(settings: ClusterSettings, folder: Path | None = None, env: Mapping[str, str] | None = None) -> Connection:
    """Start or join Ray.

    Args:
        settings: see ClusterSettings.
        folder: the run folder, whose lock the caller holds; keeps the token of a local cluster and how other processes
            join it (`attach`).
        env: more environment variables for every worker.

    Raises:
        ClusterError: no cluster there, a token that is missing or refused.
        OSError: the run folder can't be written to.
    """
    address = effective_address(settings)
    own = address == "local"
    if own and (advice := too_long_for_sockets()):
        raise ClusterError(advice)
    if address == "auto":
        address = _running_cluster()
    with ExitStack() as exits:
        variables = {**WORKER_ENV, **(env or {})}
        path = _token_path(settings, address, folder)
        if own and path is not None:
            exits.callback(path.unlink, missing_ok=True)
        auth = _auth_variables(settings, address, path)
        if not own:
            _require_reachable(address)
        loopback = own or _is_only_on_loopback(address)
        more = {
            **(LOOPBACK_ENV if loopback else {}),
            **({**LOCAL_ENV, **room_for_sockets(), **variables} if own else {}),
        }
        exits.callback(_set_environment, _set_environment({**auth, **more}))

        import ray

        _refresh_ray_authentication()
        options: dict[str, Any] = {"namespace": settings.namespace, "log_to_driver": settings.log_to_driver}
        options |= {"logging_level": logging.WARNING, "configure_logging": False}
        if own:
            options |= {"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus}
            options |= {"resources": settings.resources or None, "include_dashboard": settings.dashboard}
            options |= {"dashboard_host": "127.0.0.1", "dashboard_port": settings.dashboard_port}
            options |= {"_metrics_export_port": settings.metrics_port}
            if settings.object_store_mb is not None:
                options["object_store_memory"] = settings.object_store_mb * 2**20
        else:
            options["runtime_env"] = {"env_vars": variables}
        open_dashboard: OpenDashboard = partial(_tell_dashboard, None)
        try:
            if own:
                cluster = LocalRay()
                exits.callback(cluster.stop)
                cluster.start(options)
                open_dashboard = cluster.watched.start
            else:
                with keep_handlers(), on_loopback() if loopback else nullcontext():
                    url = getattr(ray.init(address=address, **options), "dashboard_url", None)
                open_dashboard = partial(_tell_dashboard, url)
        except Exception as error:
            ray.shutdown()
            raise ClusterError(_advice(address, error)) from error
        except BaseException:  # interrupted
            ray.shutdown()
            raise
        exits.callback(ray.shutdown)
        if own:
            exits.callback(cluster.watched.stop)
        joined = address if address.startswith("ray://") else ray.get_runtime_context().gcs_address
        connection = Connection(joined, settings.namespace, ExitStack(), open_dashboard, own)
        if folder is not None:
            _describe(connection, Path(folder), auth)
            exits.callback((Path(folder) / CONNECTION_FILE).unlink, missing_ok=True)
        connection._exits = exits.pop_all()
    return connection


def attach(folder: Path) -> Connection:
    """Join the cluster that the run in `folder` uses now, from another process on this machine.

    Raises:
        ClusterError: the run isn't running.
    """
    path = Path(folder) / CONNECTION_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ClusterError(f"{folder}: no {CONNECTION_FILE}, so no run is running there; start it first") from None
    settings = ClusterSettings(
        found["address"], namespace=found["namespace"], auth=found["auth"], token_path=found["token_path"]
    )
    return connect(settings)


def effective_address(settings: ClusterSettings) -> str:
    """What "local" means here: within a Ray job, or with RAY_ADDRESS set, the cluster that runs already."""
    if settings.address == "local" and (in_ray_job() or os.environ.get("RAY_ADDRESS", "local") != "local"):
        return "auto"
    return settings.address


def in_ray_job() -> bool:
    """Whether this process is the entry point of a submitted Ray job."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def entrypoint(arguments: Iterable[str] = ()) -> str:
    """Shell words that run `restorl` with this environment's interpreter, for `ray job submit --`."""
    return shlex.join([sys.executable, "-m", "cluster.cli", *arguments])


def _running_cluster() -> str:
    """What "auto" means. Ray itself would take any cluster whose processes it sees, another run's own one too."""
    given = os.environ.get("RAY_ADDRESS", "")
    if given not in ("", "auto", "local"):
        if _host_and_port(given) is None or "://" in given.removeprefix("ray://"):
            raise ClusterError(f"RAY_ADDRESS={given} is no cluster's address; set it to host:port or ray://host:port")
        return given
    found = address_of_ray_start()
    if found is None:
        raise ClusterError(
            "no cluster was started with `ray start` on this machine; start one, or give cluster.address=host:port, "
            "or cluster.address=local"
        )
    return found


def _token_path(settings: ClusterSettings, address: str, folder: Path | None) -> Path | None:
    if settings.auth == "disabled":
        return None
    if address != "local":
        return Path(settings.token_path).expanduser() if settings.token_path else None
    # mkstemp and os.open with a mode: never readable by others, not even for a moment.
    if folder is None:
        handle, name = tempfile.mkstemp(prefix="restorl_ray_token_")
        path = Path(name)
    else:
        path = Path(folder).resolve() / TOKEN_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with naming(path), os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(secrets.token_hex(32))
    return path


def _auth_variables(settings: ClusterSettings, address: str, path: Path | None) -> dict[str, str | None]:
    """Ray's own default depends on which files exist and on the command: always say the mode."""
    if path is not None:
        if not path.is_file():
            raise ClusterError(f"cluster.token_path={path}: no such file; give the token file the cluster started with")
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path), "RAY_AUTH_TOKEN": None}
    if settings.auth != "auto":
        return {"RAY_AUTH_MODE": settings.auth}
    if "RAY_AUTH_MODE" in os.environ:
        return {}
    known = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    return {"RAY_AUTH_MODE": "token" if known or (Path.home() / ".ray" / "auth_token").exists() else "disabled"}


def _tell_dashboard(url: str | None, told: Callable[[str], None]) -> None:
    if url:
        told(f"Ray dashboard: http://{url}")


def _set_environment(values: Mapping[str, str | None]) -> dict[str, str | None]:
    """Set (None: unset) variables; returns what sets them back."""
    before = {name: os.environ.get(name) for name in values}
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    return before


def _refresh_ray_authentication() -> None:
    """Ray reads mode and token once in a process; a second connection with others needs them read again."""
    try:
        from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()
    except (ImportError, AttributeError):  # private names: without them only the first connection is right
        logging.getLogger(__name__).warning("this version of Ray can't read a changed token again")


def _host_and_port(address: str) -> tuple[str, int] | None:
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    return (host.strip("[]"), int(port)) if colon and host and port.isdigit() else None


def _require_reachable(address: str) -> None:
    """Ray itself tries an address that nobody answers for a minute."""
    found = _host_and_port(address)
    assert found is not None
    try:
        socket.create_connection(found, timeout=REACH_TIMEOUT_S).close()
    except OSError as error:
        raise ClusterError(_advice(address, error)) from None


def _is_only_on_loopback(address: str) -> bool:
    """Whether a cluster given by a loopback address is one that nothing but that reaches, as our own ones.

    Ray puts the machine's own address in place of 127.0.0.1, where such a cluster doesn't answer.
    """
    found = _host_and_port(address)
    if address.startswith("ray://") or found is None or found[0] not in ("127.0.0.1", "localhost", "::1"):
        return False
    import ray

    try:
        socket.create_connection((ray.util.get_node_ip_address(), found[1]), timeout=REACH_TIMEOUT_S).close()
    except OSError:
        return True
    return False


def _advice(address: str, error: BaseException) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if _is_refusal(error):
        return (
            f"Ray at {address} refused the token ({reason}); set cluster.token_path or RAY_AUTH_TOKEN_PATH to its file"
        )
    if address == "local":
        logs = logs_of_own_session()
        if logs is None:
            there = f"{folder_of_sessions()} has no logs of it"
            return f"Ray can't start on this machine ({reason}); {there}: can it be written? Else set RAY_TMPDIR=/tmp"
        more = ", or set RAY_TMPDIR=/tmp" if "AF_UNIX" in reason else ""
        return f"Ray can't start on this machine ({reason}); see {logs}{more}"
    return f"Ray at {address} can't be reached ({reason}); start it (`ray start --head`) or set cluster.address=local"


def _is_refusal(error: BaseException | None) -> bool:
    """Whether the error, or one it came from, is about authentication."""
    while error is not None:
        if "uthenticat" in type(error).__name__ + str(error) or "AuthToken" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _describe(connection: Connection, folder: Path, auth: Mapping[str, str | None]) -> None:
    """How other processes of the same user join: no secret in it, only where the token file is."""
    folder.mkdir(parents=True, exist_ok=True)
    mode = os.environ.get("RAY_AUTH_MODE", "disabled")
    token_path = auth.get("RAY_AUTH_TOKEN_PATH") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    content: dict[str, Any] = {"address": connection.address, "namespace": connection.namespace, "auth": mode}
    content |= {"token_path": token_path, "pid": os.getpid()}
    write_text(folder / CONNECTION_FILE, json.dumps(content, indent=1))
