"""Does everything that is watched have a figure? A real Prometheus scrapes a real run: python -m benchmarks.watching

It needs the programs `prometheus` and `promtool` (Debian's package prometheus has both), on the PATH or named by
--prometheus and --promtool, and takes some ten minutes. Nothing is downloaded.

1. The rules pass `promtool check rules`, and `promtool test rules` sees each alert fire where it should and only there.
2. A small run is started whose scorer has no score for some pictures, and one of its actors is killed: else failures
   would have nothing to show. `restorl watch install`, given twice, puts dashboard and rules beside Ray's own.
3. A Prometheus with Ray's own configuration scrapes it. Every expression of every panel must give figures, every
   expression of an alert must evaluate, and the figure that it looks at must be there. Without a GPU, panels of GPUs
   need only evaluate.
4. The run is stopped before its last iteration: the alert of a run that is gone must fire.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml

from benchmarks.report import RESULTS, write
from cluster.watch.install import RULES_FILE, render
from cluster.watch.names import shown
from cluster.watch.panels import DASHBOARD, RUNS
from cluster.watch.rules import ALERTS
from restoration.backbones.restormer import Restormer, RestormerConfig
from restoration.base_models.diffbir import build_small
from restoration.pretrain.vae import VaeRecipe, build_vae
from tests.system.conftest import write_pairs

ROOT = Path(__file__).resolve().parent.parent
UNIT_TESTS = ROOT / "tests" / "cluster" / "watch" / "alerts.test.yml"
CHOSEN = {"$run": ".*", "$node": ".*", "$role": ".*", "$window": "1m"}  # what Grafana would put there
MORE = 10  # iterations after that, so that the actor that took its place shows, too
START_S, FIGURES_S, END_S, ALERT_S, ANSWER_S = 600.0, 900.0, 180.0, 420.0, 20.0


def make_recipe(folder: Path) -> Path:
    """A model and pairs of a few kilobytes; far more iterations than will be made."""
    torch.manual_seed(0)
    vae = build_vae(VaeRecipe(channels=(8, 16), latent_channels=4, crop=32)).eval()
    cleaner = Restormer(RestormerConfig(dim=8, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1))
    build_small(vae, cleaner, channels=(16, 32), head_channels=16).save(folder / "model")
    write_pairs(folder / "pairs")
    recipe = {
        "name": "watched",
        "iterations": 100_000,
        "model": str(folder / "model"),
        "data": {"root": str(folder / "pairs")},
        "sampler": {"steps": 3},
        "rollout": {"images_per_batch": 2, "rollouts_per_image": 2, "crop": 32},
        "reward": {
            "scorer": "benchmarks.moody_scorer:MoodyContrast",
            "max_batch": 4,
            "num_cpus": 0.2,
            "terms": [{"name": "contrast"}, {"scorer": "psnr", "weight": 0.05}],
        },
        "optimiser": {"lr": 1e-3},
        "source": {"groups_per_step": 4, "max_staleness": 1, "timeout_s": 300},
        "learner": {"micro_batch": 8, "norms_every": 0},
        "ranks": {"num_cpus": 0.2},
        "actors": {"num_cpus": 0.2},
        "cluster": {"num_cpus": 2, "object_store_mb": 200},
        "evaluation": {"every": 5, "strips": 1, "batch": 3},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


def checked(promtool: str, folder: Path) -> dict[str, str]:
    """What promtool says of the rules; ends the program where it has something against them."""
    render(folder)
    shutil.copy(UNIT_TESTS, folder)
    told = {}
    for what, name in (("check", RULES_FILE), ("test", UNIT_TESTS.name)):
        done = subprocess.run([promtool, what, "rules", name], cwd=folder, capture_output=True, text=True, timeout=120)
        told[what] = " ".join((done.stdout + done.stderr).split())
        print(f"promtool {what} rules: {told[what]}", flush=True)
        if done.returncode:
            raise SystemExit(f"promtool {what} rules failed:\n{done.stdout}{done.stderr}")
    return told


@contextmanager
def program(command: list[str], log: Path, env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process of our own, which ends with the block, and its children with it."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=dict(env or os.environ), stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            family = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
            for child in family:
                try:
                    child.kill()
                except psutil.Error:
                    continue


def awaited(what: str, look: Callable[[], Any], limit_s: float, every_s: float = 1.0) -> Any:
    """The first answer of `look` that says something."""
    deadline = time.monotonic() + limit_s
    while not (found := look()):
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: not within {limit_s:g} s")
        time.sleep(every_s)
    return found


class Prometheus:
    """The answers of a running one."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def ask(self, path: str, **parameters: str) -> Any:
        """Raises:
        ValueError: it refuses the question; says why.
        OSError: nobody answers.
        """
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=ANSWER_S) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise ValueError(f"{path} {parameters}: {error.read().decode(errors='replace')}") from None

    def figures(self, expr: str) -> list[float]:
        """The values that an expression has now, but NaN."""
        values = [float(sample["value"][1]) for sample in self.ask("query", query=filled(expr))["result"]]
        return [value for value in values if value == value]

    def scrapes(self) -> bool:
        try:
            targets = self.ask("targets")["activeTargets"]
        except OSError:
            return False
        return bool(targets) and all(target["health"] == "up" for target in targets)

    def firing(self) -> dict[str, str]:
        """Alerts that fire -> their summaries."""
        found = (alert for alert in self.ask("alerts")["alerts"] if alert["state"] == "firing")
        return {alert["labels"]["alertname"]: alert["annotations"]["summary"] for alert in found}


