"""What `restorl train --dry-run` prints: the resolved plan of a run, before anything of it starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cluster.cli.output import table_lines
from cluster.config.recipe import RunConfig
from cluster.run.checks.resources import demands
from cluster.run.checks.roles import NumberType
from cluster.run.flow import GPU, Flow, Size, flow, rolled_sizes
from cluster.run.memory_plan import CONTEXT, RoleMemory, memory_plan
from cluster.run.reward_memory import reward_memory
from restoration.base_models import ModelFacts

GIB = 2**30


def plan_of(
    config: RunConfig,
    facts: ModelFacts,
    train: Sequence[Size],
    heldout: Sequence[Size],
    types: Mapping[str, NumberType],
    assumed: bool = False,
) -> tuple[str, list[str]]:
    """The plan of a run whose configuration was checked, and warnings about its memory.

    Args:
        config: with what each `auto` of a number type means here (`checks.roles.as_here`).
        train, heldout: sizes of the pictures; `assumed` ones are not counted.
        types: of `roles.number_types`, to be shown.
    """
    schedule = facts.schedule(config.sampler)
    largest = rolled_sizes(config, train, facts.size_multiple)[-1]
    moved = flow(config, largest, facts.vae_factor, facts.latent_channels, len(schedule.decisions))
    services = {config.reward.key(term): of for term, of in config.reward.services.items() if of.app is None}
    replicas = [reward_memory(of, key) for key, of in services.items()]
    roles = [*memory_plan(config, facts, moved, heldout), *filter(None, replicas)]
    count = "of the size of a crop" if assumed else f"{len(train)} to train on, {len(heldout)} held out"
    parts = [[*_model(config, facts, moved, count), _types(types)], _roles(config), _flow(config, moved)]
    text = "\n\n".join("\n".join(lines) for lines in (*parts, *map(_memory, roles), [NOTE]))
    shares = {"actor": config.actors.num_gpus, "rank": config.ranks.num_gpus}
    shares |= {key: of.num_gpus for key, of in services.items()}
    return text, [w for role in roles if (w := too_large(role, shares[role.role]))]


NOTE = (
    "Memory of one process, an estimate from shapes: weights exactly, activations as PyTorch's operations hold them\n"
    f"at the worst moment, with fused attention. Not in it: CUDA itself (about {CONTEXT / GIB:g} GiB), workspaces,\n"
    f"fragmentation. A GPU of 80 GB has {GPU / GIB:.1f} GiB."
)


def _model(config: RunConfig, facts: ModelFacts, moved: Flow, pictures: str) -> list[str]:
    sampler, own = config.sampler, facts.sampler
    told = (
        f"{sampler.steps} steps ({moved.decisions} decisions), {sampler.spacing}, guidance {sampler.guidance_scale:g}"
    )
    theirs = f"{own.steps} steps, {own.spacing}, guidance {own.guidance_scale:g}"
    height, width = moved.picture
    multiple = facts.size_multiple
    rows = config.rollout.rollouts_per_image
    return [
        f"model: {config.model} ({facts.kind}), latents {list(moved.latent)}, sides in multiples of {multiple}",
        f"chain: {told}; by itself it restores with {theirs}",
        f"pictures: {pictures}; crops of {width}x{height}, {rows} rollouts each",
        f"training: {config.iterations} iterations of {config.source.groups_per_step} pictures "
        f"({config.source.groups_per_step * rows} chains), {config.adapt.mode}"
        + (f" of rank {config.adapt.rank}" if config.adapt.mode == "lora" else ""),
    ]


def _types(types: Mapping[str, NumberType]) -> str:
    """Settings by what they mean, so that one sees what `auto` is on this machine."""
    keys: dict[str, list[str]] = {}
    for key, found in types.items():
        keys.setdefault(str(found), []).append(key)
    return "number types: " + "; ".join(f"{meaning} {', '.join(named)}" for meaning, named in keys.items())


def _roles(config: RunConfig) -> list[str]:
    rows = []
    for demand in demands(config):
        others = {k: v for k, v in demand.each.items() if k not in ("CPU", "GPU")}
        amounts = [f"{demand.count * demand.each.get(name, 0):g}" for name in ("CPU", "GPU")]
        device = "GPU" if demand.each.get("GPU") else "CPU"
        rows.append(
            [demand.key, str(demand.count), *amounts, ", ".join(f"{k} {v:g}" for k, v in others.items()), device]
        )
    return table_lines(["role", "processes", "CPUs", "GPUs", "others", "computes on"], rows)


def _flow(config: RunConfig, moved: Flow) -> list[str]:
    where = "embedded" if config.store.is_embedded else "external"
    return [
        f"in flight: at most {moved.groups} groups, {moved.items} rollout batches, over {config.actors.count} actors",
        f"store ({where}): {moved.group_bytes / 2**20:.2f} MiB a group, at most {moved.held_groups} groups = "
        f"{moved.held_bytes / 2**20:.0f} of {config.store.max_bytes / 2**20:.0f} MiB; a checkpoint every "
        f"{config.checkpoint_every} iterations",
        f"reward: {moved.scored} images a group, {moved.scored * config.source.groups_per_step} an iteration",
    ]


def too_large(role: RoleMemory, share: float) -> str:
    """A warning where a role needs more than `share` of a GPU of 80 GB, or nothing."""
    room = min(share, 1.0) * GPU
    if not share or role.device_bytes + CONTEXT <= room:
        return ""
    worst = max(role.passes, key=lambda name: role.passes[name])
    return (
        f"{role.role}: about {_gib(role.device_bytes + CONTEXT)} GiB at its worst ({worst}), and num_gpus={share:g} "
        f"of an 80 GB GPU is {_gib(room)}; lower the batches or crops of that, or reserve more"
    )


def _memory(role: RoleMemory) -> list[str]:
    worst = max(role.passes, key=lambda name: role.passes[name], default="")
    rows = [[name, _gib(value)] for name, value in role.kept.items() if value]
    rows += [[f"{name}{' (the worst)' if name == worst else ''}", _gib(value)] for name, value in role.passes.items()]
    rows.append(["device, at most", _gib(role.device_bytes)])
    rows += [[f"host: {name}", _gib(value)] for name, value in role.host.items() if value]
    return table_lines([role.role, "GiB"], rows)


def _gib(count: float) -> str:
    return f"{count / GIB:.2f}"
