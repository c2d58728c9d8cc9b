"""How many replicas the images under way want: the policy that Ray Serve's autoscaler asks. No Ray in here.

Serve's own policy counts requests, which are blocks of very different size. It sends this module's text to its
controller, so that nothing of the house may be imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

IMAGES, REQUESTS = "images", "requests"
"""What a replica reports: images, and blocks, that it has not answered."""


class Context(Protocol):
    """The part of Serve's AutoscalingContext that counts here."""

    current_num_replicas: int
    target_num_replicas: int
    config: Any

    @property
    def aggregated_metrics(self) -> Mapping[str, Mapping[Any, float]] | None: ...

    @property
    def total_queued_requests(self) -> float: ...


def wanted_replicas(context: Context) -> tuple[float, dict[str, Any]]:
    """Replicas for the images that were under way on average, each with `target_ongoing_requests` images.

    Requests that no replica has taken yet are counted as large as those that were taken are on average. Serve holds
    the result between the least and the most, and waits before it follows it.
    """
    if not context.current_num_replicas:
        return float(context.target_num_replicas), {}
    reported = context.aggregated_metrics or {}
    images = sum(reported.get(IMAGES, {}).values())
    requests = sum(reported.get(REQUESTS, {}).values())
    size = images / requests if requests > 0 else 1.0
    queued = max(context.total_queued_requests, 0.0)
    return (images + queued * size) / float(context.config.target_ongoing_requests), {}
