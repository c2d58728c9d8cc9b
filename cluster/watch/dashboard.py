"""A Grafana dashboard from typed panels: what Grafana reads is made here, what is shown stands in `panels.py`."""

from __future__ import annotations

import string
from dataclasses import dataclass, field
from typing import Any

COLUMNS, ROW_HEIGHT = 24, 1  # of Grafana's grid
PANELS_A_ROW = 100  # ids of a row's panels follow its own
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
SCHEMA_VERSION = 39  # of Grafana 10.4 and later, which migrate it by themselves
KINDS = ("timeseries", "stat")


@dataclass(frozen=True)
class Target:
    """One expression of a panel; `legend` may name labels as {{label}}."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One graph, or one number.

    Attributes:
        description: what it tells, shown at its title.
        unit: of Grafana, such as s, bytes, percentunit, short, dB.
        kind: timeseries or stat.
        stack: the lines on top of each other.
        least, most: of the axis; None lets Grafana choose.
        needs: what a machine must have for this panel to have data, such as "gpu"; empty: every run has it.
    """

    title: str
    description: str
    unit: str
    targets: tuple[Target, ...]
    kind: str = "timeseries"
    stack: bool = False
    least: float | None = None
    most: float | None = None
    needs: str = ""
    width: int = 8
    height: int = 8

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"panel {self.title!r}: kind={self.kind}; choose {' or '.join(KINDS)}")
        if not self.targets:
            raise ValueError(f"panel {self.title!r} has no targets; give at least one")
        if not 0 < self.width <= COLUMNS:
            raise ValueError(f"panel {self.title!r}: width={self.width}; give 1 to {COLUMNS}")


@dataclass(frozen=True)
class Row:
    """Panels under a heading. `id` is a multiple of 100; the panels' follow it, so that links to a panel stay right
    when another row gets one more.
    """

    id: int
    title: str
    panels: tuple[Panel, ...]

    def __post_init__(self) -> None:
        if self.id % PANELS_A_ROW or not 0 < len(self.panels) < PANELS_A_ROW:
            raise ValueError(f"row {self.title!r}: id={self.id}, {len(self.panels)} panels; a multiple of 100, 1 to 99")


@dataclass(frozen=True)
class Variable:
    """A filter of the whole dashboard: a choice of `values`, or of what Prometheus answers to `query`."""

    name: str
    label: str
    query: str = ""
    values: tuple[str, ...] = ()
    every: bool = True  # "All" may be chosen, and is at first


@dataclass(frozen=True)
class Dashboard:
    """All of it; `uid` is part of its address in Grafana.

    Raises:
        ValueError: two rows have one id.
    """

    uid: str
    title: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]
    annotations: tuple[Target, ...] = field(default=())  # times to mark in every panel

    def __post_init__(self) -> None:
        ids = [row.id for row in self.rows]
        if len(ids) != len(set(ids)):
            raise ValueError(f"dashboard {self.title!r}: two rows have one id among {ids}")

    @property
    def panels(self) -> tuple[Panel, ...]:
        return tuple(panel for row in self.rows for panel in row.panels)

    def document(self) -> dict[str, Any]:
        """What Grafana imports or reads from a provisioned folder, as JSON."""
        source = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
        return {
            "uid": self.uid,
            "title": self.title,
            "tags": ["restorl", "ray"],
            "schemaVersion": SCHEMA_VERSION,
            "version": 1,
            "editable": True,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": {"from": "now-3h", "to": "now"},
            "timezone": "",
            "links": [{"title": "Ray", "type": "dashboards", "tags": ["ray"], "asDropdown": True, "keepTime": True}],
            "annotations": {"list": [_annotation(target) for target in self.annotations]},
            "templating": {"list": [source, *map(_variable, self.variables)]},
            "panels": self._laid_out(),
        }

    def _laid_out(self) -> list[dict[str, Any]]:
        """Rows and panels from left to right, from top to bottom."""
        found, y = [], 0
        for row in self.rows:
            place = {"h": ROW_HEIGHT, "w": COLUMNS, "x": 0, "y": y}
            found.append(
                {"id": row.id, "type": "row", "title": row.title, "collapsed": False, "gridPos": place, "panels": []}
            )
            x, y, tallest = 0, y + ROW_HEIGHT, 0
            for number, panel in enumerate(row.panels, 1):
                if x + panel.width > COLUMNS:
                    x, y, tallest = 0, y + tallest, 0
                place = {"h": panel.height, "w": panel.width, "x": x, "y": y}
                found.append({"id": row.id + number, "gridPos": place, **_panel(panel)})
                x, tallest = x + panel.width, max(tallest, panel.height)
            y += tallest
        return found


def _panel(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit}
    defaults |= {key: value for key, value in (("min", panel.least), ("max", panel.most)) if value is not None}
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "drawStyle": "line",
            "fillOpacity": 20 if panel.stack else 5,
            "showPoints": "never",
            "spanNulls": True,
            "stacking": {"mode": "normal" if panel.stack else "none", "group": "A"},
        }
        options: dict[str, Any] = {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    else:
        options = {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "textMode": "auto",
            "colorMode": "value",
        }
    targets = [
        {"refId": ref, "expr": target.expr, "legendFormat": target.legend, "range": True, "datasource": SOURCE}
        for ref, target in zip(string.ascii_uppercase, panel.targets, strict=False)
    ]
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": targets,
    }


def _variable(variable: Variable) -> dict[str, Any]:
    made: dict[str, Any] = {"name": variable.name, "label": variable.label, "hide": 0, "skipUrlSync": False}
    if variable.every:
        # A regular expression that matches what lacks the label, too.
        made |= {"includeAll": True, "multi": True, "allValue": ".*", "current": {"text": ["All"], "value": ["$__all"]}}
    else:
        first = variable.values[0]
        made |= {"includeAll": False, "multi": False, "current": {"text": first, "value": first}}
    if variable.query:
        query = {"query": variable.query, "refId": f"restorl-{variable.name}"}
        return made | {
            "type": "query",
            "datasource": SOURCE,
            "definition": variable.query,
            "query": query,
            "refresh": 2,
        }
    options = [{"text": value, "value": value, "selected": False} for value in variable.values]
    return made | {"type": "custom", "query": ",".join(variable.values), "options": options}


def _annotation(target: Target) -> dict[str, Any]:
    return {
        "name": target.legend,
        "datasource": SOURCE,
        "enable": True,
        "expr": target.expr,
        "iconColor": "red",
        "titleFormat": "{{alertname}}",
        "textFormat": "{{run}}",
    }