def filled(expr: str) -> str:
    for name, value in CHOSEN.items():
        expr = expr.replace(name, value)
    return expr


def expected() -> dict[str, str]:
    """Every expression that must have figures on this machine, by what it is."""
    gpu = torch.cuda.is_available()
    found = {
        f"{panel.title} {n}": target.expr
        for panel in DASHBOARD.panels
        if gpu or panel.needs != "gpu"
        for n, target in enumerate(panel.targets)
    }
    return found | {alert.name: alert.left for alert in ALERTS}


def lacking(prometheus: Prometheus) -> list[str]:
    return [what for what, expr in expected().items() if not prometheus.figures(expr)]


def seen(prometheus: Prometheus) -> dict[str, Any]:
    """What every panel and alert, and every filter, shows just now."""
    panels = {
        panel.title: [
            {"expr": target.expr, "series": len(values := prometheus.figures(target.expr)), "values": values[:4]}
            for target in panel.targets
        ]
        for panel in DASHBOARD.panels
    }
    rules = {rule["name"]: rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]}
    alerts = {
        alert.name: {
            "expr": alert.expr,
            "left": prometheus.figures(alert.left)[:4],
            "beyond": len(prometheus.figures(alert.expr)),
            "health": rules[alert.name]["health"],
        }
        for alert in ALERTS
    }
    if bad := [name for name, found in alerts.items() if found["health"] != "ok"]:
        raise SystemExit(
            f"Prometheus can't evaluate {', '.join(bad)}: {[rules[name].get('lastError') for name in bad]}"
        )
    filters = {"run": RUNS, "instance": "ray_node_cpu_count"}
    values = {label: prometheus.ask(f"label/{label}/values", **{"match[]": of}) for label, of in filters.items()}
    return {"panels": panels, "alerts": alerts, "filters": values}


def rays_own(prometheus: Prometheus) -> list[str]:
    """The names of Ray's metrics that this run had."""
    return [n for n in prometheus.ask("label/__name__/values") if n.startswith("ray_") and "restorl" not in n]


def installed(metrics: Path) -> list[str]:
    """`restorl watch install`, twice; what it says the first time. The second time it must find all as it should be."""
    where = ["--prometheus", str(metrics / "prometheus"), "--grafana", str(metrics / "grafana" / "dashboards")]
    command = [sys.executable, "-m", "cluster.cli", "watch", "install", *where]
    first, second = (
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=120).stdout
        for _ in range(2)
    )
    if first.count("wrote: ") != 3 or second.count("is right: ") != 3:
        raise SystemExit(f"restorl watch install said {first!r}, then {second!r}")
    return [line.replace(str(metrics), "metrics") for line in first.splitlines()]


