"""Dashboard and rules get where they are read, once, and nothing of the user's is lost on the way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from cluster.cli import app as cli
from cluster.watch import kubernetes, rules
from cluster.watch.install import (
    DASHBOARD_FILE,
    DASHBOARDS,
    METRICS_ROOT,
    RULES_FILE,
    WatchError,
    install_rules,
    places_of_ray,
    with_rules,
)
from cluster.watch.panels import DASHBOARD

HERE = Path(__file__).parent
RAYS = """# my global config
global:
  scrape_interval: 10s # often

scrape_configs:
- job_name: 'ray'
  file_sd_configs:
  - files:
    - '/tmp/ray/prom.json'
"""


def command(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["watch", *map(str, arguments)])


def metrics_of_ray(root: Path) -> Path:
    """As its dashboard leaves them."""
    (root / "prometheus").mkdir(parents=True)
    (root / "prometheus" / "prometheus.yml").write_text(RAYS)
    (root / "grafana" / "dashboards").mkdir(parents=True)
    return root


def test_without_folders_both_go_beside_rays_own_and_a_second_time_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = metrics_of_ray(tmp_path / "metrics")
    monkeypatch.setenv(METRICS_ROOT, str(root))
    monkeypatch.delenv(DASHBOARDS, raising=False)
    first = command("install")
    assert first.exit_code == 0, first.output
    assert first.stdout.count("wrote: ") == 3 and "--config.file=" in first.stdout and "again then" in first.stdout
    made = {path: (path.stat().st_mtime_ns, path.read_text()) for path in root.rglob("*.*") if path.is_file()}
    assert json.loads((root / "grafana" / "dashboards" / DASHBOARD_FILE).read_text()) == DASHBOARD.document()
    assert yaml.safe_load((root / "prometheus" / RULES_FILE).read_text()) == rules.document()
    second = command("install")
    assert second.stdout.count("is right: ") == 3 and "wrote" not in second.stdout
    assert {path: (path.stat().st_mtime_ns, path.read_text()) for path in made} == made


def test_a_folder_that_is_named_is_the_only_one_that_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(METRICS_ROOT, str(metrics_of_ray(tmp_path / "metrics")))
    (tmp_path / "boards").mkdir()
    done = command("install", "--grafana", tmp_path / "boards", "--page", "https://wiki/watching")
    assert done.exit_code == 0 and done.stdout.count("wrote: ") == 1 and "Prometheus" not in done.stdout
    assert not (tmp_path / "metrics" / "prometheus" / RULES_FILE).exists()


def test_rays_folders_are_those_that_ray_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = tmp_path / "ray" / "session_1" / "metrics"
    metrics_of_ray(session)
    (tmp_path / "ray" / "session_latest").symlink_to("session_1")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    places = places_of_ray({})
    assert places.prometheus.resolve() == session / "prometheus"
    assert places.grafana.resolve() == session / "grafana" / "dashboards"
    assert places_of_ray({DASHBOARDS: "/boards"}).grafana == Path("/boards")
    with pytest.raises(WatchError, match=r"has left no prometheus/prometheus.yml there; start the cluster"):
        places_of_ray({METRICS_ROOT: str(tmp_path / "none")})


@pytest.mark.parametrize(
    ("before", "files"),
    [
        (RAYS, []),
        ("", []),
        ("rule_files:\n", []),
        ("rule_files:   # none yet\n  # - first.yml\nscrape_configs: []\n", []),
        ("rule_files:\n- a.yml\n- b.yml\nglobal: {}\n", ["a.yml", "b.yml"]),
        ("global: {}\nrule_files:\n\n    # ours\n    - a.yml", ["a.yml"]),
    ],
    ids=["Ray's", "nothing", "an empty list", "a list of comments", "a list", "an indented one"],
)
def test_a_configuration_gets_one_line_and_keeps_all_others(before: str, files: list[str]) -> None:
    after = with_rules(before)
    config: dict[str, Any] = yaml.safe_load(before) or {}
    assert yaml.safe_load(after) == config | {"rule_files": [RULES_FILE, *files]}
    kept = [line for line in after.splitlines() if RULES_FILE not in line]
    assert [line for line in before.splitlines() if line not in kept] == []
    assert with_rules(after) == after


@pytest.mark.parametrize(
    "there", [f"[{RULES_FILE}]", "['*.yml']", f"[./{RULES_FILE}, b.yml]", "['restorl_*']", "['/etc/p*/*.yml']"]
)
def test_a_configuration_that_names_the_rules_already_is_left_alone(there: str) -> None:
    text = f"rule_files: {there}\n"
    assert with_rules(text, Path("/etc/prometheus")) == text


def test_rules_of_other_folders_are_not_taken_for_ours() -> None:
    text = "rule_files:\n  - /etc/*.yml\n  - rules/*.yml\n"
    assert with_rules(text, Path("/etc/prometheus")).count(RULES_FILE) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rule_files: [a.yml]\n", "can't be added to by a program; add the line `- restorl_rules.yml` there"),
        ("rule_files: &x\n  - a.yml\n", "can't be added to by a program"),
        ("- a\n", "no configuration of Prometheus"),
        ("rule_files: 3\n", "no configuration of Prometheus"),
        ("a: [", "not YAML"),
    ],
)
def test_a_configuration_that_can_not_be_changed_safely_stays_as_it_is(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "prometheus.yml"
    path.write_text(text)
    with pytest.raises(WatchError, match=said) as error:
        install_rules(tmp_path)
    assert str(path) in str(error.value)
    assert path.read_text() == text and not (tmp_path / RULES_FILE).exists()


def test_a_file_that_is_replaced_keeps_its_owner_group_and_mode_and_its_reader(tmp_path: Path) -> None:
    """As root's `sudo restorl watch install` must leave a configuration with passwords to Prometheus."""
    path = tmp_path / "prometheus.yml"
    path.write_text(RAYS)
    path.chmod(0o640)
    owner = (1234, 5678) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    os.chown(path, *owner)
    before = os.umask(0o077)
    try:
        assert command("install", "--prometheus", tmp_path).exit_code == 0
    finally:
        os.umask(before)
    made = path.stat()
    assert RULES_FILE in path.read_text()
    assert (made.st_mode & 0o777, made.st_uid, made.st_gid) == (0o640, *owner)
    assert (tmp_path / RULES_FILE).stat().st_mode & 0o777 == 0o644  # which Prometheus reads, whatever the umask
    assert sorted(p.name for p in tmp_path.iterdir()) == ["prometheus.yml", RULES_FILE]


