"""Whole photographs before and after, the README's strip and a chain: python -m benchmarks.pictures RUN

Degrades the held-out photographs whole, as the demo does its tiles, restores them in tiles with the run's base and
tuned model by the functions of `restorl restore`, and writes a page of each (input, base, RL, ground truth, and a part
of all four enlarged) with its attribution, docs/demo.png, and the chain of some held-out tiles, step by step. The full
pictures stay in RUN/pictures.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cluster.models import load_policy, load_run_config
from cluster.report.chain_picture import save_chains
from cluster.report.chains import as_evaluated, chains_of, heldout_pictures, score_of
from cluster.report.strips import BOX, FAINT, INK, LABELS, PAPER, Box, choose_box, fit, zoom
from restoration.degradations import KINDS, Kind, degrade, seeded_rng
from restoration.figures import ScoreFunction
from restoration.image_files import list_images
from restoration.images import read_image, to_uint8, write_image
from restoration.metrics import protocol
from restoration.restore import restore_folder
from restoration.tiling import Tiling
from restoration.whole_files import written_whole

Pixels = NDArray[np.uint8]
PHOTOS = Path("data/photos")
LIMIT = 300_000  # bytes of a page
WIDTH, GAP, TEXT = 1040, 8, 25  # a page on a phone is a third as wide, and its text still has to be read
ENLARGED = 3  # times, of a part on a page
CROP, TIMES = 128, 2  # of the README's strip: pixels, and times they are enlarged
STRIP = ("chelsea", "china", "coffee")
ROW = re.compile(r"^\| (?P<file>\S+) \| (?P<title>[^|]+) \| (?P<author>[^|]+) \| (?P<licence>[^|]+) \| [^|]+ \|$")


@dataclass(frozen=True)
class Photo:
    """A photograph: degraded, restored by base and RL, and as it was, uint8 [H, W, 3] each; and their scores."""

    name: str
    images: tuple[Pixels, ...]
    scores: tuple[float, ...]

    def captions(self, box: Box | None = None) -> list[str]:
        """PSNR of the photograph, or of a part, and of the whole one its score."""
        y, x, h, w = box or (0, 0, *self.images[0].shape[:2])
        *others, truth = (np.ascontiguousarray(image[None, y : y + h, x : x + w]) for image in self.images)
        psnr = [f"{protocol('lowlight_rgb').psnr(other, truth)[0]:.1f} dB" for other in others] + [""]
        if box is not None:
            return psnr
        return [f"{p}  {s:.2f}".strip() for p, s in zip(psnr, self.scores, strict=True)]


def make(run: Path, task: Kind, severity: float, tile: int, names: Sequence[str]) -> list[Photo]:
    """Degrade, restore and measure the held-out photographs."""
    config = load_run_config(run)
    work, score = run / "pictures", score_of(config)
    shutil.rmtree(work / "input", ignore_errors=True)  # of an earlier call, with other photographs or another task
    files = [file for file in list_images(PHOTOS / "heldout") if not names or file.stem in names]
    if not files:
        raise SystemExit(f"{PHOTOS / 'heldout'} holds none of {', '.join(names)}")
    for file in files:
        clean = read_image(file).permute(1, 2, 0).numpy()
        degraded = degrade(clean, task, severity, seeded_rng(f"{task}/whole/{file.stem}", 0))
        write_image(work / "input" / f"{file.stem}.png", np.round(degraded * 255).astype(np.uint8))
    for who, checkpoint in (("base", "base"), ("rl", checkpoint_of(run))):
        model, sampler = load_policy(run, checkpoint, config.data.embeddings)
        summary = restore_folder(
            model,
            work / "input",
            work / who,
            sampler=sampler,
            skip_existing=False,
            tiling=Tiling(tile, tile // 4),
            progress=lambda done, total, file, who=who: print(f"{who}: {done}/{total} {file.stem}", flush=True),
        )
        if summary.failed:
            raise SystemExit(str(summary))
    return [measured(work, file, score) for file in files]


def checkpoint_of(run: Path) -> str:
    """What a run is judged by: the average of its weights where it keeps one."""
    return "average" if load_run_config(run).optimiser.ema else "latest"


def measured(work: Path, file: Path, score: ScoreFunction) -> Photo:
    paths = [work / who / f"{file.stem}.png" for who in ("input", "base", "rl")] + [file]
    images = tuple(to_uint8(read_image(path)) for path in paths)
    return Photo(file.stem, images, tuple(float(score(image[None])[0]) for image in images))


def page(photo: Photo) -> Image.Image:
    """Two by two whole pictures, and below them the part that RL changed most, of all four."""
    height, full = photo.images[0].shape[:2]
    font = ImageFont.load_default(TEXT)
    width, small = (WIDTH - 3 * GAP) // 2, (WIDTH - 5 * GAP) // 4
    part = small // ENLARGED
    box = choose_box(photo.images[1], photo.images[2], photo.images[3], part / min(height, full))
    tall, line = round(height * width / full), TEXT + GAP
    sheet = Image.new("RGB", (WIDTH, GAP + 2 * (line + tall + GAP) + small + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, (image, label, caption) in enumerate(zip(photo.images, LABELS, photo.captions(), strict=True)):
        left, top = GAP + i % 2 * (width + GAP), GAP + i // 2 * (line + tall + GAP)
        draw.text((left, top), label, INK, font)
        draw.text((left + width, top), caption, FAINT, font, anchor="ra")
        sheet.paste(fit(Image.fromarray(image), width, tall), (left, top + line))
        y, x, h, w = (round(v * width / full) for v in box)
        draw.rectangle((left + x, top + line + y, left + x + w, top + line + y + h), outline=BOX, width=3)
        below = (GAP + i * (small + GAP), GAP + 2 * (line + tall + GAP))
        sheet.paste(fit(zoom(image, box, small), small, small), below)
    return sheet


def strip(photos: Sequence[Photo]) -> Image.Image:
    """A row a photograph: a part of input, base, RL and ground truth, each pixel enlarged by a whole factor."""
    font, side, line = ImageFont.load_default(TEXT), CROP * TIMES, TEXT + GAP
    sheet = Image.new("RGB", (GAP + 4 * (side + GAP), GAP + line + len(photos) * (side + line + GAP)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, label in enumerate(LABELS):
        draw.text((GAP + i * (side + GAP), GAP // 2), label, INK, font)
    for row, photo in enumerate(photos):
        box = choose_box(photo.images[0], photo.images[3], photo.images[3], CROP / min(photo.images[0].shape[:2]))
        top = GAP + line + row * (side + line + GAP)
        for i, (image, caption) in enumerate(zip(photo.images, photo.captions(box), strict=True)):
            left = GAP + i * (side + GAP)
            sheet.paste(zoom(image, box, side), (left, top))
            draw.text((left, top + side + GAP // 2), caption, FAINT, font)
    return sheet


def save(path: Path, image: Image.Image, limit: int = LIMIT) -> None:
    """As WebP of the best quality that fits `limit` bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for quality in range(90, 40, -6):
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=quality, method=6)
        if buffer.tell() <= limit:
            with written_whole(path) as temporary:
                temporary.write_bytes(buffer.getvalue())
            return
    raise SystemExit(f"{path}: {buffer.tell()} bytes at the lowest quality, and {limit} are wanted; lower WIDTH")


