"""Selectors of PromQL: metrics by the names that Ray exports, with the filters of the dashboard or without."""

from __future__ import annotations

from cluster.metrics import METRICS

PREFIX = "ray_restorl_"
SUFFIX = {"counter": "_total", "gauge": "", "histogram": "_bucket"}
# Of a replica of the reward service, which registers its metrics itself (reward_service/replica.py).
REWARD = {
    "reward_images": "counter",
    "reward_batch_images": "histogram",
    "reward_fill": "histogram",
    "reward_queue_seconds": "histogram",
    "reward_seconds": "histogram",
    "reward_failures": "counter",
    "reward_ongoing_images": "gauge",
}
WINDOW = "$window"  # of the dashboard: what rates are means over
FILTERS = {"run": "~$run", "instance": "~$node", "role": "~$role"}  # of the dashboard
# The services of a run, one of each term, and those that stand alone, which bear the name that was given to them.
SERVICES = {"application": "~(reward-)?($run)([.]term[.].+)?", "instance": "~$node"}


def exported(name: str) -> str:
    """What Ray calls a metric of ours; of a histogram its buckets.

    Raises:
        KeyError: no process exports one of that name.
    """
    kind = METRICS[name][0] if name in METRICS else REWARD[name]
    return PREFIX + name + SUFFIX[kind]


def shown(name: str, **labels: str) -> str:
    """A metric of ours as a panel selects it, by the dashboard's filters."""
    return selector(exported(name), **FILTERS, **labels)


def watched(name: str, **labels: str) -> str:
    """A metric of ours as an alert selects it: of every run."""
    return selector(exported(name), **labels)


def of_serve(name: str, **labels: str) -> str:
    """A metric of Ray Serve, by the filters of the dashboard that it knows."""
    return selector(name, **SERVICES, **labels)


def of_ray(name: str, **labels: str) -> str:
    """A metric of Ray about a node or its processes, which know nothing of runs."""
    return selector(name, instance=FILTERS["instance"], **labels)


def selector(metric: str, **labels: str) -> str:
    """`metric{label="value",...}`; a value that begins with ~ is a regular expression."""
    terms = [f'{k}=~"{v[1:]}"' if v.startswith("~") else f'{k}="{v}"' for k, v in labels.items()]
    return metric + (f"{{{','.join(terms)}}}" if terms else "")
