"""Chains as pictures: an animation, step by step, with the scores that rise or fall, and the same as a still strip."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from cluster.report.figures import BASE, TRUTH, TUNED
from cluster.report.strips import FAINT, INK, PAPER, fit
from restoration.chain import Frame
from restoration.figures import Pixels
from restoration.whole_files import written_whole

ANIMATED, STILL = (".webp", ".gif"), (".png", ".jpg", ".jpeg")
LIMIT = 1_000_000  # bytes of a file
WIDTHS = (256, 224, 192, 160, 128, 96)  # of a picture; one is enlarged by whole factors only
QUALITIES, COLOURS = (88, 78, 66, 52), (256, 128, 64)  # of WebP and JPEG; of GIF
MOST_STEPS = 64  # that are shown
LONGEST = {".webp": 16383, ".jpg": 65500, ".jpeg": 65500}  # side in pixels that a format, or its library, can have
PACKED = 16  # times smaller than its pixels a PNG may become; what would need more isn't tried
FIRST_MS, STEP_MS, LAST_MS = 900, 1000, 2600
COLOURS_OF_ROWS = (BASE, TUNED)
SMOOTH = 3  # lines are drawn so many times as large and reduced


@dataclass(frozen=True)
class Shown:
    """One picture and its ways through the models.

    Attributes:
        chains: of each model by its label, as `restoration.chain.chain` gives them; all equally long.
        truth: uint8 [H, W, 3], and its score, NaN where there is none.
    """

    name: str
    chains: Mapping[str, Sequence[Frame]]
    truth: Pixels | None = None
    truth_score: float = math.nan


def save_chains(path: Path, shown: Sequence[Shown], limit: int = LIMIT, widths: Sequence[int] = WIDTHS) -> Path:
    """Write an animation (.webp, .gif) or a strip (.png, .jpg) of at most `limit` bytes; the folder is made.

    Quality is lowered first, then the size of the pictures; then steps are left out, evenly between input and result,
    as they are of more than `MOST_STEPS`. Each picture says of which step it is.

    Raises:
        ValueError: another suffix, nothing to show, chains that don't match, or a file that is too large at its
            smallest.
        OSError: it can't be written.
    """
    path, suffix = Path(path), Path(path).suffix.lower()
    if suffix not in ANIMATED + STILL:
        raise ValueError(f"{path}: choose a name that ends in {', '.join(ANIMATED)} (animated), or {', '.join(STILL)}")
    steps = _check(shown)
    encode = {".webp": _webp, ".gif": _gif, ".png": _png}.get(suffix, _jpeg)
    settings: Sequence[int] = {".gif": COLOURS, ".png": (0,)}.get(suffix, QUALITIES)
    own = [_width(one) for one in shown]
    whole = [width for width in widths if all(width <= side or width % side == 0 for side in own)]
    for width, kept in _looks(whole or widths[-1:], steps):
        some = [_thinned(one, kept) for one in shown]
        pages = draw_animation(some, width) if suffix in ANIMATED else [draw_still(some, width)]
        told = " x ".join(map(str, pages[0].size)) + " px"
        for setting in settings if _is_possible(pages[0].size, suffix, limit) else ():
            if len(data := encode(pages, setting)) <= limit:
                path.parent.mkdir(parents=True, exist_ok=True)
                with written_whole(path) as temporary:
                    temporary.write_bytes(data)
                return path
            told = f"{len(data)} bytes"
    raise ValueError(f"{path}: {told} with pictures {width} px wide; show fewer pictures")


def _looks(widths: Sequence[int], steps: int) -> Iterator[tuple[int, int]]:
    """(width of a picture, steps that are shown): all widths, then the smallest with ever fewer steps."""
    steps = min(steps, MOST_STEPS)
    yield from ((width, steps) for width in widths)
    while steps > 1:
        steps = -(-steps // 2)
        yield widths[-1], steps


def _is_possible(size: tuple[int, int], suffix: str, limit: int) -> bool:
    """Whether a page of that size may be encoded in so many bytes."""
    return max(size) <= LONGEST.get(suffix, 2**31) and (suffix != ".png" or 3 * math.prod(size) <= PACKED * limit)


def _thinned(one: Shown, kept: int) -> Shown:
    """With the input and `kept` of the steps, the result always among them."""
    last = len(next(iter(one.chains.values()))) - 1
    if kept >= last:
        return one
    places = [-(-i * last // kept) for i in range(kept + 1)]
    return replace(one, chains={label: [frames[i] for i in places] for label, frames in one.chains.items()})


def draw_animation(shown: Sequence[Shown], width: int) -> list[Image.Image]:
    """A page for each frame: pictures beside each other, models below each other, scores so far below.

    Raises:
        ValueError: see `save_chains`.
    """
    steps = _check(shown)
    look = _Look(width)
    heights = [max(round(_height(s) * width / _width(s)) for s in shown)] * max(len(s.chains) for s in shown)
    size = (
        look.gap + len(shown) * (width + look.gap),
        look.head + sum(height + look.line + look.gap for height in heights) + look.plot + look.gap,
    )
    return [_page(shown, place, steps, heights, size, look) for place in range(_frames(shown))]


def draw_still(shown: Sequence[Shown], width: int) -> Image.Image:
    """All steps beside each other, pictures and models below each other; input and ground truth at the left.

    Raises:
        ValueError: see `save_chains`.
    """
    steps = _check(shown)
    look = _Look(width)
    rows = [_rows(one) for one in shown]
    columns = max(len(cells) for block in rows for cells in block)
    tall = [round(_height(one) * width / _width(one)) for one in shown]
    total = sum(len(block) * (2 * look.line + height + look.gap) for block, height in zip(rows, tall, strict=True))
    sheet = Image.new("RGB", (look.gap + columns * (width + look.gap), look.gap + total), PAPER)
    draw, top = ImageDraw.Draw(sheet), look.gap
    for block, height in zip(rows, tall, strict=True):
        for cells in block:
            for column, (label, image, caption) in enumerate(cells):
                left = look.gap + column * (width + look.gap)
                draw.text((left, top), label.format(steps=steps), INK, look.font)
                sheet.paste(fit(Image.fromarray(image), width, height), (left, top + look.line))
                draw.text((left, top + look.line + height + look.gap // 4), caption, FAINT, look.font)
            top += 2 * look.line + height + look.gap
    return sheet


def caption_of(score: float, psnr: float | None) -> str:
    """What stands under a picture, such as "2.31  24.1 dB"; a score that can't be had is a dash."""
    told = "-" if math.isnan(score) else f"{score:.2f}"
    return told if psnr is None else f"{told}  {psnr:.1f} dB"


