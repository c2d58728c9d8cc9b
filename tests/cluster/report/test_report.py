from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.report.data import bootstrap_interval, compare, facts, read_run, read_scores, smooth, wasserstein
from cluster.report.report import _sliders, write_report
from restoration.evaluate import Row, read_csv, write_csv
from tests.cluster.report.synthetic_run import make_run, write_scores, write_spans


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_spans(make_run(tmp_path_factory.mktemp("runs") / "demo"))


class _Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag not in ("meta", "img", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_is_one_file_that_asks_for_nothing_outside_itself(run: Path) -> None:
    text = write_report(run).read_text()
    page = _Page(text)
    assert page.open == []
    assert len(page.links) >= 4 + 3 + 4 and all(link.startswith("data:image/png;base64,") for link in page.links)
    for link in page.links:
        Image.open(io.BytesIO(base64.b64decode(link.split(",")[1]))).verify()
    rest = re.sub(r'"data:[^"]*"', "", text)
    assert "http" not in rest and "url(" not in rest and "@import" not in rest and "<link" not in rest


def test_every_section_is_there_and_the_configuration_is_escaped(run: Path) -> None:
    text = write_report(run).read_text()
    titles = re.findall("<h2>(.*?)</h2>", text)
    assert titles == [
        *(
            "Held-out photographs",
            "Alarms",
            "Drift",
            "Before and after",
            "Reward",
            "Terms of the reward",
            "Scores",
            "Images",
            "Gradients",
        ),
        *("Pace", "One iteration", "The run", "Configuration"),
    ]
    assert "timeline of one iteration" in text
    assert "demo &lt;rain&gt;" in text and "2.60.0" in text and "8 min 42 s" in text and "5.25 GiB" in text


def test_looks_are_shown_as_drift_from_the_ground_truth_and_alarms_are_told(run: Path) -> None:
    text = write_report(run).read_text()
    assert "<th>Brightness</th><td>-0.2500</td><td>-0.0500</td><td>-0.0200</td>" in text
    assert "<th>iteration 60</th><td>the reward rises while ssim falls by 0.1 &lt;b&gt;</td>" in text
    compared = compare(read_run(run).base, read_run(run).tuned)
    assert [c.metric for c in compared] == ["psnr", "ssim", "reward"]


def test_the_table_has_means_and_the_paired_difference(run: Path) -> None:
    text = write_report(run).read_text()
    row = re.search(r"<tr><th>PSNR \(dB\)</th>(.*?)</tr>", text)
    assert row is not None
    cells = re.findall(r"<td[^>]*>(?:<b>)?(.*?)(?:</b>)?</td>", row.group(1))
    assert cells[:4] == ["18.00", "24.55", "24.75", "+0.20"]
    data = read_run(run)
    psnr, ssim, reward = compare(data.base, data.tuned)
    assert (psnr.metric, psnr.count, psnr.degraded) == ("psnr", 12, 18.0)
    assert psnr.difference == pytest.approx(0.2) and 0.1 < psnr.low < 0.2 < psnr.high < 0.3 and psnr.verdict == "up"
    assert ssim.difference == pytest.approx(0, abs=1e-9) and ssim.verdict == "unclear"
    assert reward.difference == pytest.approx(0.3) and reward.degraded == 2.0


def test_images_are_paired_by_id_and_not_by_row(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    (evaluation / "base.csv").write_text("image_id,psnr,gt_reward\na,10,\nb,20,\nc,30,\n")
    (evaluation / "rl.csv").write_text("image_id,psnr\nc,31\nb,21\na,nan\n")
    run = read_run(tmp_path)
    (psnr,) = compare(run.base, run.tuned)
    assert (psnr.count, psnr.base, psnr.tuned, psnr.difference, psnr.low, psnr.high) == (2, 25, 26, 1, 1, 1)
    (evaluation / "rl.csv").write_text("image_id,psnr\na,31\nb,21\nd,1\n")
    with pytest.raises(ValueError, match="not of the same images; evaluate both again"):
        read_run(tmp_path)


def test_figures_that_some_images_lack_are_told_with_their_number(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    lacking = {"ssim": "8x8 is too small"}
    for who in ("base", "rl"):
        rows = read_csv(run / "evaluation" / f"{who}.csv")
        rows[2] = Row(rows[2].image_id, rows[2].values | {"ssim": float("nan")}, lacking)
        write_csv(run / "evaluation" / f"{who}.csv", rows)
    assert "missing" not in read_scores(run / "evaluation" / "rl.csv")
    text = write_report(run).read_text()
    assert "Means over 12 images (those that have the figure: SSIM 11)." in text and ">nan" not in text


def test_the_bootstrap_interval_covers_the_mean_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        low, high = bootstrap_interval(rng.normal(0.3, 1.0, 40), draws=500)
        covered += low <= 0.3 <= high
    assert 0.90 <= covered / 200 <= 0.98


def test_the_distance_to_the_ground_truth_is_wasserstein_1() -> None:
    assert wasserstein([1.0, 2.0], [2.0, 3.0]) == pytest.approx(1.0)
    assert np.isnan(wasserstein([], [1.0]))


def test_smoothing_starts_at_the_first_value_and_keeps_a_constant() -> None:
    assert smooth([3.0, 3.0, 3.0]) == pytest.approx([3.0, 3.0, 3.0])
    assert smooth([0.0, 1.0], decay=0.5) == pytest.approx([0.0, 2 / 3])


def test_a_run_that_has_just_begun_has_a_report_too(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: new\n")
    text = write_report(tmp_path, tmp_path / "elsewhere.html").read_text()
    assert re.findall("<h2>(.*?)</h2>", text) == ["Configuration"]
    assert facts(read_run(tmp_path)) == []
    (tmp_path / "run.json").write_text('{"run_id": "new-1", "finished": null}')
    assert facts(read_run(tmp_path)) == [("run id", "new-1")]


def test_a_folder_that_is_no_run_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="give the folder of a run"):
        write_report(tmp_path)
    write_scores(tmp_path / "base.csv", 2)
    text = (tmp_path / "base.csv").read_text()
    (tmp_path / "base.csv").write_text(text.replace("0.5", "half", 1))
    with pytest.raises(ValueError, match=r"base\.csv:2: input_ssim='half' is no number"):
        read_scores(tmp_path / "base.csv")
    (tmp_path / "base.csv").write_text("psnr\n1\n")
    with pytest.raises(ValueError, match="no rows with an image_id"):
        read_scores(tmp_path / "base.csv")
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json: not JSON"):
        read_run(tmp_path)


def test_a_slider_has_every_side_that_is_there_and_begins_with_base_and_rl(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", images=3, iterations=3)
    text = _sliders(folder)
    assert re.findall('data-left="([^"]*)" data-right="([^"]*)"', text) == [("base", "RL")] * 2
    assert re.findall('data-side="([^"]*)"', text) == ["base", "RL"] * 2
    # Both are seen where scripts are blocked, too.
    assert re.findall('<img class="([^"]*)" alt="[^"]*, ([^"]*)"', text) == [("left", "base"), ("right", "RL")] * 2
    for who in ("input", "gt"):
        (folder / "evaluation" / who).mkdir()
        Image.new("RGB", (96, 96)).save(folder / "evaluation" / who / "coffee.png")
    text = _sliders(folder)
    assert re.findall('data-side="([^"]*)"', text) == ["base", "RL", "input", "base", "RL", "truth"]
    assert re.findall("<button[^>]*>([^<]*)</button>", text)[4:] == ["input", "base", "RL", "truth"] * 2
    assert re.findall("<button[^>]* class=on>([^<]*)</button>", text) == ["base", "RL"] * 2


def test_the_chain_is_shown_where_one_was_made_and_is_part_of_the_page(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: new\n")
    assert "The chain" not in write_report(tmp_path).read_text()
    Image.new("RGB", (32, 32)).save(tmp_path / "chain.webp")
    text = write_report(tmp_path).read_text()
    encoded = base64.b64encode((tmp_path / "chain.webp").read_bytes()).decode()
    assert "<h2>The chain</h2>" in text and f'src="data:image/webp;base64,{encoded}"' in text
