from __future__ import annotations

import io

from rich.console import Console

from cluster.run.progress import TrainingProgress


def test_away_from_a_terminal_progress_is_plain_lines_and_not_one_for_each_iteration() -> None:
    out = io.StringIO()
    with TrainingProgress(100, console=Console(file=out), line_every_s=1e9) as progress:
        for i in range(1, 101):
            progress.update(i, reward=i / 100, psnr=20.0 if i == 1 else None, staleness=1, throughput=3.5)
        progress.note("[saved] checkpoints/step_000100")
    lines = out.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "iteration 1/100",
        "iteration 100/100",
        "[saved] checkpoints/step_000100",
    ]
    assert lines[1].split("  ")[1:] == ["reward 1.0000", "psnr 20.00 dB", "staleness 1.0", "throughput 3.5/s"]
    assert "\x1b" not in out.getvalue()


def test_on_a_terminal_it_is_one_live_bar_that_starts_where_a_resumed_run_does() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=150, color_system=None)
    with TrainingProgress(40, start=10, console=console) as progress:
        progress.update(11, reward=0.5)
        progress.note("actor 1 restarted")
    assert "11/40" in out.getvalue() and "reward 0.5000" in out.getvalue() and "actor 1 restarted" in out.getvalue()
    assert "iteration 11/40  " not in out.getvalue()


def test_what_is_left_is_told_in_the_bar_and_in_plain_lines_and_the_note_about_it_in_the_latter_only() -> None:
    shown = {}
    for terminal in (True, False):
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal, width=150, color_system=None)
        left = iter(["about 14 min left", "about 7 min left", ""])
        with TrainingProgress(3, console=console, line_every_s=0.0, left=left.__next__) as progress:
            for i in (1, 2, 3):
                progress.update(i, reward=0.5)
                if i == 1:
                    progress.note_beside("the first iteration took 420 s")
                progress._bar.refresh()
        shown[terminal] = out.getvalue()
    assert "about 14 min left" in shown[True] and "about 7 min left" in shown[True] and "420" not in shown[True]
    assert shown[False].splitlines() == [
        "iteration 1/3  reward 0.5000  about 14 min left",
        "the first iteration took 420 s",
        "iteration 2/3  reward 0.5000  about 7 min left",
        "iteration 3/3  reward 0.5000",
    ]