def attributions() -> dict[str, dict[str, str]]:
    """By the name of a held-out photograph, what ATTRIBUTION.md says of it."""
    rows = map(ROW.match, (PHOTOS / "ATTRIBUTION.md").read_text(encoding="utf-8").splitlines())
    return {Path(row["file"]).stem: row.groupdict() for row in rows if row and row["file"].startswith("heldout/")}


def index(photos: Sequence[Photo], task: str, severity: float) -> str:
    """The page beside the pictures: what they show, and whose photographs they are."""
    known = attributions()
    of_strip = ", ".join(photo.name for photo in photos if photo.name in STRIP)
    lines = [
        "# Pictures",
        "",
        "Made by `make pictures`: photographs that nothing was trained on, degraded whole",
        f"({task}, severity {severity:g}, seeded), restored in tiles by base model and RL. Figures: PSNR against the",
        "photograph, and the IQA score. The box is where RL changed most; it is enlarged below. `chain.webp` and",
        f"`chain.png` have the steps of the chain on held-out tiles, `../demo.png` parts of {of_strip}. Changed from",
        "the originals as said here and in [ATTRIBUTION.md](../../data/photos/ATTRIBUTION.md); **SA** marks works",
        "under share-alike licences, whose pictures here are under the same licence.",
        "",
        "| picture | photograph | author | licence |",
        "|-|-|-|-|",
    ]
    for photo in photos:
        if photo.name not in known:
            raise SystemExit(f"{PHOTOS / 'ATTRIBUTION.md'} says nothing of {photo.name}: add its row")
        of = known[photo.name]
        lines.append(f"| [{photo.name}.webp]({photo.name}.webp) | {of['title']} | {of['author']} | {of['licence']} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    parser.add_argument("--strip", type=Path, default=Path("docs/demo.png"))
    parser.add_argument("--task", default="rain", choices=KINDS)
    parser.add_argument("--severity", type=float, default=0.65, help="in (0, 1]; the demo's tiles have 0.3 to 1")
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--names", nargs="*", default=(), help="of photographs; all held-out ones by default")
    given = parser.parse_args()
    photos = make(given.run, given.task, given.severity, given.tile, given.names)
    for photo in photos:
        save(given.out / f"{photo.name}.webp", page(photo))
        print(f"{photo.name}: {', '.join(map(': '.join, zip(LABELS, photo.captions(), strict=True)))}")
    given.strip.parent.mkdir(parents=True, exist_ok=True)
    strip([p for p in photos if p.name in STRIP] or photos[:3]).save(given.strip, optimize=True)
    config = load_run_config(given.run)
    checkpoint = checkpoint_of(given.run)
    score = score_of(config)
    shown = chains_of(given.run, heldout_pictures(config), score, checkpoint=checkpoint, **as_evaluated(config))
    for name in ("chain.webp", "chain.png"):
        print(save_chains(given.out / name, shown))
    (given.out / "README.md").write_text(index(photos, given.task, given.severity), encoding="utf-8")


if __name__ == "__main__":
    main()
