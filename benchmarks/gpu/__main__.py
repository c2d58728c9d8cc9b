"""What matters on a GPU, in order of value, in a few minutes:

    python -m benchmarks.gpu --minutes 8 [--out FOLDER] [--only deqa] [--tiny]

Needs torch; what needs diffusers, transformers or peft as well is told to have failed where they are missing, and the
rest goes on. No weights, no data, no network. Parts are run while their estimates fit into the time; each is written to
FOLDER/CARD.json and CARD.md as it is found, so that a run that is killed leaves what it has. `--tiny` runs the same
with tiny networks anywhere.
"""

from __future__ import annotations

import argparse
import faulthandler
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.gpu.parts import Part, Report, Row, run
from benchmarks.gpu.timing import card, stem_of
from benchmarks.report import RESULTS

GRACE_S = 60  # after the end, for what can't be interrupted


def parts_of(tiny: bool, device: str) -> list[Part]:
    """The most valuable first. Estimates are of an H100, with its start, and of a CPU for tiny ones."""

    # Imported inside: each part must do without what only another needs.
    def deqa() -> Iterator[Row]:
        from benchmarks.gpu import reward

        return reward.deqa(tiny, device)

    def compiled(batch: int) -> Iterator[Row]:
        from benchmarks.gpu import reward

        return reward.deqa_compiled(tiny, device, batch)

    def small() -> Iterator[Row]:
        from benchmarks.gpu import reward

        return reward.small_scorers(tiny, device)

    def ratios(name: str) -> Iterator[Row]:
        from benchmarks.gpu import chain

        return chain.ratios(name, tiny, device)

    def costs(name: str, mode: str) -> Iterator[Row]:
        from benchmarks.gpu import chain

        return chain.costs(name, mode, tiny, device)  # type: ignore[arg-type]

    found = [
        Part("deqa", 45, deqa),
        Part("ratio at first replay, diffbir", 60, lambda: ratios("diffbir")),
        Part("diffbir lora", 45, lambda: costs("diffbir", "lora")),
        Part("deqa compiled, batch 32", 150, lambda: compiled(32)),
        Part("pasd lora", 45, lambda: costs("pasd", "lora")),
        Part("small scorers", 25, small),
        Part("ratio at first replay, pasd", 50, lambda: ratios("pasd")),
        Part("diffbir full", 40, lambda: costs("diffbir", "full")),
        Part("pasd full", 40, lambda: costs("pasd", "full")),
        Part("deqa compiled, batch 128", 150, lambda: compiled(128)),
    ]
    if not tiny:
        return found
    again = (
        "ratio at first replay, pasd",
        "pasd full",
        "deqa compiled, batch 128",
    )  # nothing that the others don't run
    return [Part(part.name, 1.0, part.rows) for part in found if part.name not in again]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="after which it ends, whatever is left")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu", help="folder of the results")
    parser.add_argument("--only", help="parts whose names contain this")
    parser.add_argument("--tiny", action="store_true", help="tiny networks, to try the program without a GPU")
    parser.add_argument("--device", choices=["cuda", "cpu"])
    options = parser.parse_args()
    device = options.device or ("cuda" if torch.cuda.is_available() and not options.tiny else "cpu")
    if device == "cpu" and not options.tiny:
        parser.error("torch finds no GPU; --tiny tries the program on a CPU")
    until = time.monotonic() + 60 * options.minutes
    faulthandler.dump_traceback_later(60 * options.minutes + GRACE_S, exit=True)
    parts = [part for part in parts_of(options.tiny, device) if (options.only or "") in part.name]
    if not parts:
        parser.error(f"--only {options.only!r}: no part has it in its name")
    about: Row = {"card": card(device), "torch": torch.__version__, "cuda": torch.version.cuda or "none"}
    about |= {"python": platform.python_version(), "minutes": options.minutes, "tiny": options.tiny}
    if device == "cuda":
        about["memory_gb"] = torch.cuda.get_device_properties(0).total_memory / 1e9
    report = Report(options.out, stem_of(about["card"]) + ("-tiny" if options.tiny else ""), about)
    run(parts, until, report)
    faulthandler.cancel_dump_traceback_later()
    print(report.markdown.read_text())
    print(f"{report.json}\n{report.markdown}")
    states = [part["state"] for part in report.parts.values()]
    sys.exit(1 if "failed" in states else 0)


if __name__ == "__main__":
    main()
