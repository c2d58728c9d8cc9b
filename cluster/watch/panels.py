"""What the dashboard shows; docs/watching.md says how to read it."""

from __future__ import annotations

from cluster.watch.dashboard import Dashboard, Panel, Row, Target, Variable
from cluster.watch.names import PREFIX, WINDOW, of_ray, of_serve, shown

ROLES = ("driver", "actor", "learner", "reward")
# Ray calls a process by its class, or by its class and what it does just then.
PROCESSES = {
    "actor": "~ray::RolloutActor.*",
    "learner": "~ray::(LearnerRank|RankProcess).*",
    "reward": "~ray::ServeReplica:.*",
}
QUANTILES = (0.5, 0.99)


def _rate(name: str, by: str, **labels: str) -> str:
    return f"sum by ({by}) (rate({shown(name, **labels)}[{WINDOW}]))"


def _last(name: str, by: str = "run", **labels: str) -> str:
    """Of a gauge of the driver: of two drivers of one run, one that was replaced and its successor, the higher."""
    return f"max by ({by}) ({shown(name, **labels)})"


def _total(name: str, by: str) -> str:
    """Counted since the start: a failure that happens once is no rate."""
    return f"sum by ({by}) ({shown(name)})"


def _quantiles(buckets: str, by: str, legend: str) -> tuple[Target, ...]:
    rate = f"sum by ({by}, le) (rate({buckets}[{WINDOW}]))"
    return tuple(Target(f"histogram_quantile({q:g}, {rate})", f"{legend} p{q * 100:g}") for q in QUANTILES)


def _of_processes(metric: str, factor: str = "") -> tuple[Target, ...]:
    return tuple(
        Target(f"sum by (instance) ({of_ray(metric, Component=process)}){factor}", f"{role} {{{{instance}}}}")
        for role, process in PROCESSES.items()
    )


RUN = Row(
    100,
    "Run",
    (
        Panel(
            "Iterations",
            "Optimiser steps taken, and of the whole run.",
            "short",
            (
                Target(_last("iteration"), "{{run}}"),
                Target(_last("iterations_wanted"), "{{run}} wanted"),
            ),
            least=0,
        ),
        Panel(
            "Iteration",
            "Seconds of the last iteration, evaluations beside it included.",
            "s",
            (Target(_last("iteration_seconds"), "{{run}}"),),
            least=0,
        ),
        Panel(
            "Since the last progress",
            "Seconds since a step or a call of an actor ended well. It grows where a run stands still.",
            "s",
            (Target(f"time() - {_last('progress_timestamp_seconds')}", "{{run}}"),),
            least=0,
        ),
    ),
)

THROUGHPUT = Row(
    200,
    "Throughput and overlap",
    (
        Panel(
            "Rollouts a second",
            "Published by actors and consumed by the learner; apart for long, the stream fills or runs dry.",
            "short",
            (Target(_rate("trajectories", "run, what"), "{{run}} {{what}}"),),
            least=0,
        ),
        Panel(
            "Passes of a phase, each minute",
            "Rollout batches, waits for their scores, waits of the learner, steps, publications.",
            "short",
            (Target(f"60 * {_rate('phase_passes', 'run, phase')}", "{{run}} {{phase}}"),),
            least=0,
        ),
        Panel(
            "Seconds of a pass",
            "Mean over the window, by phase.",
            "s",
            (
                Target(
                    f"{_rate('phase_busy_seconds', 'run, phase')} / {_rate('phase_passes', 'run, phase')}",
                    "{{run}} {{phase}}",
                ),
            ),
            least=0,
        ),
        Panel(
            "Passes under way",
            "How many of each phase go on at once, a mean. Their sum above 1 is overlap; learner_wait near 1 says that "
            "actors or rewards are the bottleneck, near 0 that the learner is.",
            "short",
            (Target(_rate("phase_busy_seconds", "run, phase"), "{{run}} {{phase}}"),),
            stack=True,
            least=0,
        ),
        Panel(
            "Overlap",
            "Share of the shorter of rolling out and learning that the other hid in the last iteration: 1 is all of "
            "it, 0 that one followed the other.",
            "percentunit",
            (Target(_last("overlap"), "{{run}}"),),
            least=0,
            most=1,
        ),
        Panel(
            "Slowest passes",
            "The 99th percentile of a pass, as far as the histogram's buckets tell.",
            "s",
            (
                Target(
                    f"histogram_quantile(0.99, {_rate('phase_seconds', 'run, phase, le')})",
                    "{{run}} {{phase}}",
                ),
            ),
            least=0,
        ),
    ),
)

