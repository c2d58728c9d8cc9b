"""Alerts on runs, as Prometheus evaluates them; docs/watching.md says what to do at each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cluster.watch.names import watched

GROUP = "restorl"
PAGE = "docs/watching.md"
SEVERITIES = ("critical", "warning", "info")
STALLED_ITERATIONS, STALLED_S = 10, 300  # half of stall_timeout_s, if that is less: then the run is still there
FULL = 0.85
RECENT = "10m"  # failures are told for so long
REMEMBERED = "1h"  # so is a run that is gone


@dataclass(frozen=True)
class Alert:
    """An alert fires where `left` fulfils `condition` for `lasting`.

    Attributes:
        left: the figure that it looks at, which has a value for every run that can be judged; by run.
        condition: what follows `left` in the expression, such as "> 0".
        summary: one line; {{ $labels.run }} is the run, {{ $value }} the figure.
        description: what it means and what to look at first.
    """

    name: str
    left: str
    condition: str
    lasting: str
    severity: str
    summary: str
    description: str

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise ValueError(f"alert {self.name}: severity={self.severity}; choose one of {', '.join(SEVERITIES)}")

    @property
    def expr(self) -> str:
        return f"{self.left} {self.condition}"

    def document(self, page: str = PAGE) -> dict[str, Any]:
        """The rule as Prometheus reads it; `page` is the address of docs/watching.md."""
        return {
            "alert": self.name,
            "expr": self.expr,
            "for": self.lasting,
            "labels": {"severity": self.severity},
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook_url": f"{page}#{self.name.lower()}",
            },
        }


def _by_run(name: str, **labels: str) -> str:
    return f"max by (run) ({watched(name, **labels)})"


def _remembered(name: str) -> str:
    return f"max by (run) (last_over_time({watched(name)}[{REMEMBERED}]))"


_FAILED = watched("reward_request_failures")
_GIVEN_UP = f"{_by_run('stall_timeout_seconds')} / 2"
ALERTS = (
    Alert(
        "RestorlRunStalled",
        f"time() - {_by_run('progress_timestamp_seconds')}",
        # The comparison leaves runs out whose iterations are longer; they, and those without one yet, get the half.
        f"> ((clamp_min({STALLED_ITERATIONS} * {_by_run('iteration_seconds')}, {STALLED_S}) < {_GIVEN_UP}) "
        f"or {_GIVEN_UP})",
        "1m",
        "critical",
        "Run {{ $labels.run }} has not moved for {{ $value | humanizeDuration }}",
        "Neither a step nor a call of an actor has ended well for ten times as long as an iteration takes, or for half "
        "of stall_timeout_s, after which the run ends itself.",
    ),
    Alert(
        "RestorlRunGone",
        _remembered("iteration"),
        # Of a run that ends well its last iteration may never have been scraped.
        f"< {_remembered('iterations_wanted')} - 1 unless on (run) {_by_run('iteration')}",
        "2m",
        "warning",
        "Run {{ $labels.run }} ended after {{ $value }} iterations, before its last",
        "Its driver exports nothing any more, and the run is not complete. Resume it.",
    ),
    Alert(
        "RestorlRewardFailures",
        # A counter that did not exist before has no increase; what it lacks counts as 0. By process, as those of one
        # that is gone are in no sum any more.
        f"sum by (run) (clamp_min({_FAILED} - ({_FAILED} offset {RECENT} or 0 * {_FAILED}), 0))",
        "> 0",
        "0m",
        "warning",
        "{{ $value }} reward requests of run {{ $labels.run }} failed within ten minutes",
        "Requests failed after all repetitions; their groups were quarantined or rolled out again.",
    ),
    Alert(
        "RestorlHeldOutFalls",
        _by_run("heldout_worse"),
        "> 0",
        "0m",
        "warning",
        "Run {{ $labels.run }}: {{ $value }} held-out figures fall while the reward rises",
        "Figures that are not optimised got worse by more than two standard errors since the base model, while the "
        "held-out reward got better: the reward may be hacked.",
    ),
    Alert(
        "RestorlStoreNearlyFull",
        f"{_by_run('store_used_bytes')} / {_by_run('store_max_bytes')}",
        f"> {FULL}",
        "2m",
        "critical",
        "The store of run {{ $labels.run }} is {{ $value | humanizePercentage }} full",
        "At its limit the server refuses trajectories and the run ends; it can be resumed.",
    ),
    Alert(
        "RestorlRatioOff",
        _by_run("ratio_first_deviation"),
        f"> {_by_run('clip')}",
        "0m",
        "warning",
        "Run {{ $labels.run }}: ratios at first replay are off 1 by {{ $value }}",
        "Before any update actors and learner give the same decision log-probs that differ by more than "
        "objective.clip: clipping cuts noise, and the gradient is of another policy.",
    ),
)


def document(page: str = PAGE) -> dict[str, Any]:
    """A file of rules for Prometheus, and the `spec` of KubeRay's PrometheusRule."""
    return {"groups": [{"name": GROUP, "rules": [alert.document(page) for alert in ALERTS]}]}