class _Look:
    """Sizes that go with the width of a picture."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.gap = max(6, width // 24)
        self.text = max(11, width // 14)
        self.line = self.text + self.gap // 2
        self.head = self.line + 2 * self.gap
        self.plot = max(48, width // 3)
        self.font = ImageFont.load_default(self.text)


def _page(
    shown: Sequence[Shown], place: int, steps: int, heights: Sequence[int], size: tuple[int, int], look: _Look
) -> Image.Image:
    """`place`: of the frames, which may not be of all steps."""
    page = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(page)
    step = next(iter(shown[0].chains.values()))[place].step
    title = "input" if step == 0 else f"clean estimate after step {step} of {steps}"
    draw.text((look.gap, look.gap), title, INK, look.font)
    for column, one in enumerate(shown):
        left, top = look.gap + column * (look.width + look.gap), look.head
        for row, (label, frames) in enumerate(one.chains.items()):
            frame = frames[place]
            height = round(frame.image.shape[0] * look.width / frame.image.shape[1])
            page.paste(fit(Image.fromarray(frame.image), look.width, height), (left, top))
            below = top + heights[row] + look.gap // 4
            draw.text((left, below), label, _colour(row), look.font)
            right = (left + look.width, below)
            draw.text(right, caption_of(frame.score, frame.psnr), FAINT, look.font, anchor="ra")
            top += heights[row] + look.line + look.gap
        page.paste(_plot(one, place, look), (left, top))
    return page


def _plot(one: Shown, place: int, look: _Look) -> Image.Image:
    """Scores up to the frame at `place`, one line a model, and the ground truth's as a line across."""
    width, height, pad = look.width * SMOOTH, look.plot * SMOOTH, 5 * SMOOTH
    plot = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(plot)
    known = [f.score for frames in one.chains.values() for f in frames] + [one.truth_score]
    finite = [value for value in known if math.isfinite(value)]
    if finite:
        low, high = min(finite), max(finite)
        all_of_them = next(iter(one.chains.values()))
        last = all_of_them[-1].step

        def at(index: float, value: float) -> tuple[float, float]:
            share = (value - low) / (high - low) if high > low else 0.5
            return pad + index / max(1, last) * (width - 2 * pad), height - pad - share * (height - 2 * pad)

        for frame in all_of_them:
            draw.line((*at(frame.step, low), *at(frame.step, high)), "#eceff4", SMOOTH)
        small = ImageFont.load_default(look.text * SMOOTH * 2 // 3)
        draw.text((pad, height - pad), "score", FAINT, small, anchor="lb")
        if math.isfinite(one.truth_score):
            x, y = at(last, one.truth_score)
            draw.line((*at(0, one.truth_score), x, y), TRUTH, SMOOTH)
            above = y > height / 2
            draw.text((x, y - pad if above else y + pad), "truth", TRUTH, small, anchor="rb" if above else "rt")
        for row, frames in enumerate(one.chains.values()):
            points = [at(f.step, f.score) for f in frames[: place + 1] if math.isfinite(f.score)]
            if len(points) > 1:
                draw.line(points, _colour(row), 2 * SMOOTH, joint="curve")
            for x, y in points:
                draw.ellipse((x - pad // 2, y - pad // 2, x + pad // 2, y + pad // 2), _colour(row))
    return plot.resize((look.width, look.plot), Image.Resampling.LANCZOS)


def _rows(one: Shown) -> list[list[tuple[str, Pixels, str]]]:
    """(label, picture, caption) of the cells of each row; `{steps}` in a label is their number."""
    first = next(iter(one.chains.values()))[0]
    given = ("input", first.image, caption_of(first.score, first.psnr))
    truth = None if one.truth is None else ("ground truth", one.truth, caption_of(one.truth_score, None))
    rows = []
    for row, (label, frames) in enumerate(one.chains.items()):
        steps = [
            (f"{label}, {f.step} of {{steps}}", f.image, caption_of(f.score, f.psnr)) for f in frames if f.step > 0
        ]
        beside = given if row == 0 else truth if row == 1 and truth is not None else given
        rows.append([beside, *steps])
    if len(rows) == 1 and truth is not None:
        rows[0].append(truth)
    return rows


def _check(shown: Sequence[Shown]) -> int:
    """The number of steps, of which not all may have a frame.

    Raises:
        ValueError: nothing to show, or chains that are not equally long.
    """
    lengths = {len(frames) for one in shown for frames in one.chains.values()}
    if len(lengths) != 1 or any(not one.chains for one in shown) or 0 in lengths:
        raise ValueError(f"chains to show need equally many steps, got {sorted(lengths) or 'none'}")
    return next(iter(shown[0].chains.values()))[-1].step


def _frames(shown: Sequence[Shown]) -> int:
    """Of a chain."""
    return len(next(iter(shown[0].chains.values())))


def _height(one: Shown) -> int:
    return int(next(iter(one.chains.values()))[0].image.shape[0])


def _width(one: Shown) -> int:
    return int(next(iter(one.chains.values()))[0].image.shape[1])


def _colour(row: int) -> str:
    return COLOURS_OF_ROWS[row % len(COLOURS_OF_ROWS)]


def _durations(count: int) -> list[int]:
    return [FIRST_MS, *[STEP_MS] * (count - 2), LAST_MS] if count > 1 else [LAST_MS]


def _webp(pages: Sequence[Image.Image], quality: int) -> bytes:
    more = {"save_all": True, "append_images": pages[1:], "duration": _durations(len(pages)), "loop": 0}
    return _encoded(pages[0], "WEBP", quality=quality, method=4, **more)


def _gif(pages: Sequence[Image.Image], colours: int) -> bytes:
    first, *others = (page.quantize(colours, dither=Image.Dither.FLOYDSTEINBERG) for page in pages)
    more = {"save_all": True, "append_images": others, "duration": _durations(len(pages)), "loop": 0}
    return _encoded(first, "GIF", optimize=True, **more)


def _png(pages: Sequence[Image.Image], _: int) -> bytes:
    return _encoded(pages[0], "PNG", optimize=True)


def _jpeg(pages: Sequence[Image.Image], quality: int) -> bytes:
    return _encoded(pages[0], "JPEG", quality=quality, subsampling=0)


def _encoded(image: Image.Image, kind: str, **settings: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)  # type: ignore[arg-type]
    return buffer.getvalue()