def test_while_it_is_written_nobody_else_reads_what_a_configuration_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, modes = tmp_path / "prometheus.yml", list[int]()
    path.write_text(RAYS)
    path.chmod(0o640)
    written = Path.write_text

    def write(self: Path, text: str, encoding: str | None = None) -> int:
        done = written(self, text, encoding=encoding)
        modes.append(self.stat().st_mode & 0o077)
        return done

    monkeypatch.setattr(Path, "write_text", write)
    install_rules(tmp_path)
    assert modes == [0, 0]


def test_a_file_that_can_not_be_given_back_to_its_owner_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "prometheus.yml", Path.stat
    path.write_text(RAYS)

    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    def of_another(self: Path, **given: Any) -> os.stat_result:
        found = real(self, **given)
        return os.stat_result((*found[:4], found.st_uid + 1, *found[5:])) if self.name == path.name else found

    monkeypatch.setattr(os, "chown", refused)
    monkeypatch.setattr(Path, "stat", of_another)
    done = command("install", "--prometheus", tmp_path)
    assert done.exit_code == 2 and "as that user, or as root (sudo)" in " ".join(done.stderr.split())
    assert path.read_text() == RAYS and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("option", ["--prometheus", "--grafana"])
def test_a_folder_that_is_not_there_is_told_in_one_line(option: str, tmp_path: Path) -> None:
    done = command("install", option, tmp_path / "none")
    assert done.exit_code == 2 and "give the folder" in done.output.replace("\n", " ") and option in done.output


def test_files_alone_are_rendered_and_say_what_the_package_says(tmp_path: Path) -> None:
    done = command("render", "--out", tmp_path / "new", "--namespace", "ray", "--label", "release=prometheus")
    assert done.exit_code == 0, done.output
    monitor, rule = yaml.safe_load_all((tmp_path / "new" / "kuberay_prometheus.yaml").read_text())
    assert [monitor, rule] == kubernetes.documents(namespace="ray", labels={"release": "prometheus"})
    (config_map,) = yaml.safe_load_all((tmp_path / "new" / "kuberay_grafana.yaml").read_text())
    assert json.loads(config_map["data"][DASHBOARD_FILE]) == DASHBOARD.document()
    assert yaml.safe_load((tmp_path / "new" / RULES_FILE).read_text()) == rule["spec"]
    assert command("render", "--out", tmp_path / "new", "--label", "release").exit_code == 2


def test_the_monitor_takes_the_pods_of_the_cluster_and_carries_what_kuberay_calls_them() -> None:
    monitor, rule = kubernetes.documents("mine", "ray", {"release": "p"}, "https://wiki/watching")
    assert (monitor["kind"], rule["kind"]) == ("PodMonitor", "PrometheusRule")
    for made in (monitor, rule):
        assert made["apiVersion"] == "monitoring.coreos.com/v1"
        assert made["metadata"] == {"name": "restorl", "namespace": "ray", "labels": {"release": "p"}}
    spec = monitor["spec"]
    assert spec["selector"]["matchLabels"] == {"ray.io/cluster": "mine"}
    assert spec["namespaceSelector"] == {"matchNames": ["ray"]}
    (endpoint,) = spec["podMetricsEndpoints"]
    assert endpoint["port"] == "metrics"
    assert endpoint["relabelings"][0] == {
        "sourceLabels": ["__meta_kubernetes_pod_label_ray_io_cluster"],
        "targetLabel": "ray_io_cluster",
        "action": "replace",
    }
    assert all(
        a["annotations"]["runbook_url"].startswith("https://wiki/watching#") for a in rule["spec"]["groups"][0]["rules"]
    )
    anywhere, _ = kubernetes.documents()
    assert "matchLabels" not in anywhere["spec"]["selector"] and anywhere["metadata"] == {"name": "restorl"}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, of Debian's prometheus")
def test_promtool_finds_the_rules_right_and_each_alert_fires_where_it_should(tmp_path: Path) -> None:
    assert command("render", "--out", tmp_path).exit_code == 0
    shutil.copy(HERE / "alerts.test.yml", tmp_path)
    for what, name in (("check", RULES_FILE), ("test", "alerts.test.yml")):
        subprocess.run(["promtool", what, "rules", name], cwd=tmp_path, check=True, timeout=60)
