"""Cores that there are and cores that others use, from files and figures of our own."""

from __future__ import annotations

import os
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from cluster.run.load import Load, usable_cores

Times = namedtuple("Times", ["user", "system", "idle", "iowait", "steal", "guest"])


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(
    ("group", "files", "cores"),
    [
        ("0::/", {}, 8),
        ("0::/", {"cpu.max": "max 100000"}, 8),
        ("0::/", {"cpu.max": "250000 100000"}, 2.5),
        ("0::/a/b", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}, 1.5),
        ("0::/a/b", {"a/b/cpu.max": "nonsense"}, 8),
        ("4:cpu,cpuacct:/c\n3:memory:/c", {"cpu/c/cpu.cfs_quota_us": "300000", "cpu/c/cpu.cfs_period_us": "100000"}, 3),
        ("4:cpu:/away", {"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ("4:cpu:/c", {"cpu/c/cpu.cfs_quota_us": "-1", "cpu/c/cpu.cfs_period_us": "100000"}, 8),
    ],
)
def test_cores_are_those_of_the_affinity_within_the_quotas_of_every_control_group(
    tmp_path: Path, group: str, files: dict[str, str], cores: float
) -> None:
    (tmp_path / "cgroup").write_text(group + "\n")
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text + "\n")
    assert usable_cores(tmp_path / "cgroup", tmp_path / "fs") == cores
    assert usable_cores(tmp_path / "no such file") == 8


def test_what_others_use_is_what_neither_this_process_nor_its_descendants_do_once_the_machine_is_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now: dict[str, float] = {"clock": 0.0, "busy": 100.0, "own": 10.0, "child": 5.0}

    def process(seconds: str, children: list[Any]) -> Any:
        def times() -> Any:
            return SimpleNamespace(user=now[seconds], system=0.0, children_user=0.0, children_system=0.0)

        return SimpleNamespace(cpu_times=times, children=lambda recursive: children)

    def ended() -> Any:
        raise psutil.NoSuchProcess(1)

    gone = SimpleNamespace(cpu_times=ended)
    monkeypatch.setattr("cluster.run.load.time.monotonic", lambda: now["clock"])
    monkeypatch.setattr("cluster.run.load.os.cpu_count", lambda: 4)
    monkeypatch.setattr(psutil, "cpu_times", lambda: Times(now["busy"], 1.0, 1e6, 1e3, 2.0, 50.0))
    monkeypatch.setattr(psutil, "Process", lambda: process("own", [process("child", []), gone]))
    load = Load()
    now |= {"clock": 100.0, "busy": 480.0, "own": 110.0, "child": 155.0}  # 3.8 of 4 cores, 2.5 of them ours
    assert load.others() == pytest.approx(1.3)
    now["busy"] = 420.0  # 3.2 of 4: there is room
    assert load.others() == 0.0
