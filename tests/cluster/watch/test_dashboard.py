"""Dashboard and alerts speak of what is exported, each part can be told from the others, and a page explains them."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
import yaml

from cluster.metrics import METRICS
from cluster.watch import names, rules
from cluster.watch.dashboard import Dashboard, Panel, Row, Target
from cluster.watch.panels import DASHBOARD, ROLES, RUNS
from cluster.watch.rules import ALERTS, Alert

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent
PAGE = (ROOT / "docs" / "watching.md").read_text(encoding="utf-8")
PROOF = ROOT / "benchmarks" / "results" / "watching.json"
DOCUMENT = DASHBOARD.document()
EXPRESSIONS = {
    **{f"{p.title} {n}": t.expr for p in DASHBOARD.panels for n, t in enumerate(p.targets)},
    **{alert.name: alert.expr for alert in ALERTS},
}


def named(expr: str) -> set[str]:
    """Metrics of an expression."""
    bare = re.sub(r"\"[^\"]*\"|(?:by|on) \([^)]*\)", "", expr)
    return set(re.findall(r"\b(ray_[a-z0-9_]+)(?=[{\[ )]|$)", bare))


def exported() -> set[str]:
    """By processes of ours; what a replica registers is read where it does so."""
    replica = (ROOT / "reward_service" / "replica.py").read_text(encoding="utf-8")
    registered = re.findall(r"metrics\.(Counter|Gauge|Histogram)\(\"restorl_(reward_\w+)\"", replica)
    kinds = {name: kind.lower() for kind, name in registered} | {name: kind for name, (kind, _, _) in METRICS.items()}
    assert len(registered) == 7
    return {names.PREFIX + name + names.SUFFIX[kind] for name, kind in kinds.items()}


def of_ray() -> set[str]:
    """What a run on a machine without a GPU had of Ray's own; what GPUs have, as Ray's source names it."""
    spec = importlib.util.find_spec("ray")
    assert spec is not None and spec.origin is not None
    reporter = Path(spec.origin).parent / "dashboard" / "modules" / "reporter" / "reporter_agent.py"
    gauges = re.findall(r"^    \"(\w*(?:gpu|gram)\w*)\": Gauge\($", reporter.read_text(encoding="utf-8"), re.MULTILINE)
    assert "node_gpus_utilization" in gauges
    return {f"ray_{name}" for name in gauges} | set((HERE / "ray_names.txt").read_text(encoding="utf-8").split())


@pytest.mark.parametrize("what", EXPRESSIONS)
def test_every_metric_of_an_expression_is_one_that_a_process_or_ray_exports(what: str) -> None:
    found = named(EXPRESSIONS[what])
    assert found and found <= exported() | of_ray()


def test_a_metric_that_nobody_exports_is_found() -> None:
    assert named('max by (run) (ray_restorl_none{run="a"}) / ray_b[5m] > ray_c') == {
        "ray_restorl_none",
        "ray_b",
        "ray_c",
    }
    with pytest.raises(KeyError):
        names.shown("none")


def test_every_metric_of_a_run_is_shown_somewhere() -> None:
    shown = {name for expr in EXPRESSIONS.values() for name in named(expr)}
    assert exported() - shown == {names.PREFIX + "reward_batch_images_bucket"}  # its fill is


def test_ids_are_unique_panels_do_not_overlap_and_each_fits_its_row() -> None:
    panels = DOCUMENT["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) == len(DASHBOARD.panels) + len(DASHBOARD.rows)
    taken = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24
        taken |= cells
        refs = [target["refId"] for target in panel.get("targets", ())]
        assert len(refs) == len(set(refs))
    assert DOCUMENT["uid"] == "restorl" and json.loads(json.dumps(DOCUMENT)) == DOCUMENT


def test_titles_are_unique_and_each_panel_is_described() -> None:
    titles = [panel.title for panel in DASHBOARD.panels]
    assert len(titles) == len(set(titles))
    assert all(panel.description.endswith(".") for panel in DASHBOARD.panels)


def test_panels_of_a_run_are_filtered_by_run_node_and_role_and_the_filters_exist() -> None:
    variables = {v["name"]: v for v in DOCUMENT["templating"]["list"]}
    assert list(variables) == ["datasource", "run", "node", "role", "window"]
    assert variables["role"]["query"].split(",") == list(ROLES) and RUNS in variables["run"]["definition"]
    for panel in DASHBOARD.panels:
        for target in panel.targets:
            used = set(re.findall(r"\$(\w+)", target.expr))
            assert used <= variables.keys()
            selectors = re.findall(r"(ray_\w+)\{([^}]*)\}", target.expr)
            assert len(selectors) == len(re.findall(r"\bray_[a-z_]+\{", target.expr))
            for metric, labels in selectors:
                filters = {"$run", "$node", "$role"} if metric.startswith(names.PREFIX) else {"$node"}
                assert filters <= set(re.findall(r"\$\w+", labels)), (panel.title, metric)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_every_alert_has_a_severity_a_summary_that_names_the_run_and_a_runbook(alert: Alert) -> None:
    rule = alert.document()
    assert rule["labels"]["severity"] in rules.SEVERITIES
    assert "{{ $labels.run }}" in rule["annotations"]["summary"] and rule["annotations"]["description"].endswith(".")
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert page == "docs/watching.md"
    headings = re.findall(r"^### (\w+)$", PAGE, flags=re.MULTILINE)
    assert anchor in {heading.lower() for heading in headings}
    assert alert.document("https://x/y")["annotations"]["runbook_url"] == f"https://x/y#{anchor}"


def test_the_page_has_a_runbook_for_each_alert_and_for_no_other_and_a_line_on_each_panel() -> None:
    headings = re.findall(r"^### (Restorl\w+)$", PAGE, flags=re.MULTILINE)
    assert sorted(headings) == sorted(alert.name for alert in ALERTS)
    assert [panel.title for panel in DASHBOARD.panels if f"**{panel.title}**" not in PAGE] == []


def test_each_alert_has_a_unit_test_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    cases = yaml.safe_load((HERE / "alerts.test.yml").read_text(encoding="utf-8"))
    looked = [look for case in cases["tests"] for look in case["alert_rule_test"]]
    for alert in ALERTS:
        fires = {bool(look.get("exp_alerts")) for look in looked if look["alertname"] == alert.name}
        assert fires == {True, False}
    assert {look["alertname"] for look in looked} == {alert.name for alert in ALERTS}


def test_the_committed_proof_has_seen_every_panel_and_every_alert() -> None:
    """`make watching` has to be run again once an expression is another."""
    proof = json.loads(PROOF.read_text(encoding="utf-8"))
    seen = {(title, found["expr"]): found["series"] for title, parts in proof["panels"].items() for found in parts}
    wanted = {(panel.title, target.expr): panel for panel in DASHBOARD.panels for target in panel.targets}
    assert seen.keys() == wanted.keys()
    assert [what for what, panel in wanted.items() if not seen[what] and (proof["gpu"] or panel.needs != "gpu")] == []
    assert {name: found["expr"] for name, found in proof["alerts"].items()} == {a.name: a.expr for a in ALERTS}
    assert all(found["health"] == "ok" and found["left"] for found in proof["alerts"].values())


def test_what_could_not_be_shown_is_refused() -> None:
    target = (Target("up", ""),)
    with pytest.raises(ValueError, match="panel 'a': kind=pie; choose timeseries or stat"):
        Panel("a", "", "s", target, kind="pie")
    with pytest.raises(ValueError, match="panel 'a' has no targets"):
        Panel("a", "", "s", ())
    with pytest.raises(ValueError, match="panel 'a': width=25"):
        Panel("a", "", "s", target, width=25)
    with pytest.raises(ValueError, match="row 'r': id=101"):
        Row(101, "r", (Panel("a", "", "s", target),))
    row = Row(100, "r", (Panel("a", "", "s", target),))
    with pytest.raises(ValueError, match="two rows have one id"):
        Dashboard("u", "d", (), (row, row))
    with pytest.raises(ValueError, match="alert A: severity=bad; choose one of critical, warning, info"):
        Alert("A", "up", "> 0", "1m", "bad", "", "")
