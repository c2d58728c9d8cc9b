"""Dashboard and rules as files: rendered into a folder, or put where a Prometheus and a Grafana read them.

Ray writes a `prometheus.yml` and a Grafana of its own dashboards into its session's folder, `metrics/`, each time its
dashboard starts, and throws away what is there. Grafana reads that folder of dashboards again every few seconds;
Prometheus reads rules that its configuration names, when it starts or is told to.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster.files import write_text
from cluster.local_ray import folder_of_sessions
from cluster.watch import kubernetes, rules
from cluster.watch.kubernetes import DASHBOARD_FILE
from cluster.watch.panels import DASHBOARD
from restoration.whole_files import written_whole

RULES_FILE = "restorl_rules.yml"
PROMETHEUS_FILE = "prometheus.yml"
KUBERNETES_FILE, CONFIG_MAP_FILE = "kuberay_prometheus.yaml", "kuberay_grafana.yaml"
NEW_MODE = 0o644  # of what another user, Prometheus' or Grafana's, has to read, whatever the umask
# Of Ray's own, which its dashboard reads (2.60).
METRICS_ROOT, DASHBOARDS = "RAY_METRICS_OUTPUT_ROOT", "RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR"


class WatchError(ValueError):
    """Something can't be installed there; the message says where, and what to do."""


@dataclass(frozen=True)
class Written:
    """A file that is as it should be, and whether it had to be changed."""

    path: Path
    changed: bool


@dataclass(frozen=True)
class Places:
    """Folders of Ray's own: the one with prometheus.yml, and the one whose dashboards Grafana reads."""

    prometheus: Path
    grafana: Path


def places_of_ray(env: Mapping[str, str] | None = None) -> Places:
    """Where Ray puts its own, of the cluster that was started last on this machine.

    Raises:
        WatchError: there is none: no cluster's dashboard was started here.
    """
    env = os.environ if env is None else env
    session = folder_of_sessions() / "session_latest" / "metrics"
    root = Path(env[METRICS_ROOT]) if env.get(METRICS_ROOT) else session
    if not (root / "prometheus" / PROMETHEUS_FILE).is_file():
        raise WatchError(
            f"{root}: Ray's dashboard has left no prometheus/{PROMETHEUS_FILE} there; start the cluster (`ray start "
            "--head`, or a run), on its head give this command again, or name the folders by --prometheus and --grafana"
        )
    grafana = Path(env[DASHBOARDS]) if env.get(DASHBOARDS) else root / "grafana" / "dashboards"
    return Places(root / "prometheus", grafana)


