"""`restorl compare`: folders made by hand, with figures worked out by hand; and every kind of bad folder."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import cluster.cli.app as cli
from restoration.metrics import measure
from tests.cluster.compare.folders import BAD, GOOD, GREYS, LEVEL, SIZE, grey, greys, psnr, ssim, textured, write
from tests.cluster.report.test_report import _Page
from tests.restoration.small_sets import photos


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, ["compare", *map(str, arguments)])


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Two methods that are 4 and 8 levels too bright, an input that is 20; what was written, and the command's end."""
    root = tmp_path_factory.mktemp("compared")
    gt, lq = greys(root / "gt"), greys(root / "lq", 20)
    good, bad = greys(root / "ours" / "test", GOOD), greys(root / "theirs" / "test", BAD)
    ended = run(good, bad, "--gt", gt, "--lq", lq, "--scorer", LEVEL, "--strips", 2, "--out", root / "out")
    assert ended.exit_code == 0, ended.output
    return root / "out", ended


def test_two_folders_with_known_differences_have_the_figures_that_were_worked_out_by_hand(
    compared: tuple[Path, Any],
) -> None:
    found = json.loads((compared[0] / "compare.json").read_text())
    figures = {method["name"]: method["figures"] for method in found["methods"]}
    assert list(figures) == ["input", "ours", "theirs"] and found["pictures"] == 6
    assert found["versions"]["numpy"] == np.__version__ and "restorl" in found["versions"]
    for name, off in (("input", 20), ("ours", GOOD), ("theirs", BAD)):
        assert figures[name]["psnr"] == pytest.approx(psnr(off), abs=1e-9)
        expected = np.mean([ssim(level, off) for level in GREYS.values()])
        assert figures[name]["ssim"] == pytest.approx(expected, abs=1e-9)
        assert figures[name][LEVEL] == pytest.approx(np.mean([*GREYS.values()]) + off)
        assert found["wasserstein_1_to_originals"][LEVEL][name] == pytest.approx(off)
    differences = {(d["figure"], d["first"], d["second"]): d for d in found["differences"]}
    assert list(differences) == [(figure, "ours", "theirs") for figure in ("psnr", "ssim", LEVEL)]
    of_psnr = differences["psnr", "ours", "theirs"]
    twice = 20 * np.log10(2)  # 6.02 dB in every picture
    assert [of_psnr[key] for key in ("mean", "low", "high")] == pytest.approx([twice] * 3)
    assert of_psnr["p"] == pytest.approx(2 / 2**6) and of_psnr["share_first_higher"] == 1 and of_psnr["pictures"] == 6
    of_level = differences[LEVEL, "ours", "theirs"]
    assert of_level["mean"] == pytest.approx(GOOD - BAD) and of_level["share_first_higher"] == 0
    by_hand = [ssim(level, GOOD) - ssim(level, BAD) for level in GREYS.values()]
    of_ssim = differences["ssim", "ours", "theirs"]
    assert of_ssim["mean"] == pytest.approx(np.mean(by_hand), abs=1e-9)
    assert min(by_hand) < of_ssim["low"] < of_ssim["mean"] < of_ssim["high"] < max(by_hand)


def test_the_table_marks_the_best_and_the_second_in_markdown_and_latex_and_tells_its_protocol(
    compared: tuple[Path, Any],
) -> None:
    folder, ended = compared
    markdown = (folder / "compare.md").read_text()
    assert ended.stdout.startswith(markdown)
    assert markdown.startswith("protocol lowlight_rgb (RGB, 8 bits; SSIM with a Gaussian window of 11")
    rows = {line.split(" | ")[0].lstrip("| "): line for line in markdown.splitlines() if line.startswith("|")}
    good, bad, lq = (f"{psnr(off):.2f}" for off in (GOOD, BAD, 20))
    assert f"| ours | **{good}** | **" in rows["ours"] and f"| theirs | <u>{bad}</u> | <u>" in rows["theirs"]
    assert rows["input"].startswith(f"| input | {lq} | ")
    assert "| PSNR | ours - theirs | +6.021 | +6.021 to +6.021 | 0.031 | 100% | 6 |" in markdown
    latex = (folder / "compare.tex").read_text()
    assert rf"ours & \textbf{{{good}}} & " in latex and rf"theirs & \underline{{{bad}}} & " in latex
    assert latex.count(r"\toprule") == latex.count(r"\bottomrule") == 1 and r"\begin{tabular}{lrrr}" in latex
    body = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert {line.count(" & ") for line in body} == {3} and len(body) == 4
    assert not re.search(r"(?<!\\)[_#]", "\n".join(body))