STREAM = Row(
    300,
    "Stream and store",
    (
        Panel(
            "Groups",
            "Waiting in the stream, and admitted but not published yet.",
            "short",
            (
                Target(_last("queue_depth"), "{{run}} waiting"),
                Target(_last("in_flight"), "{{run}} in flight"),
            ),
            least=0,
        ),
        Panel(
            "Bytes waiting",
            "Payload in the stream, and store.max_bytes, at which publishers wait.",
            "bytes",
            (
                Target(_last("queue_bytes"), "{{run}} waiting"),
                Target(_last("queue_max_bytes"), "{{run}} limit"),
            ),
            least=0,
        ),
        Panel(
            "Store memory",
            "What the store's server uses, with ledger and everything of others, and its limit.",
            "bytes",
            (
                Target(_last("store_used_bytes"), "{{run}} used"),
                Target(_last("store_max_bytes"), "{{run}} limit"),
            ),
            least=0,
        ),
        Panel(
            "Staleness",
            "Weights versions between rollout and use, of the stalest group of each step.",
            "short",
            _quantiles(shown("staleness_versions"), "run", "{{run}}"),
            least=0,
        ),
        Panel(
            "Weights version",
            "Published last.",
            "short",
            (Target(_last("weights_version"), "{{run}}"),),
            least=0,
        ),
    ),
)

LEARNING = Row(
    400,
    "Reward and objective",
    (
        Panel("Reward", "Mean of the last batch.", "short", (Target(_last("reward_mean"), "{{run}}"),)),
        Panel(
            "Reward by term",
            "Mean score of each term in the last batch, before weights.",
            "short",
            (Target(_last("reward_term", "run, term"), "{{run}} {{term}}"),),
        ),
        Panel(
            "Ratio",
            "Probability ratio of the decisions of the last batch: mean, smallest, largest. The mean stays near 1.",
            "short",
            (Target(_last("ratio", "run, figure"), "{{run}} {{figure}}"),),
        ),
        Panel(
            "Ratio at first replay",
            "Largest |ratio - 1| before any update, which would be 0 if actors and learner computed alike, and "
            "objective.clip. Above it what is clipped is noise.",
            "short",
            (
                Target(_last("ratio_first_deviation"), "{{run}}"),
                Target(_last("clip"), "{{run}} clip"),
            ),
            least=0,
        ),
        Panel(
            "Clip fraction",
            "Share of the decisions whose ratio was clipped.",
            "percentunit",
            (Target(_last("clip_fraction"), "{{run}}"),),
            least=0,
        ),
    ),
)

_NOW, _BASE = (_last("heldout", "run, figure", who=who) for who in ("now", "base"))
HELDOUT = Row(
    500,
    "Held-out pictures",
    (
        Panel(
            "Held-out reward",
            "Mean of the last evaluation: of the base model, now, and of the averaged weights.",
            "short",
            (Target(_last("heldout", "run, who", figure="reward"), "{{run}} {{who}}"),),
        ),
        Panel(
            "Held-out PSNR",
            "The same.",
            "dB",
            (Target(_last("heldout", "run, who", figure="psnr"), "{{run}} {{who}}"),),
        ),
        Panel(
            "Change since the base model",
            "Every held-out figure, the last evaluation less the base model's.",
            "short",
            (Target(f"{_NOW} - {_BASE}", "{{run}} {{figure}}"),),
        ),
        Panel(
            "Figures that got worse",
            "Held-out figures that fell by more than two standard errors while the held-out reward rose by as much.",
            "short",
            (Target(_last("heldout_worse"), "{{run}}"),),
            kind="stat",
            least=0,
        ),
    ),
)

FAILURES = Row(
    600,
    "Failures, counted since the start",
    (
        Panel(
            "Rollouts dropped",
            "By reason: stale ones, and what was quarantined (docs/failures.md).",
            "short",
            (Target(_total("dropped_samples", "run, reason"), "{{run}} {{reason}}"),),
            least=0,
        ),
        Panel(
            "Calls given out again",
            "Calls of actors that failed, by reason.",
            "short",
            (Target(_total("call_failures", "run, reason"), "{{run}} {{reason}}"),),
            least=0,
        ),
        Panel(
            "Reward requests that failed for good",
            "As actors count them, by kind.",
            "short",
            (Target(_total("reward_request_failures", "run, kind"), "{{run}} {{kind}}"),),
            least=0,
        ),
        Panel(
            "Blocks without rewards",
            "As replicas of the reward service count them, before anything is repeated.",
            "short",
            (Target(_total("reward_failures", "run, scorer, kind"), "{{run}} {{scorer}} {{kind}}"),),
            least=0,
        ),
    ),
)