def kill_an_actor(run: subprocess.Popen[bytes]) -> bool:
    for process in psutil.Process(run.pid).children(recursive=True):
        try:
            if "RolloutActor" in " ".join(process.cmdline()):
                process.kill()
                return True
        except psutil.Error:
            continue
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prometheus", default="prometheus", help="the program, if it isn't on the PATH")
    parser.add_argument("--promtool", default="promtool")
    parser.add_argument("--port", type=int, default=19090, help="for Prometheus, on loopback")
    parser.add_argument("--out", type=Path, default=RESULTS / "watching.json")
    parser.add_argument("--names", type=Path, help="write the names of Ray's own metrics there")
    given = parser.parse_args()
    for name in ("prometheus", "promtool"):
        if shutil.which(getattr(given, name)) is None:
            raise SystemExit(f"{getattr(given, name)}: no such program; install Debian's prometheus, or give --{name}")
    with tempfile.TemporaryDirectory(prefix="restorl_watching_", dir="/tmp") as temporary:
        place = Path(temporary)
        result: dict[str, Any] = {"promtool": checked(given.promtool, place / "rules")}
        result |= watch(given, place)
    print(json.dumps(result["alerts"], indent=1))
    write(given.out, result)


def watch(given: argparse.Namespace, place: Path) -> dict[str, Any]:
    prometheus, log = Prometheus(given.port), place / "run.log"
    command = [sys.executable, "-m", "cluster.cli", "train", str(make_recipe(place)), "--run", str(place / "run")]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_PROMETHEUS_HOST": prometheus.url}
    with program(command, log, env) as run:

        def told(pattern: str) -> Any:
            if run.poll() is not None:
                raise SystemExit(f"the run ended with status {run.returncode}:\n{log.read_text(errors='replace')}")
            return re.search(pattern, log.read_text(errors="replace"))

        metrics = Path(awaited("logs", lambda: told(r"logs of its processes: (.+)"), START_S)[1]).parent / "metrics"
        awaited("Ray's dashboard", lambda: told(r"Ray dashboard: "), START_S)
        awaited("Ray's prometheus.yml", (metrics / "prometheus" / "prometheus.yml").is_file, START_S)
        awaited("Ray's Grafana dashboards", lambda: any((metrics / "grafana" / "dashboards").glob("train_*")), START_S)
        install = installed(metrics)
        config = metrics / "prometheus" / "prometheus.yml"
        options = [f"--config.file={config}", f"--storage.tsdb.path={place / 'tsdb'}"]
        options.append(f"--web.listen-address=127.0.0.1:{given.port}")
        with program([given.prometheus, *options], place / "prometheus.log"):
            awaited("a scrape", prometheus.scrapes, START_S)
            awaited("an iteration", lambda: told(r"iteration [1-9]"), START_S)

            def made() -> float:
                return max(prometheus.figures(shown("iteration")), default=0.0)

            enough = made() + MORE
            awaited("an actor to kill", lambda: kill_an_actor(run), 60)
            awaited("more iterations", lambda: told("") and made() >= enough, START_S)
            began, missing = time.monotonic(), lacking(prometheus)
            while missing and time.monotonic() - began < FIGURES_S:
                told("")
                time.sleep(5)
                if missing != (missing := lacking(prometheus)):
                    print(f"{time.monotonic() - began:.0f} s: without figures yet: {', '.join(missing)}", flush=True)
            found = seen(prometheus)
            if missing:
                raise SystemExit(f"no figures of {', '.join(missing)} within {FIGURES_S:g} s")
            names = rays_own(prometheus)
            firing = {"while it runs": prometheus.firing()}
            run.send_signal(signal.SIGINT)
            run.wait(END_S)
            gone = "RestorlRunGone"
            awaited(f"{gone} to fire", lambda: gone in prometheus.firing(), ALERT_S, 5.0)
            firing["after it was stopped"] = prometheus.firing()
    if given.names:
        given.names.write_text("\n".join(names) + "\n")
    version = subprocess.run([given.prometheus, "--version"], capture_output=True, text=True, check=True)
    return {
        "prometheus": (version.stdout + version.stderr).split("(")[0].strip(),
        "gpu": torch.cuda.is_available(),
        "install": install,
        **found,
        "firing": firing,
        "rays_own_names": len(names),
    }


if __name__ == "__main__":
    main()