def test_every_picture_has_a_line_of_every_method(compared: tuple[Path, Any]) -> None:
    with (compared[0] / "compare.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["method"], r["image_id"]) for r in rows] == [(m, i) for m in ("input", "ours", "theirs") for i in GREYS]
    row = rows[7]
    assert float(row["psnr"]) == pytest.approx(psnr(GOOD)) and float(row[f"gt_{LEVEL}"]) == GREYS["00691"]
    assert row["missing"] == ""


def test_the_page_is_one_file_with_the_table_the_strips_the_histograms_and_sliders(compared: tuple[Path, Any]) -> None:
    folder, ended = compared
    text = (folder / "compare.html").read_text()
    page = _Page(text)
    assert page.open == [] and all(link.startswith("data:image/png;base64,") for link in page.links)
    titles = re.findall("<h2>(.*?)</h2>", text)
    assert titles == [
        *("Figures", "Differences", f"Scores by {LEVEL}", "Pictures", "Before and after", "How it was measured"),
    ]
    assert f"<b>{psnr(GOOD):.2f}</b>" in text and f"<u>{psnr(BAD):.2f}</u>" in text and "ours 4.000" in text
    assert re.findall('data-left="([^"]*)" data-right="([^"]*)"', text) == [("ours", "theirs")] * 2
    files = {path.name for path in folder.iterdir()}
    safe = LEVEL.replace(":", "-")
    expected = {f"compare.{form}" for form in ("md", "tex", "csv", "json", "html")} | {
        "strips.png",
        f"histogram_{safe}.png",
    }
    assert files == expected and all(str(folder / name) in ended.stdout for name in files)
    strips = np.asarray(Image.open(folder / "strips.png").convert("RGB"))
    grey_ones = np.unique(strips[(strips == strips[..., :1]).all(-1)])
    # The first picture: its input, both methods, its original.
    assert {GREYS["00690"] + off for off in (20, GOOD, BAD, 0)} <= {*grey_ones.tolist()}


def test_other_peoples_names_find_their_originals_by_numbers_or_before_an_underscore(tmp_path: Path) -> None:
    pictures = {image_id: grey(level) for image_id, level in GREYS.items()}
    gt = write(tmp_path / "gt", pictures, "normal{}.png".format)
    same = write(tmp_path / "same", pictures, "normal{}.png".format)
    numbered = write(tmp_path / "numbered", pictures, "low{}_restored.png".format)
    longer = write(tmp_path / "longer", pictures, "normal{}_SwinIR_x1.png".format)
    ended = run(same, numbered, longer, "--gt", gt, "--out", tmp_path / "out")
    assert ended.exit_code == 0, ended.output
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert {m["name"]: m["matched_by"] for m in found["methods"]} == {
        "same": "stem",
        "numbered": "digits",
        "longer": "group",
    }
    assert [m["figures"]["psnr"] for m in found["methods"]] == [100.0] * 3
    pairs = [(d["first"], d["second"]) for d in found["differences"] if d["figure"] == "psnr"]
    assert pairs == [("same", "numbered"), ("same", "longer"), ("numbered", "longer")]


def test_other_names_are_refused_with_the_first_missing_and_extra_ones_and_the_rules_that_were_tried(
    tmp_path: Path,
) -> None:
    gt, good = greys(tmp_path / "gt"), greys(tmp_path / "good", GOOD)
    part = greys(tmp_path / "part", only=("00690", "00692", "00693"))
    write(part, {"thumbs": grey(1)})
    ended = run(good, part, "--gt", gt)
    assert ended.exit_code == 2, ended
    (line,) = ended.stderr.strip().splitlines()
    assert line == (
        f"{part} has other names than the originals in {gt}: 3 of 6 originals have no result (00691, 00694, 00695); "
        "1 of 4 results have no original (thumbs); tried equal names, equal numbers in the names, the original's name "
        "and more behind an underscore; rename them or move them out, or, where both sides have one order, give "
        "--match sorted"
    )
    others = write(tmp_path / "others", {f"{c}": grey(80) for c in "abcdef"})
    assert (
        "6 of 6 originals have no result (00690, 00691, 00692, 00693, 00694 and 1 more)"
        in run(good, others, "--gt", gt).stderr
    )
    by_order = run(good, others, "--gt", gt, "--match", "sorted")
    assert by_order.exit_code == 0, by_order.output


def test_results_of_other_sizes_are_refused_with_both_sizes(tmp_path: Path) -> None:
    gt, good = greys(tmp_path / "gt"), greys(tmp_path / "good", GOOD)
    double = write(tmp_path / "double", {i: grey(level, (96, 128)) for i, level in GREYS.items()})
    ended = run(good, double, "--gt", gt)
    assert ended.exit_code == 2, ended
    (line,) = ended.stderr.strip().splitlines()
    assert line.startswith(
        f"{double}: 6 of 6 results have another size than their originals: 00690 (128x96, its original 64x48), 00691"
    )


def test_a_picture_of_nan_costs_itself_only_and_the_means_are_over_what_all_methods_have(tmp_path: Path) -> None:
    gt, good, bad = greys(tmp_path / "gt"), greys(tmp_path / "good", GOOD), greys(tmp_path / "bad", BAD)
    (bad / "00690.png").unlink()
    Image.fromarray(np.full(SIZE, np.nan, np.float32)).save(bad / "00690.tif")
    write(good, {"00690": grey(250)})  # far off, in the picture that does not count
    ended = run(good, bad, "--gt", gt, "--out", tmp_path / "out")
    assert ended.exit_code == 1, ended
    assert "bad: 1 of 6 pictures lack figures:" in ended.stderr and "float pixels are not supported" in ended.stderr
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [m["figures"]["psnr"] for m in found["methods"]] == pytest.approx([psnr(GOOD), psnr(BAD)])
    assert "PSNR of the 5 of 6 pictures that all have it of" in found["notes"]
    assert list(found["methods"][1]["missing"]) == ["00690"] and found["differences"][0]["pictures"] == 5
    assert "Missing figures" in (tmp_path / "out" / "compare.html").read_text()


def test_nan_or_levels_of_1_that_were_written_as_8_bits_are_told_as_black_results(tmp_path: Path) -> None:
    gt, good = greys(tmp_path / "gt"), greys(tmp_path / "good", GOOD)
    broken = greys(tmp_path / "broken")
    write(broken, {"00691": grey(0), "00692": grey(1)})  # what a cast makes of NaN, and of 1.0
    ended = run(good, broken, "--gt", gt)
    assert ended.exit_code == 1, ended
    assert "- broken: 2 of 6 results are black where their originals are not (00691, 00692): NaN, or" in ended.stdout


def deep(folder: Path, levels: dict[str, int]) -> Path:
    """Files of 16 bits a channel."""
    folder.mkdir(parents=True)
    for image_id, level in levels.items():
        cv2.imwrite(str(folder / f"{image_id}.png"), np.full((*SIZE, 3), level, np.uint16))
    return folder


def test_files_of_16_bits_count_by_their_own_range_and_values_of_8_bits_in_them_are_told(tmp_path: Path) -> None:
    gt = greys(tmp_path / "gt")
    whole = deep(tmp_path / "whole", {i: (level + GOOD) * 257 for i, level in GREYS.items()})
    shallow = deep(tmp_path / "shallow", {i: level + GOOD for i, level in GREYS.items()})
    ended = run(whole, shallow, "--gt", gt, "--out", tmp_path / "out")
    assert ended.exit_code == 1, ended
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert found["methods"][0]["figures"]["psnr"] == pytest.approx(psnr(GOOD))
    (problem,) = found["problems"]
    assert problem.startswith("shallow: 6 of 6 results are black where") and "8 bits in files of more levels" in problem


def test_originals_of_8_bits_are_refused_under_a_protocol_of_16(tmp_path: Path) -> None:
    gt, good, bad = greys(tmp_path / "gt"), greys(tmp_path / "good", GOOD), greys(tmp_path / "bad", BAD)
    ended = run(good, bad, "--gt", gt, "--protocol", "dpdd_float_16")
    assert ended.exit_code == 2, ended
    assert f"{gt / '00690.png'}: 8 bits a channel, and dpdd_float_16 takes originals of 16" in ended.stderr
    whole = deep(tmp_path / "whole", {i: level * 257 for i, level in GREYS.items()})
    told = run(good, bad, "--gt", whole, "--protocol", "dpdd_float_16")
    assert told.exit_code == 0 and told.stderr.count("results of 8 bits a channel under dpdd_float_16") == 2


def test_of_one_picture_there_are_figures_but_no_interval_and_no_test(tmp_path: Path) -> None:
    folders = [greys(tmp_path / name, off, ["00690"]) for name, off in (("gt", 0), ("good", GOOD), ("bad", BAD))]
    ended = run(*folders[1:], "--gt", folders[0], "--out", tmp_path / "out")
    assert ended.exit_code == 0, ended.output
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert found["methods"][0]["figures"]["psnr"] == pytest.approx(psnr(GOOD))
    assert [d["why"] for d in found["differences"]] == [
        "1 of the pictures have it of every method: interval and test take at least two"
    ] * 2


def test_several_protocols_have_columns_of_their_own_with_the_figures_of_each(tmp_path: Path) -> None:
    truth = {f"{i}": textured(i) for i in range(3)}
    worse = {i: np.clip(x.astype(int) + textured(9) % 30, 0, 255).astype(np.uint8) for i, x in truth.items()}
    gt, same, noisy = (
        write(tmp_path / name, pictures) for name, pictures in (("gt", truth), ("same", truth), ("noisy", worse))
    )
    names = ("derain_y", "gopro_matlab")
    ended = run(same, noisy, "--gt", gt, *(x for n in names for x in ("--protocol", n)), "--out", tmp_path / "out")
    assert ended.exit_code == 0, ended.output
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert list(found["protocols"]) == list(names) and "PSNR (derain_y)" in ended.stdout
    for name in names:
        each = [measure(name, worse[i], truth[i]) for i in truth]
        for figure in ("psnr", "ssim"):
            expected = np.mean([values[figure] for values in each])
            assert found["methods"][1]["figures"][f"{figure}@{name}"] == pytest.approx(expected, abs=1e-9)


def test_results_on_a_public_set_are_held_against_its_own_originals_by_its_own_protocol(tmp_path: Path) -> None:
    root, small = tmp_path / "set", ("--side", 32, "--train", 2, "--test", 2)
    made = CliRunner().invoke(
        cli.app, ["data", "make", "rain100l", str(root), "--photos", str(photos(tmp_path / "photos")), *map(str, small)]
    )
    assert made.exit_code == 0, made.output
    inputs = next(root.rglob("test/Rain100L/input"))
    pictures = {path.stem: np.asarray(Image.open(path).convert("RGB")) for path in inputs.iterdir()}
    unchanged = write(tmp_path / "unchanged", pictures)
    black = write(tmp_path / "dark", {i: picture // 2 for i, picture in pictures.items()})
    ended = run(unchanged, black, "--set", "rain100l", "--gt", root, "--out", tmp_path / "out")
    assert ended.exit_code == 0, ended.output
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert list(found["protocols"]) == ["derain_y"] and "published set has 100" in ended.stderr
    given, same, dark = (m["figures"]["psnr"] for m in found["methods"])
    assert given == pytest.approx(same, abs=1e-9) and dark < same


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a", "--gt", "g"], "1 folder of results: a comparison takes at least 2; restorl evaluate measures one"),
        (["/nowhere", "/nowhere/b", "--gt", "/nowhere/c"], "/nowhere is no folder"),
        (["x=a", "x=b", "--gt", "g"], "two folders are called 'x': give them names"),
        (["input=a", "x=b", "--gt", "g"], "'input' is what the degraded pictures are called"),
        (["a", "b", "--gt", "g", "--match", "best"], "--match best: choose stem, digits, group or sorted"),
        (["a", "b", "--gt", "g", "--protocol", "psnr-y"], "'psnr-y' is unknown; choose one of"),
        (["a", "b", "--gt", "g", "--lpips", "/nowhere"], "is absent"),
        (["a", "b", "--gt", "g", "--set", "rain100"], "no public set named 'rain100'"),
        (["a", "b", "--gt", "g", "--set", "rain100h", "--lq", "c"], "leave out --lq and --match"),
        (["a", "b", "--gt", "g", "--crop", "1"], "give --out FOLDER, too"),
        (["a", "b", "--gt", "g", "--crop", "1:2,3", "--out", "o"], "give ID, or ID:X,Y,WIDTH,HEIGHT in pixels"),
        (["a", "b", "--gt", "g", "--crop", "1:2,3,0,9", "--out", "o"], "at least 4 px a side"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments: list[str], said: str) -> None:
    ended = run(*arguments)
    assert ended.exit_code == 2, ended
    (line,) = ended.stderr.strip().splitlines()
    assert said in line and "Traceback" not in ended.output


def test_a_crop_that_is_nowhere_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    gt, good, bad = greys(tmp_path / "gt"), greys(tmp_path / "good", GOOD), greys(tmp_path / "bad", BAD)
    unknown = run(good, bad, "--gt", gt, "--crop", "7", "--out", tmp_path / "out")
    assert unknown.exit_code == 2 and "crop of '7': no such picture; there are 00690, 00691, 00692" in unknown.stderr
    outside = run(good, bad, "--gt", gt, "--crop", "00690:40,8,32,32", "--out", tmp_path / "out")
    assert "crop of 00690: 40,8,32,32 leaves the picture, which has 64x48" in outside.stderr
    assert not (tmp_path / "out").exists()
