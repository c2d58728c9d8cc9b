"""The measurements for a GPU: their order and time with parts of our own, and the whole of them tiny, on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.__main__ import main
from benchmarks.gpu.parts import Part, Report, Row, run

ROOT = Path(__file__).parents[2]
WITHOUT = """
import runpy, sys
for name in ("ray", "redis", "deepspeed", "pyarrow", "pydantic", "cluster"):
    sys.modules[name] = None
sys.argv = ["benchmarks.gpu", "--tiny", "--out", sys.argv[1]]
runpy.run_module("benchmarks.gpu", run_name="__main__")
"""


class Clock:
    """Stands until a part takes time."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def part(self, name: str, estimate: float, takes: float, *rows: Row, fails: Exception | None = None) -> Part:
        def measure() -> Iterator[Row]:
            self.now += takes
            yield from rows
            if fails is not None:
                raise fails

        return Part(name, estimate, measure)


@pytest.fixture
def report(tmp_path: Path) -> Report:
    return Report(tmp_path, "card", {"card": "A card"})


def written(report: Report) -> dict[str, Any]:
    return dict(json.loads(report.json.read_text()))["parts"]


def test_a_part_that_no_longer_fits_is_skipped_and_a_smaller_one_behind_it_runs(report: Report) -> None:
    clock = Clock()
    parts = [clock.part("first", 30, 50, {"a": 1}), clock.part("large", 20, 1), clock.part("small", 10, 1, {"b": 2})]
    run(parts, clock() + 60, report, clock)
    found = written(report)
    assert [part["state"] for part in found.values()] == ["done", "skipped", "done"]
    assert found["large"]["reason"] == "takes about 20 s, 10 s were left" and found["small"]["rows"] == [{"b": 2}]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("no such file\nat all"), "ValueError: no such file"),
        (RuntimeError("CUDA out of memory. Tried"), "out of memory"),
        (ImportError("no diffusers"), "ImportError: no diffusers"),
    ],
)
def test_a_part_that_fails_leaves_its_reason_and_its_rows_and_the_rest_goes_on(
    report: Report, error: Exception, reason: str
) -> None:
    clock = Clock()
    run(
        [clock.part("bad", 1, 1, {"a": 1}, fails=error), clock.part("good", 1, 1, {"b": 2})], clock() + 9, report, clock
    )
    found = written(report)
    assert (found["bad"]["state"], found["bad"]["reason"], found["bad"]["rows"]) == ("failed", reason, [{"a": 1}])
    assert found["good"]["state"] == "done"


def test_a_part_that_is_still_at_it_at_the_end_is_cut_off_there_and_keeps_its_rows(report: Report) -> None:
    def forever() -> Iterator[Row]:
        yield {"a": 1}
        while True:
            try:
                time.sleep(0.01)
            except Exception:  # such as a library's
                continue

    began = time.monotonic()
    run([Part("forever", 0.1, forever), Part("after", 0.1, lambda: iter([{"b": 2}]))], began + 0.5, report)
    found = written(report)
    assert 0.4 < time.monotonic() - began < 5
    assert (found["forever"]["state"], found["forever"]["rows"]) == ("cut off", [{"a": 1}])
    assert found["after"]["state"] == "skipped"


def test_what_was_found_is_on_disk_before_the_next_row_is_measured(report: Report) -> None:
    seen = []

    def rows() -> Iterator[Row]:
        yield {"a": 1, "b": 0.123456}
        seen.append((written(report)["part"], report.markdown.read_text()))
        yield {"a": 2, "b": 1.0}

    run([Part("part", 1, rows)], time.monotonic() + 9, report)
    (on_disk, table) = seen[0]
    assert on_disk["state"] == "running" and on_disk["rows"] == [{"a": 1, "b": 0.123456}]
    assert table.startswith("# A card") and "| a | b |\n|-|-|\n| 1 | 0.1235 |" in table
    assert "| 1 | 0.1235 |\n| 2 | 1 |" in report.markdown.read_text()


def test_a_run_that_is_killed_while_it_writes_leaves_what_was_whole(
    report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path, _: object) -> None:
        path.write_text('{"parts"')
        raise KeyboardInterrupt

    run([Part("part", 1, lambda: iter([{"a": 1}]))], time.monotonic() + 9, report)
    monkeypatch.setattr("benchmarks.gpu.parts.write", killed)
    with pytest.raises(KeyboardInterrupt):
        report.write()
    assert written(report)["part"]["rows"] == [{"a": 1}]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All parts with tiny networks, where nothing of a cluster can be imported."""
    out = tmp_path_factory.mktemp("gpu")
    done = subprocess.run([sys.executable, "-c", WITHOUT, str(out)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert sorted(file.name for file in out.iterdir()) == ["cpu-tiny.json", "cpu-tiny.md"]
    return dict(json.loads((out / "cpu-tiny.json").read_text()))


@pytest.mark.slow
def test_all_parts_run_without_ray_redis_deepspeed_and_arrow(tiny: dict[str, Any]) -> None:
    states = {name: part["state"] for name, part in tiny["parts"].items()}
    assert set(states.values()) == {"done"}, states
    assert [*states][:3] == ["deqa", "ratio at first replay, diffbir", "diffbir lora"]


@pytest.mark.slow
def test_each_figure_that_is_asked_for_is_there(tiny: dict[str, Any]) -> None:
    about, *rows = tiny["parts"]["deqa"]["rows"]
    assert about["gflop_needed"] == 1762 and about["gflop_counted"] > 0
    batches = {row["batch"]: row for row in rows if "batch" in row}
    assert batches.keys() == {1, 8, 32, 64, 128}
    assert all(row["finite"] and row["images_per_s"] > 0 and row["mfu"] > 0 for row in batches.values())
    assert batches[32]["off_batch_32"] == 0 and batches[1]["off_batch_32"] < 1e-4
    shares = {row["part"]: row["share"] for row in rows if "part" in row}
    assert [*shares] == ["preparation", "vision transformer", "abstractor", "language model", "head"]
    assert sum(shares.values()) == pytest.approx(1)
    compiled = tiny["parts"]["deqa compiled, batch 32"]["rows"][-1]
    assert compiled["off_batch_32"] < 1e-4
    for name in ("diffbir lora", "diffbir full", "pasd lora"):
        row = tiny["parts"][name]["rows"][-1]
        assert all(row[f"{of}_rows_per_s"] > 0 for of in ("rollout", "decode", "replay", "recompute")), row
    assert {row["scorer"] for row in tiny["parts"]["small scorers"]["rows"]} == {"lite0_levels", "clip_iqa"}
    assert all(row["finite"] for row in tiny["parts"]["small scorers"]["rows"])


@pytest.mark.slow
def test_a_replay_in_the_rollouts_batches_has_its_log_probs_and_other_batches_are_compared(
    tiny: dict[str, Any],
) -> None:
    about, *rows = tiny["parts"]["ratio at first replay, diffbir"]["rows"]
    assert about["old_log_probs_bytes_a_group"] < about["latents_bytes_a_group"]
    assert [row["replayed_rows"] for row in rows] == [4, 4, 4, 2, 1]
    assert rows[0]["with_graph"] and not rows[1]["with_graph"] and rows[2]["conditions"] == "alone"
    assert all(row["finite"] and row["clip"] == 1e-4 for row in rows)
    assert all(row["largest"] < 1e-6 for row in rows[:2])  # the same operations
    assert rows[-1]["largest"] > 0


def test_a_machine_without_a_gpu_is_told_of_the_tiny_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "torch finds no GPU; --tiny" in capsys.readouterr().err and not list(tmp_path.iterdir())
