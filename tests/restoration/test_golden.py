"""Our networks and samplers give the numbers of the reference implementations."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.golden.__main__ import check_file, main
from tests.golden.case import Golden, recipe_tensor

FOLDER = Path(__file__).resolve().parents[1] / "golden"
FILES = sorted(FOLDER.glob("*.json"))


def test_the_golden_files_are_there() -> None:
    assert len(FILES) >= 52


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_golden_file_is_met(file: Path) -> None:
    verdict = check_file(file)
    assert verdict.status == "ok", verdict


def copy(stem: str, to: Path) -> None:
    for suffix in (".json", ".safetensors"):
        shutil.copy(FOLDER / f"{stem}{suffix}", to)


def change(file: Path, name: str, by: float) -> None:
    tensors = load_file(file)
    tensors[name].view(-1)[0] += by
    save_file(tensors, file)


def test_a_difference_beyond_the_tolerance_is_a_fail_and_the_exit_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy("restormer_bias", tmp_path)
    assert main([str(tmp_path)]) == 0
    change(tmp_path / "restormer_bias.safetensors", "out.y", 0.01)
    assert main([str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "FAIL" in printed and "total: 0 ok, 1 FAIL, 0 not implemented" in printed


def test_an_output_that_we_do_not_compute_is_a_fail(tmp_path: Path) -> None:
    copy("restormer_bias", tmp_path)
    tensors = load_file(tmp_path / "restormer_bias.safetensors")
    save_file(tensors | {"out.extra": torch.zeros(1)}, tmp_path / "restormer_bias.safetensors")
    verdict = check_file(tmp_path / "restormer_bias.json")
    assert verdict.status == "FAIL" and "extra: not computed" in verdict.note


def test_an_unknown_file_is_not_implemented_and_no_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.json").write_text(json.dumps({"name": "other", "config": {}}))
    save_file({"in.x": torch.zeros(1), "out.y": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert main([str(tmp_path)]) == 0
    assert "other" in capsys.readouterr().out


def test_a_step_whose_reference_has_no_density_must_be_untrained_in_ours(tmp_path: Path) -> None:
    copy("ddim_logprob", tmp_path)
    file, tag = tmp_path / "ddim_logprob.json", "epsilon.eta1.t1"
    described = json.loads(file.read_text())
    tensors = load_file(file.with_suffix(".safetensors"))
    for name in ("logp", "logp_other"):
        tensors[f"out.{tag}.{name}"].fill_(torch.nan)
    save_file(tensors, file.with_suffix(".safetensors"))
    assert "finite where the reference has no density" in check_file(file).note
    # the same step with t = t_prev has no noise, hence no density, and its state does not move
    case = described["config"]["cases"][tag]
    case["timestep"] = case["prev_timestep_used"] = 1
    file.write_text(json.dumps(described))
    for name in ("prev", "mean"):
        tensors[f"out.{tag}.{name}"] = tensors[f"in.sample.k{case['k']}"].clone()
    tensors[f"out.{tag}.std"].zero_()
    save_file(tensors, file.with_suffix(".safetensors"))
    verdict = check_file(file)
    assert verdict.status == "ok" and "6 values without density" in verdict.note, verdict


def test_the_weight_recipe_follows_the_key_and_not_the_order() -> None:
    assert torch.equal(recipe_tensor("a.weight", [2, 3]), recipe_tensor("a.weight", [2, 3]))
    assert not torch.equal(recipe_tensor("a.weight", [2, 3]), recipe_tensor("b.weight", [2, 3]))
    scale = recipe_tensor("attn.temperature", [4, 1, 1])
    assert (scale - 1).abs().max() < 0.5


def test_weight_factors_and_stored_buffers_replace_the_recipe(tmp_path: Path) -> None:
    described = {
        "state": {"net": {"a.weight": [2], "table": [2]}},
        "buffers": {"net": ["table"]},
        "weight_factors": {"a.": 10.0},
    }
    (tmp_path / "x.json").write_text(json.dumps(described))
    save_file({"buffers.net.table": torch.tensor([5.0, 6.0])}, tmp_path / "x.safetensors")
    state = Golden.read(tmp_path / "x.json").state("net")
    assert state["table"].tolist() == [5, 6]
    assert torch.equal(state["a.weight"], recipe_tensor("a.weight", [2]) * 10)


def test_a_folder_without_golden_files_is_an_error(tmp_path: Path) -> None:
    assert main([str(tmp_path)]) == 2
    assert main([str(tmp_path / "absent")]) == 2


def test_the_table_of_keys_counts_what_is_consumed_missing_unknown_and_of_another_shape(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = json.loads((FOLDER / "restormer_bias.full_keys.json").read_text())
    (tmp_path / "restormer_bias.full_keys.json").write_text(json.dumps(layout))
    assert main(["--keys", str(tmp_path)]) == 0
    count = len(layout["state"])
    assert capsys.readouterr().out.splitlines()[1].split()[:6] == ["restormer_bias", *map(str, (count, count, 0, 0, 0))]
    first, second, *_ = (
        k for k in layout["state"] if k.startswith("encoder_level1.") and k.endswith("project_in.weight")
    )
    layout["state"]["invented.weight"] = [1]
    del layout["state"][first]
    layout["state"][second] = [7, 7, 1, 1]
    (tmp_path / "restormer_bias.full_keys.json").write_text(json.dumps(layout))
    assert main(["--keys", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert printed.splitlines()[1].split()[:6] == ["restormer_bias", *map(str, (count, count - 2, 1, 1, 1))]
    assert "total: 0 met, 1 not met, 0 not implemented" in printed
