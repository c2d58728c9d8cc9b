"""The same for a cluster of KubeRay: documents for the Prometheus operator and for Grafana's sidecar."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cluster.watch import rules
from cluster.watch.panels import DASHBOARD

# KubeRay's label -> label of every sample. Prometheus' operator names pod and namespace by itself.
CARRIED = {
    "ray_io_cluster": "ray.io/cluster",
    "ray_io_group": "ray.io/group",
    "ray_io_node_type": "ray.io/node-type",
}
METRICS_PORT = "metrics"  # as KubeRay names the port of every Ray container, 8080 unless the manifest says otherwise
INTERVAL = "15s"
DASHBOARD_FILE = "restorl_grafana_dashboard.json"


def documents(
    cluster: str = "",
    namespace: str = "",
    labels: Mapping[str, str] | None = None,
    page: str = rules.PAGE,
    name: str = "restorl",
) -> list[dict[str, Any]]:
    """PodMonitor and PrometheusRule: `kubectl apply -f` beside the RayCluster.

    Every container of Ray must have a port that is named `metrics` (`METRICS_PORT`).

    Args:
        cluster: name of the RayCluster; empty: every one in the namespace, which a RayJob needs, as it makes new ones.
        namespace: of both documents and of the pods; empty: where they are applied.
        labels: that the operator's Prometheus selects monitors and rules by, such as {"release": "prometheus"}.
        page: address of docs/watching.md, for the alerts' runbooks.
    """
    pods: dict[str, Any] = {
        "matchExpressions": [{"key": "ray.io/node-type", "operator": "In", "values": ["head", "worker"]}]
    }
    if cluster:
        pods["matchLabels"] = {"ray.io/cluster": cluster}
    carried = [
        {"sourceLabels": [_meta(label)], "targetLabel": target, "action": "replace"}
        for target, label in CARRIED.items()
    ]
    endpoint = {"port": METRICS_PORT, "interval": INTERVAL, "relabelings": carried}
    monitor: dict[str, Any] = {"selector": pods, "podMetricsEndpoints": [endpoint]}
    if namespace:
        monitor["namespaceSelector"] = {"matchNames": [namespace]}
    of = _metadata(name, namespace, labels)
    return [
        {"apiVersion": "monitoring.coreos.com/v1", "kind": "PodMonitor", "metadata": of, "spec": monitor},
        {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "PrometheusRule",
            "metadata": _metadata(name, namespace, labels),
            "spec": rules.document(page),
        },
    ]


def dashboard(namespace: str = "", name: str = "restorl-dashboard") -> dict[str, Any]:
    """A ConfigMap that the sidecar of Grafana's Helm charts loads, which looks for the label grafana_dashboard."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(name, namespace, {"grafana_dashboard": "1"}),
        "data": {DASHBOARD_FILE: json.dumps(DASHBOARD.document())},
    }


def _metadata(name: str, namespace: str, labels: Mapping[str, str] | None) -> dict[str, Any]:
    made: dict[str, Any] = {"name": name}
    if namespace:
        made["namespace"] = namespace
    return made | ({"labels": dict(labels)} if labels else {})


def _meta(label: str) -> str:
    """What Prometheus calls a pod's label before it is scraped."""
    return "__meta_kubernetes_pod_label_" + "".join(c if c.isalnum() else "_" for c in label)
