"""A model and pairs of a few kilobytes, and runs of `restorl train` in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml

from restoration.backbones.restormer import Restormer, RestormerConfig
from restoration.base_models.diffbir import build_small
from restoration.images import write_image
from restoration.pretrain.vae import VaeRecipe, build_vae

ROOT = Path(__file__).parents[2]
LIMIT_S = 400
SYNCHRONOUS = ("optimiser.lr=1e-4", "optimiser.ema=0.5", "sampler.colour_fix=wavelet")  # with staleness 0, one actor


def write_pairs(folder: Path, side: int = 32) -> None:
    """{train,test}/{input,target} of coarse patterns, darkened."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 3)):
        for n in range(count):
            gt = np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((side // 4, side // 4, 1))).astype(np.uint8)
            for kind, image in (("target", gt), ("input", gt // 3)):
                (folder / split / kind).mkdir(parents=True, exist_ok=True)
                write_image(folder / split / kind / f"{n}.png", image)


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/, pairs/{train,test}/{input,target} and recipe.yaml of a run that takes seconds."""
    folder = tmp_path_factory.mktemp("system")
    torch.manual_seed(0)
    vae = build_vae(VaeRecipe(channels=(8, 16), latent_channels=4, crop=32)).eval()
    cleaner = Restormer(RestormerConfig(dim=8, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1))
    build_small(vae, cleaner, channels=(16, 32), head_channels=16).save(folder / "model")
    write_pairs(folder / "pairs")
    recipe = {
        "name": "system",
        "iterations": 4,
        "model": str(folder / "model"),
        "data": {"root": str(folder / "pairs")},
        "sampler": {"steps": 3},
        "rollout": {"images_per_batch": 2, "rollouts_per_image": 2, "crop": 32},
        "reward": {
            "scorer": "tests.system.scorers:Contrast",
            "max_batch": 4,
            "num_cpus": 0.2,
            "terms": [{"name": "contrast"}, {"scorer": "psnr", "weight": 0.05}],
        },
        "optimiser": {"lr": 1e-3},
        "source": {"groups_per_step": 4, "max_staleness": 0, "timeout_s": 200},
        "learner": {"micro_batch": 8, "norms_every": 0},
        "ranks": {"num_cpus": 0.2},
        "actors": {"num_cpus": 0.2},
        "cluster": {"num_cpus": 2, "dashboard": False, "object_store_mb": 200},
        "evaluation": {"every": 2, "strips": 1, "batch": 3},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@dataclass
class Run:
    """`restorl train` in a process of its own."""

    folder: Path
    process: subprocess.Popen[bytes]
    log: Path
    started: float = field(default_factory=time.monotonic)

    def wait(self, timeout_s: float = LIMIT_S) -> int:
        return self.process.wait(timeout_s)

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def iteration(self) -> int:
        path = self.folder / "metrics.jsonl"
        return path.read_text().count('"kind": "train"') if path.exists() else 0

    def wait_for_iteration(self, iteration: int, timeout_s: float = LIMIT_S) -> None:
        self._wait_for(lambda: self.iteration() >= iteration, f"iteration {iteration}", timeout_s)

    def wait_for_output(self, text: str, timeout_s: float = LIMIT_S) -> None:
        self._wait_for(lambda: text in self.output(), repr(text), timeout_s)

    def _wait_for(self, reached: Callable[[], bool], what: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not reached():
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline, f"{what} not reached:\n{self.output()}"
            time.sleep(0.05)

    def processes(self, name: str) -> list[psutil.Process]:
        """Descendants of the run whose command line contains `name`."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if name in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def listening(self) -> dict[str, list[str]]:
        """Addresses at which processes of the run wait for connections -> command lines."""
        found: dict[str, list[str]] = {}
        run = psutil.Process(self.process.pid)
        for process in (run, *run.children(recursive=True)):
            with suppress(psutil.Error):
                name = " ".join(process.cmdline()).strip()
                for connection in process.net_connections("inet"):
                    if connection.status == psutil.CONN_LISTEN:
                        found.setdefault(connection.laddr.ip, []).append(f"{connection.laddr.port} {name}")
        return found

    def kill(self, name: str) -> None:
        victims = self.processes(name)
        assert victims, f"no process {name} in the run"
        os.kill(victims[0].pid, signal.SIGKILL)


Start = Callable[..., Run]


def starter(
    workplace: Path, folder: Path, environment: dict[str, str] | None = None, always: Sequence[str] = ()
) -> Iterator[Start]:
    runs: list[Run] = []

    def begin(name: str, *overrides: str, resume: bool = False) -> Run:
        target, log = folder / name, folder / f"{name}-{len(runs)}.log"
        where = ["--resume", str(target)] if resume else [str(workplace / "recipe.yaml"), "--run", str(target)]
        command = [sys.executable, "-m", "cluster.cli", "train", *where, *always, *overrides]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=environment
            )
        runs.append(Run(target, process, log))
        return runs[-1]

    yield begin
    for run in runs:
        if run.process.poll() is None:
            family = psutil.Process(run.process.pid).children(recursive=True)
            run.process.kill()
            for process in family:
                try:
                    process.kill()
                except psutil.Error:
                    continue


@pytest.fixture
def start(workplace: Path, tmp_path: Path) -> Iterator[Start]:
    """Start a run: start("name", "key=value", ...), or start("name", resume=True)."""
    yield from starter(workplace, tmp_path)


@pytest.fixture(scope="session")
def synchronous(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run of `SYNCHRONOUS` that nothing disturbed, complete."""
    for begin in starter(workplace, tmp_path_factory.mktemp("synchronous")):
        run = begin("run", *SYNCHRONOUS)
        assert run.wait() == 0, run.output()
        yield run
