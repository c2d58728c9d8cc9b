"""`restorl reward serve|status|scale|stop`: reward services of runs, and those that stand alone on a cluster."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.cli.errors import UserMistake, as_mistake, guarded

if TYPE_CHECKING:
    from cluster.jobs import Connection
    from reward_service.settings import RewardSettings

reward_app = typer.Typer(help="Look after reward services.", no_args_is_help=True)

Run = Annotated[Path | None, typer.Option(help="Folder of the run; else give the service's name.")]
Address = Annotated[str, typer.Option(help="Ray cluster, when no --run is given: auto, host:port or ray://host:port.")]


@reward_app.command("serve")
@guarded
def serve(
    what: Annotated[
        list[str],
        typer.Argument(
            help="Scorers (settings behind commas), or a recipe whose `reward` is served; and reward settings.",
            metavar="CONFIG|SCORER... [KEY=VALUE]...",
        ),
    ],
    name: Annotated[str | None, typer.Option(help="Of the service; default: the scorer's.")] = None,
    address: Address = "auto",
) -> None:
    """Serve scorers on a cluster until `restorl reward stop`: several runs share them by `reward.app=NAME`.

    Once more with other settings, it changes the running service, replica by replica.

    restorl reward serve deqa,weights=weights/DeQA-Score-Mix3 num_gpus=1 min_replicas=1 max_replicas=4 --name iqa

    restorl reward serve configs/rewards/deqa.yaml --address 10.0.0.1:6379
    """
    from cluster.jobs import ClusterSettings, connect

    with as_mistake(ValueError):
        services = named_services(what, name)
    if address == "local":
        raise UserMistake("--address local would end with this command; start a cluster (`ray start --head`) first")
    with connect(ClusterSettings(address)):
        from reward_service import standing

        for service, settings in services.items():
            try:
                app = standing.stand(settings, service)
            except KeyboardInterrupt as interrupt:
                raise KeyboardInterrupt(
                    f"stopped; {service} is taken back, or goes back to the settings it had: look at "
                    f"`restorl reward status {service}`"
                ) from interrupt
            print(
                f"{service}: {app.scorer}, version {app.version}\n"
                f"  a run uses it by reward.app={service} reward.scorer={settings.scorer}; it ends by: "
                f"restorl reward stop {service}"
            )


@reward_app.command("status")
@guarded
def status(
    name: Annotated[str | None, typer.Argument(help="Of one service; else all, or those of --run.")] = None,
    run: Run = None,
    address: Address = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """What reward services do: replicas, images a second, fill of batches, p50 and p99 of waiting and scoring.

    restorl reward status

    restorl reward status --run runs/demo
    """
    if name is not None and run is not None:
        raise UserMistake(f"which service? give either its name, {name}, or --run RUN")
    with _connected(run, address):
        from reward_service import standing
        from reward_service.settings import terms_of

        wanted = standing.names() if name is None else [_known(name)]
        if run is not None:
            own = _app_of(run)
            wanted = [*terms_of(own, wanted).values()] or [own]
        found = [standing.overview(service) for service in wanted]
    if as_json:
        print(json.dumps(found))
    else:
        print("\n".join(map(told, found)) or "no reward service runs there")
    raise typer.Exit(int(any(service["status"] != "RUNNING" for service in found)))


@reward_app.command("scale")
@guarded
def scale(
    replicas: Annotated[int | None, typer.Argument(help="Replicas wanted; else give --min and --max.", min=1)] = None,
    least: Annotated[int | None, typer.Option("--min", help="As many as the load asks for, at least.", min=1)] = None,
    most: Annotated[int | None, typer.Option("--max", help="And at most.", min=1)] = None,
    run: Run = None,
    address: Address = "auto",
    app_name: Annotated[str | None, typer.Option("--app", help="Name of the service at --address.")] = None,
    term: Annotated[str | None, typer.Option(help="Of the run's reward, where several have a service.")] = None,
) -> None:
    """Change the number of replicas of a service, while runs use it. Interrupted, it is as before.

    restorl reward scale 3 --run runs/demo

    restorl reward scale 3 --run runs/mine --term deqa

    restorl reward scale --min 1 --max 4 --address 10.0.0.1:6379 --app iqa
    """
    if (run is None) == (app_name is None):
        raise UserMistake("which service? give either --run RUN, or --app NAME with --address")
    if (replicas is None) == (least is None or most is None) or (least is None) != (most is None):
        raise UserMistake("how many? give either a number of replicas, or both --min and --max")
    with _connected(run, address):
        from reward_service.rescaling import rescale

        wanted = _service_of(run, term) if app_name is None else _known(app_name)
        with as_mistake(ValueError):
            rescale(wanted, replicas, least, most)
    print(f"reward replicas: {replicas if replicas is not None else f'{least} to {most}'}")


@reward_app.command("stop")
@guarded
def stop(
    names: Annotated[list[str], typer.Argument(help="Of services that stand alone.", metavar="NAME...")],
    address: Address = "auto",
) -> None:
    """End services that stand alone. That of a run ends with its run.

    restorl reward stop iqa
    """
    with _connected(None, address):
        from reward_service import standing
        from reward_service.errors import RewardUnavailable

        left: list[str] = []
        for name in dict.fromkeys(names):
            try:
                standing.stop(name)
                print(f"{name}: stopped")
            except RewardUnavailable as error:
                left.append(str(error))
        if left:
            raise RewardUnavailable("\n".join(left))


def named_services(words: Sequence[str], name: str | None) -> dict[str, RewardSettings]:
    """Name -> settings of the services that are meant.

    Raises:
        ValueError: words that make no service.
    """
    from dataclasses import asdict

    from cluster.config.configure import ConfigError, build_config, parse_override, split_at_commas, value_of
    from cluster.config.reward import RunReward
    from reward_service.scorers import target_of
    from reward_service.settings import RewardSettings, check_name

    given: dict[str, Any] = {}
    sections: list[dict[str, Any]] = []
    for word in words:
        first, *behind = split_at_commas(word)
        if "=" in first:
            (key, *inner), value = parse_override(word)
            if inner:
                given.setdefault(key, {})[".".join(inner)] = value
            else:
                given[key] = value
        elif word.endswith((".yaml", ".yml")):
            section = value_of("reward", Path(word))
            if not isinstance(section, dict):
                raise ConfigError.of(f"{word}: no `reward` section; name a scorer instead")
            reward = build_config(RunReward, section)
            sections += [asdict(settings) for settings in reward.services.values()]
        else:
            params = {".".join(key): value for key, value in map(parse_override, behind)}
            sections.append({"scorer": first, "params": params})
    if not sections:
        raise UserMistake("which scorer? restorl reward serve SCORER..., such as deqa,weights=FOLDER, or a recipe")
    found: dict[str, RewardSettings] = {}
    for section in sections:
        params = {**section.get("params", {}), **given.get("params", {})}
        # A replica works in another folder.
        params |= {k: str(Path(v).absolute()) for k, v in params.items() if isinstance(v, str) and Path(v).exists()}
        settings = build_config(RewardSettings, {**section, **given, "params": params, "app": None})
        target_of(settings.scorer)  # there is such a one
        service = _name_of(settings.scorer, name, len(sections) > 1)
        check_name(service)
        if service in found:
            raise UserMistake(f"two services named {service}; serve them one by one, each with a --name of its own")
        found[service] = settings
    return found


def _name_of(scorer: str, name: str | None, several: bool) -> str:
    """Of the service of a scorer."""
    if name is not None and not several:
        return name
    if "//" in scorer:
        raise UserMistake(f"{scorer}: a server's address is no name of a service; serve it by itself, with --name NAME")
    plain = scorer.rpartition(":")[2]
    return plain if name is None else f"{name}-{plain}"


def told(service: dict[str, Any]) -> str:
    """Some lines for people about what `standing.overview` found."""
    whose = f"stands alone, started by {service['owner']}" if service["stands_alone"] else f"of {service['owner']}"
    replicas = ", ".join(f"{count} {state.lower()}" for state, count in service["replicas"].items()) or "no replicas"
    lines = [f"{service['app']}: {service['status']}, {replicas}" + (f"; {whose}" if service["owner"] else "")]
    if service["message"]:
        lines.append(f"  {service['message']}")
    if "scorer" not in service:
        return "\n".join(lines)
    settings = service["settings"]
    if settings["min_replicas"] is not None:
        lines.append(f"  scales itself between {settings['min_replicas']} and {settings['max_replicas']} replicas")
    fill = "no batch yet" if service["fill"] is None else f"batches {100 * service['fill']:.0f} % full"
    lines += [
        f"  {service['scorer']}",
        f"  {service['images']} images, {service['images_per_s']:.1f} a second in the last minute, "
        f"{service['ongoing']} under way; {fill}",
    ]
    if service["scorer_p50_s"] is not None:
        times = ("queue_p50_s", "queue_p99_s", "scorer_p50_s", "scorer_p99_s")
        words = "  a block waits {:.3f} s (p50), {:.3f} s (p99); a batch takes {:.3f} s, {:.3f} s"
        lines.append(words.format(*(service[name] or 0.0 for name in times)))
    if service["failures"]:
        lines.append("  without rewards: " + ", ".join(f"{n} {kind}" for kind, n in service["failures"].items()))
    lines += [f"  memory allows {n} images of {size} at once" for size, n in service["limits"].items()]
    return "\n".join(lines)


def _connected(run: Path | None, address: str) -> Connection:
    from ray import serve

    from cluster.jobs import ClusterSettings, attach, connect

    logging.getLogger(serve.__name__).setLevel(logging.WARNING)  # after it has set one itself
    return attach(run) if run is not None else connect(ClusterSettings(address))


def _known(name: str) -> str:
    """The name, if there is such a service."""
    from reward_service import standing

    if name not in (there := standing.names()):
        raise UserMistake(f"no reward service {name!r}; there are: {', '.join(there) or 'none'}")
    return name


def _service_of(run: Path | None, term: str | None) -> str:
    """The service of a run, or of one of its terms."""
    from reward_service import standing
    from reward_service.settings import terms_of

    own = _app_of(run)
    terms = terms_of(own, standing.names())
    if term is None and len(terms) == 1:
        return next(iter(terms.values()))
    if term in terms:
        return terms[term]
    there = ", ".join(sorted(terms)) or "none"
    raise UserMistake(f"{run}: which service? its reward has these terms with one: {there}; name it by --term")


def _app_of(run: Path | None) -> str:
    """The service of the run in that folder."""
    from reward_service.settings import reward_app_name

    assert run is not None
    try:
        return reward_app_name(str(json.loads((run / "run.json").read_text(encoding="utf-8"))["run_id"]))
    except (FileNotFoundError, NotADirectoryError):
        raise UserMistake(f"{run}: no run.json, so no run is there") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserMistake(f"{run / 'run.json'} can't be read ({error})") from error