REWARDS = Row(
    700,
    "Reward service",
    (
        Panel(
            "Images scored a second",
            "By scorer.",
            "short",
            (Target(_rate("reward_images", "run, scorer"), "{{run}} {{scorer}}"),),
            least=0,
        ),
        Panel(
            "Fill of batches",
            "Images of a batch, by what it can hold. Low fill at a full queue is a scorer that gets small blocks.",
            "percentunit",
            _quantiles(shown("reward_fill"), "run, scorer", "{{run}} {{scorer}}"),
            least=0,
            most=1,
        ),
        Panel(
            "Wait of a block",
            "From its arrival at a replica to its batch.",
            "s",
            _quantiles(shown("reward_queue_seconds"), "run, scorer", "{{run}} {{scorer}}"),
            least=0,
        ),
        Panel(
            "Scorer time of a batch",
            "Without waiting.",
            "s",
            _quantiles(shown("reward_seconds"), "run, scorer", "{{run}} {{scorer}}"),
            least=0,
        ),
        Panel(
            "Images without an answer yet",
            "At all replicas: what autoscaling counts.",
            "short",
            (Target(_total("reward_ongoing_images", "run, scorer"), "{{run}} {{scorer}}"),),
            least=0,
        ),
        Panel(
            "Requests at replicas",
            "Serve's own count of what replicas work on.",
            "short",
            (
                Target(
                    f"sum by (application) ({of_serve('ray_serve_replica_processing_queries')})",
                    "{{application}}",
                ),
            ),
            least=0,
        ),
        Panel(
            "Requests that wait for a replica",
            "Serve's own count, at those who ask.",
            "short",
            (
                Target(
                    f"sum by (application) ({of_serve('ray_serve_deployment_queued_queries')})",
                    "{{application}}",
                ),
            ),
            least=0,
        ),
        Panel(
            "Latency of a request",
            "Serve's own, at the replica, with the wait for a batch.",
            "ms",
            _quantiles(of_serve("ray_serve_deployment_processing_latency_ms_bucket"), "application", "{{application}}"),
            least=0,
        ),
        Panel(
            "Replicas",
            "That are well.",
            "short",
            (
                Target(
                    f"sum by (application) ({of_serve('ray_serve_deployment_replica_healthy')})",
                    "{{application}}",
                ),
            ),
            least=0,
        ),
    ),
)

_MIB = " * 1048576"
HARDWARE = Row(
    800,
    "Hardware, by role and node (all runs of a cluster)",
    (
        Panel(
            "Cores by role",
            "Cores that the processes of a role keep busy.",
            "short",
            _of_processes("ray_component_cpu_percentage", " / 100"),
            stack=True,
            least=0,
        ),
        Panel(
            "Memory by role",
            "Of the host, not shared with other processes.",
            "bytes",
            _of_processes("ray_component_uss_bytes"),
            stack=True,
            least=0,
        ),
        Panel(
            "GPU use by role",
            "Percent of a GPU, added up over GPUs. In containers the driver may not tell which process it is: see the "
            "panels by node.",
            "percent",
            _of_processes("ray_component_gpu_percentage"),
            stack=True,
            least=0,
            needs="gpu",
        ),
        Panel(
            "GPU memory by role",
            "The same for memory.",
            "bytes",
            _of_processes("ray_component_gpu_memory_mb", _MIB),
            stack=True,
            least=0,
            needs="gpu",
        ),
        Panel(
            "GPU use by node",
            "Each GPU; ray_io_group is the node group of KubeRay, which is a role.",
            "percent",
            (
                Target(
                    f"sum by (ray_io_group, instance, GpuIndex) ({of_ray('ray_node_gpus_utilization')})",
                    "{{ray_io_group}} {{instance}} GPU {{GpuIndex}}",
                ),
            ),
            least=0,
            most=100,
            needs="gpu",
        ),
        Panel(
            "GPU memory by node",
            "Each GPU.",
            "bytes",
            (
                Target(
                    f"sum by (ray_io_group, instance, GpuIndex) ({of_ray('ray_node_gram_used')}){_MIB}",
                    "{{ray_io_group}} {{instance}} GPU {{GpuIndex}}",
                ),
            ),
            least=0,
            needs="gpu",
        ),
        Panel(
            "Object store",
            "Of Ray, by place: weights travel through it. SPILLED is memory that was short.",
            "bytes",
            (Target(f"sum by (Location) ({of_ray('ray_object_store_memory')})", "{{Location}}"),),
            least=0,
        ),
    ),
)

RUNS = f'{{__name__=~"{PREFIX}(iteration|reward_images_total)"}}'
VARIABLES = (
    Variable("run", "Run", query=f"label_values({RUNS}, run)"),
    Variable("node", "Node", query="label_values(ray_node_cpu_count, instance)"),
    Variable("role", "Role", values=ROLES),
    Variable("window", "Rates over", values=("5m", "1m", "15m", "1h"), every=False),
)
DASHBOARD = Dashboard(
    uid="restorl",
    title="RestoRL",
    variables=VARIABLES,
    rows=(RUN, THROUGHPUT, STREAM, LEARNING, HELDOUT, FAILURES, REWARDS, HARDWARE),
    annotations=(Target('ALERTS{alertname=~"Restorl.+",alertstate="firing"}', "RestoRL's alerts"),),
)
