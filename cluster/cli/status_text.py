"""A run's status for people, drawn with rich."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cluster.report.duration import ago, brief
from cluster.report.live import EVALUATING, FINISHED, STARTING, STOPPED, STOPPING, TROUBLE
from cluster.report.spans import ACTOR
from cluster.report.status import Course, Process, Status

COLOURS = {
    **dict.fromkeys(TROUBLE, "bold red"),
    **dict.fromkeys((STARTING, STOPPING, STOPPED), "bold yellow"),
    **dict.fromkeys((EVALUATING, FINISHED), "bold cyan"),
}
BLOCKS, PLAIN_BLOCKS = "▁▂▃▄▅▆▇█", "_.-=+*#@"  # the latter where a terminal knows ASCII only
MOST_PROCESSES = 12  # told one by one
BAR = 30


def render(status: Status, plain: bool = False) -> RenderableType:
    """Sections from the state down to what is damaged.

    Args:
        plain: ASCII only.
    """
    parts: list[RenderableType] = [_head(status), *_progress(status, plain)]
    parts += [_table(_rollouts(status, plain)), *_heldout(status), *_processes(status)]
    for title, lines, colour in (
        ("alarms", status.alarms, "red"),
        ("clocks", status.clocks, ""),
        ("can't be read", status.damage, "yellow"),
    ):
        if lines:
            parts += [Text(title, "bold"), *(Text(f"  {line}", colour) for line in lines)]
    return Group(*parts)


def sparkline(values: tuple[float, ...], plain: bool = False) -> str:
    """A bar a value, the lowest to the highest of them; all in the middle where they are equal."""
    blocks = PLAIN_BLOCKS if plain else BLOCKS
    low, high = min(values, default=0.0), max(values, default=0.0)
    if high <= low:
        return blocks[3] * len(values)
    return "".join(blocks[min(7, int(8 * (value - low) / (high - low)))] for value in values)


def _head(status: Status) -> Text:
    text = Text.assemble((status.name, "bold"), "  ", (status.state, COLOURS.get(status.state, "bold green")))
    if status.run_id and status.run_id != status.name:
        text.append(f"  {status.run_id}", "dim")
    if status.why:
        text.append(f"\n  {status.why}")
    return text


def _progress(status: Status, plain: bool) -> list[RenderableType]:
    of = "" if status.iterations is None else f" of {status.iterations}"
    words = [f"iteration {status.iteration}{of}", status.left]
    if status.seconds:
        words.append(f"{brief(status.seconds)} in all")
    if status.silent_s is not None:
        words.append(f"last figures {ago(status.silent_s)}")
    if status.checkpoint is not None:
        words.append(f"checkpoint {status.checkpoint.iteration}, {ago(status.checkpoint.age_s)}")
    parts: list[RenderableType] = [Text("  ".join(filter(None, words)))]
    if status.iterations:
        done = round(BAR * min(1.0, status.iteration / status.iterations))
        full, empty = ("#", ".") if plain else ("━", "─")
        parts.append(Text.assemble((full * done, "green"), (empty * (BAR - done), "dim")))
    return parts


def _rollouts(status: Status, plain: bool) -> list[tuple[str, str]]:
    rows = []
    if status.reward is not None:
        rows.append(("reward", _course(status.reward, plain)))
    rows += [(f"  {name}", _course(course, plain)) for name, course in status.terms.items()]
    if status.staleness_mean is not None:
        most = "" if status.staleness_max is None else f", at most {status.staleness_max:g}"
        rows.append(("staleness", f"{status.staleness_mean:.2f}{most}"))
    if status.phases:
        told = "  ".join(f"{name} {brief(seconds)}" for name, seconds in status.phases.items())
        whole = "" if status.iteration_s is None else f"{brief(status.iteration_s)}: "
        rows.append(("an iteration", f"{whole}{told}"))
    if status.overlap is not None:
        share = f"{100 * status.overlap:.0f} % of the learner's work"
        rows.append(("overlap", f"{share} beside rollouts (iteration {status.overlap_of})"))
    under_way = [
        None if status.rolling is None else f"{status.rolling} groups being rolled out",
        None if status.waiting is None else f"{status.waiting} wait for the learner",
        None if status.waiting_mb is None else f"{status.waiting_mb:.1f} MB in the store",
    ]
    if told := ", ".join(filter(None, under_way)):
        rows.append(("under way", told))
    if status.evaluation:
        rows.append(("evaluation", status.evaluation))
    for name, counts in (
        ("quarantined", status.quarantined),
        ("not trained on", status.dropped),
        ("failed calls", status.failed_calls),
        ("not written", status.not_written),
    ):
        if counts:
            rows.append((name, ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items()))))
    return rows


def _course(course: Course, plain: bool) -> str:
    return f"{course.last:.4f} ({course.last - course.first:+.4f})  {sparkline(course.course, plain)}"


def _heldout(status: Status) -> list[RenderableType]:
    if not status.heldout:
        return []
    averaged = any(figure.averaged is not None for figure in status.heldout)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    at = "before training" if status.heldout_of is None else f"iteration {status.heldout_of}"
    table.add_column(f"held out, {at}", header_style="bold")
    heads = ["input", "base", "RL", *(["averaged"] if averaged else []), "RL - base"]
    for head in heads:
        table.add_column(head, justify="right", header_style="dim")
    for f in status.heldout:
        values = [f.degraded, f.base, f.now, *([f.averaged] if averaged else [])]
        cells = ["" if value is None else f"{value:.4f}" for value in values]
        if f.now is None or f.base is None:
            gained = Text("")
        else:
            gained = Text(f"{f.now - f.base:+.4f}", "green" if f.now > f.base else "red" if f.now < f.base else "")
        table.add_row(f"  {f.name}", *cells, gained)
    return [table]


def _processes(status: Status) -> list[RenderableType]:
    if not status.processes:
        return []
    shown = status.processes[:MOST_PROCESSES]
    table = _table([(process.name, _where(process)) for process in shown])
    left = status.processes[MOST_PROCESSES:]
    more = [Text(f"  and {len(left)} more: --json has all")] if left else []
    return [Text("processes", "bold"), table, *more]


def _where(process: Process) -> str:
    heard = "" if process.heard_s is None else f"heard of {ago(process.heard_s)}"
    doing = process.doing or ("idle" if process.role == ACTOR else "")  # of others nobody says it
    return "  ".join(filter(None, (process.where, doing, heard)))


def _table(rows: list[tuple[str, str]]) -> RenderableType:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(name, Text(text))
    return table
