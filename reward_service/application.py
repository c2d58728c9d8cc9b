"""What Ray Serve is told of a service: its replicas, their number, and how much may wait."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from typing import Any, cast

from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from reward_service import ownership, scaling
from reward_service.replica import RewardReplica
from reward_service.settings import RewardSettings, check_name

DRAIN_S, DRAIN_SCALED_S = 5.0, 30.0  # a replica that goes may still answer; one that goes often should
LONGEST_LOOK_S = 10.0


def application(settings: RewardSettings) -> serve.Application:
    """Running replicas stay when it replaces one of the same `code_version`."""
    # The decorator made a Deployment of the class, which its type hint hides.
    deployment = cast(serve.Deployment, RewardReplica).options(
        **_number(settings),
        user_config=_plain(settings),
        max_ongoing_requests=settings.queue,
        max_queued_requests=settings.queue,
        health_check_period_s=2,
        health_check_timeout_s=settings.health_check_timeout_s,
        graceful_shutdown_timeout_s=DRAIN_SCALED_S if settings.autoscales else DRAIN_S,
        max_constructor_retry_count=1,  # what a constructor refuses once, it refuses again
        ray_actor_options={
            "num_cpus": settings.num_cpus,
            "num_gpus": settings.num_gpus,
            "resources": settings.resources,
        },
    )
    # Serve replaces running replicas when an application is deployed under another version, and draws a random
    # one when none is set; there is no public way left to set it.
    if hasattr(deployment, "_version"):
        deployment._version = settings.code_version
    return deployment.bind(asdict(settings))


def standing(arguments: dict[str, Any]) -> serve.Application:
    """For configurations of Serve (`import_path`), as KubeRay deploys them: a service that stands alone.

    Args:
        arguments: `name`, which is that of the application, and what RewardSettings take.

    Raises:
        ValueError: no name for it, or no settings.
        RewardUnavailable: the name belongs to a run that is still there.
    """
    settings = {key: value for key, value in arguments.items() if key != "name"}
    name = str(arguments.get("name", ""))
    check_name(name)
    app = application(RewardSettings(**settings))
    ownership.claim(name, stands_alone=True)  # else its replicas would take it for one whose run has ended
    return app


def _number(settings: RewardSettings) -> dict[str, Any]:
    if settings.min_replicas is None or settings.max_replicas is None:
        return {"num_replicas": settings.replicas}
    # Serve looks back over the time that more must be wanted for, and is told a few times within it.
    look_s = max(settings.scale_up_s, 2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of metrics_interval_s, which has no substitute yet
        config = AutoscalingConfig(
            min_replicas=settings.min_replicas,
            max_replicas=settings.max_replicas,
            target_ongoing_requests=float(settings.target_images),  # of images: see the policy
            upscale_delay_s=settings.scale_up_s,
            downscale_delay_s=settings.scale_down_s,
            look_back_period_s=look_s,
            metrics_interval_s=min(look_s / 4, LONGEST_LOOK_S),
            policy=AutoscalingPolicy(policy_function=scaling.wanted_replicas),
        )
    return {"autoscaling_config": config}


def _plain(settings: RewardSettings) -> dict[str, Any]:
    """As JSON has it, which Serve wants; with the same `code_version`."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(settings), default=str))
    return found
