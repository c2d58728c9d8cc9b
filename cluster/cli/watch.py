"""`restorl watch install|render`: a dashboard for Grafana and alerts for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.errors import UserMistake, as_mistake, guarded

if TYPE_CHECKING:
    from cluster.watch.install import Written

watch_app = typer.Typer(help="Watch runs with Prometheus and Grafana.", no_args_is_help=True)

Page = Annotated[str, typer.Option(help="Address of docs/watching.md, which the alerts' runbooks link to.")]


@watch_app.command("install")
@guarded
def install(
    prometheus: Annotated[Path | None, typer.Option(help="Folder with prometheus.yml; default: Ray's own.")] = None,
    grafana: Annotated[
        Path | None, typer.Option(help="Folder of dashboards that Grafana reads; default: Ray's own.")
    ] = None,
    page: Page = "docs/watching.md",
) -> None:
    """Put dashboard and alerts beside Ray's own, on the head of the cluster; or only where you say.

    What is there already and right is left alone, so that it may be given again, as it must be after Ray's dashboard
    has started anew.

    restorl watch install

    restorl watch install --prometheus /etc/prometheus --grafana /var/lib/grafana/dashboards
    """
    from cluster.watch.install import PROMETHEUS_FILE, install_dashboard, install_rules, places_of_ray

    with as_mistake(ValueError):
        rays_own = prometheus is None and grafana is None
        if rays_own:
            places = places_of_ray()
            prometheus, grafana = places.prometheus, places.grafana
        if prometheus is not None:
            _tell(install_rules(prometheus, page))
        if grafana is not None:
            _tell(install_dashboard(grafana))
    if prometheus is not None:
        config = prometheus.resolve() / PROMETHEUS_FILE
        print(
            f"Prometheus: start it by `prometheus --config.file={config}`; one that runs reads it anew at a SIGHUP "
            "(or POST /-/reload with --web.enable-lifecycle)"
        )
    if grafana is not None:
        print("Grafana: it finds the dashboard by itself, under RestoRL")
    if rays_own:
        print("Ray writes these folders anew whenever its dashboard starts: give this command again then")


@watch_app.command("render")
@guarded
def render(
    out: Annotated[Path, typer.Option(help="Folder for the files; is made.")],
    cluster: Annotated[str, typer.Option(help="Name of the RayCluster; default: all of the namespace.")] = "",
    namespace: Annotated[str, typer.Option(help="Of Kubernetes.")] = "",
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="Such as release=prometheus: what the operator's Prometheus selects by.", metavar="KEY=VALUE"
        ),
    ] = None,
    page: Page = "docs/watching.md",
) -> None:
    """Write the files only: dashboard, rules, and both as documents for a cluster of KubeRay.

    restorl watch render --out watching

    restorl watch render --out watching --namespace ray --label release=prometheus
    """
    from cluster.watch.install import render as written

    pairs = [text.partition("=") for text in label or ()]
    for key, equals, value in pairs:
        if not key or not equals:
            raise UserMistake(f"--label {key}{equals}{value}: give KEY=VALUE")
    _tell(written(out, cluster, namespace, {key: value for key, _, value in pairs}, page))


def _tell(files: Iterable[Written]) -> None:
    for file in files:
        print(f"{'wrote' if file.changed else 'is right'}: {file.path}")
