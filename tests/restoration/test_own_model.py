"""The model of docs/own_model.md, run as it stands there."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel

from actors.rollout import PairBatch, RolloutSettings, rollout
from restoration import base_models
from restoration.adapters import AdaptSettings, make_trainable
from restoration.base_models.interface import BaseModel, SamplerSettings
from tests.restoration import released_folders as files

PAGE = Path(__file__).parents[2] / "docs" / "own_model.md"


@pytest.fixture
def concat(monkeypatch: pytest.MonkeyPatch) -> Any:
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert code is not None and code[1].count("\n") <= 60
    module = types.ModuleType("own_model")
    monkeypatch.setitem(sys.modules, "own_model", module)
    exec(compile(code[1], str(PAGE), "exec"), module.__dict__)
    monkeypatch.setitem(base_models.KINDS, "concat", "own_model:Concat")
    return module


def test_the_example_of_the_page_is_converted_saved_loaded_and_rolled_out(concat: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    down, up = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
    unet = UNet2DModel(
        in_channels=8, out_channels=4, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
        down_block_types=down, up_block_types=up, attention_head_dim=8,
    )  # fmt: skip
    unet.save_pretrained(tmp_path / "base" / "unet")
    files.small_vae().save_pretrained(tmp_path / "base" / "vae")
    cleaner = files.write_cleaner(tmp_path / "cleaner.pth")
    base_models.convert("concat", {"base": tmp_path / "base", "cleaner": cleaner}, tmp_path / "model")
    model = base_models.load(tmp_path / "model")
    assert isinstance(model, BaseModel) and isinstance(model, concat.Concat)
    make_trainable(model, AdaptSettings(rank=2))
    lq, gt = torch.rand(2, 1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    batch = PairBatch(["a"], [(0, 0, 32, 48)], [False], lq, gt)
    settings = RolloutSettings(images_per_batch=1, rollouts_per_image=2)
    rolled = rollout(model, batch, SamplerSettings(steps=3), settings, torch.Generator().manual_seed(0))
    assert rolled.log_probs.shape == (2, 2) and rolled.log_probs.isfinite().all()
    assert (rolled.states[0] != rolled.states[1]).any()