def render(
    out: Path,
    cluster: str = "",
    namespace: str = "",
    labels: Mapping[str, str] | None = None,
    page: str = rules.PAGE,
) -> list[Written]:
    """All files into `out`: dashboard, rules, and both for KubeRay; see `kubernetes.documents`.

    Raises:
        OSError: they can't be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    found = kubernetes.documents(cluster, namespace, labels, page)
    return [
        _write(out / DASHBOARD_FILE, dashboard_text()),
        _write(out / RULES_FILE, rules_text(page)),
        _write(out / KUBERNETES_FILE, _yaml(*found)),
        _write(out / CONFIG_MAP_FILE, _yaml(kubernetes.dashboard(namespace))),
    ]


def install_dashboard(folder: Path) -> list[Written]:
    """Put the dashboard into a folder that a provider of Grafana reads.

    Raises:
        WatchError: no such folder, or a file there that is another user's.
        OSError: it can't be written to.
    """
    _require_folder(folder, "--grafana", "the folder that `path` of a provider in Grafana's provisioning names")
    return [_write(folder / DASHBOARD_FILE, dashboard_text(), _for_another_user)]


def install_rules(folder: Path, page: str = rules.PAGE) -> list[Written]:
    """Put the rules beside a prometheus.yml, and name them in it, if nothing there does so.

    A file that is there keeps its owner, group and mode.

    Raises:
        WatchError: no such folder or file, or one that can't be changed without knowing it: then nothing is. A file
            that is another user's.
        OSError: it can't be written to.
    """
    _require_folder(folder, "--prometheus", f"the folder with {PROMETHEUS_FILE}")
    path = folder / PROMETHEUS_FILE
    if not path.is_file():
        raise WatchError(f"{path}: no such file; give the folder of Prometheus' configuration")
    before = path.read_text(encoding="utf-8")
    try:
        after = with_rules(before, folder.resolve())
    except ValueError as error:
        raise WatchError(f"{path}: {error}") from None
    return [_write(folder / RULES_FILE, rules_text(page), _for_another_user), _write(path, after, _for_another_user)]


def with_rules(text: str, folder: Path = Path("/")) -> str:
    """A configuration of Prometheus, in `folder`, that names our file of rules beside it; as it is, if it does already.

    Raises:
        ValueError: it is no such configuration, or its rule_files are written so that a person must add the line.
    """
    config = _read(text)
    if any((folder / RULES_FILE).match(os.path.normpath(folder / str(n))) for n in config.get("rule_files") or ()):
        return text
    made = f"{text.rstrip()}\n\n# Of `restorl watch install`.\nrule_files:\n  - {RULES_FILE}\n"
    if "rule_files" in config:
        made = _with_item(text)
    wanted = config | {"rule_files": [RULES_FILE, *(config.get("rule_files") or ())]}
    try:
        right = _read(made) == wanted
    except ValueError:
        right = False
    if not right:
        raise ValueError(f"its rule_files can't be added to by a program; add the line `- {RULES_FILE}` there")
    return made


def _with_item(text: str) -> str:
    """The text with our file as the first of its rule_files, a list of one item a line, perhaps of none."""
    lines = text.splitlines()
    at = next((n for n, line in enumerate(lines) if re.fullmatch(r"rule_files:\s*(#.*)?", line)), None)
    if at is None:
        return text
    following = next((line for line in lines[at + 1 :] if line.strip() and not line.lstrip().startswith("#")), "")
    item = re.match(r"(\s*)- ", following)
    lines.insert(at + 1, f"{item[1] if item else '  '}- {RULES_FILE}")
    return "\n".join(lines) + "\n"


def dashboard_text() -> str:
    return json.dumps(DASHBOARD.document(), indent=1) + "\n"


def rules_text(page: str = rules.PAGE) -> str:
    return _yaml(rules.document(page))


def _read(text: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML ({str(error).splitlines()[0]}); put it right") from None
    if found is None:
        return {}
    if not isinstance(found, dict) or not isinstance(found.get("rule_files") or [], list):
        raise ValueError("no configuration of Prometheus; give the folder of one")
    return found


def _yaml(*found: dict[str, Any]) -> str:
    return yaml.safe_dump_all(found, sort_keys=False, width=1000, allow_unicode=True)


def _write(path: Path, text: str, write: Callable[[Path, str], None] = write_text) -> Written:
    """Leaves a file alone that is as it should be, for what watches it."""
    path = path.resolve()  # of a link the file, not the link
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return Written(path, changed=False)
    write(path, text)
    return Written(path, changed=True)


def _for_another_user(path: Path, text: str) -> None:
    """Write what a program of another user reads: with owner, group and mode of the file that is replaced.

    Raises:
        WatchError: that is another user's, and this one may not give a file away.
    """
    before = path.stat() if path.exists() else None
    with written_whole(path) as temporary:
        temporary.touch(0o600)  # passwords in it are read by nobody else meanwhile
        temporary.write_text(text, encoding="utf-8")
        made = temporary.stat()
        if before is not None and (before.st_uid, before.st_gid) != (made.st_uid, made.st_gid):
            try:
                os.chown(temporary, before.st_uid, before.st_gid)
            except PermissionError:
                raise WatchError(
                    f"{path}: belongs to user {before.st_uid} and group {before.st_gid}, who would lose it; give this "
                    "command as that user, or as root (sudo)"
                ) from None
        temporary.chmod(NEW_MODE if before is None else stat.S_IMODE(before.st_mode))


def _require_folder(folder: Path, option: str, what: str) -> None:
    if not folder.is_dir():
        raise WatchError(f"{folder}: no such folder; give {what} by {option}")
