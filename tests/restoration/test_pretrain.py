"""Training from scratch: in which number type each stage computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from restoration.pretrain import cleaner as cleaner_module
from restoration.pretrain import denoiser as denoiser_module
from restoration.pretrain import run
from restoration.pretrain import vae as vae_module
from restoration.pretrain.cleaner import CleanerRecipe
from restoration.pretrain.denoiser import DenoiserRecipe
from restoration.pretrain.run import PretrainRecipe, pretrain
from restoration.pretrain.vae import VaeRecipe

TINY = {
    "vae": VaeRecipe(channels=(8, 8, 8), iterations=1, batch_size=1, crop=32),
    "cleaner": CleanerRecipe(
        network={"dim": 8, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1}, iterations=1, batch_size=1
    ),
    "denoiser": DenoiserRecipe(
        network={"channels": [32], "layers_per_block": 1}, iterations=1, batch_size=1, crop=32, pool=1, whole=0
    ),
}


@pytest.mark.parametrize(
    ("products", "native", "wanted"),
    [
        ("auto", True, {torch.bfloat16}),
        ("auto", False, {torch.float32}),
        ("bfloat16", False, {torch.bfloat16}),
    ],
)
def test_each_stage_multiplies_in_what_the_processor_is_made_for_unless_it_is_named(
    products: Any,
    native: bool,
    wanted: set[torch.dtype],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    photo_folder: Path,
) -> None:
    found: dict[str, set[torch.dtype]] = {}

    def once(name: str, modules: list[nn.Module], loss: Any, **_: Any) -> dict[str, float]:
        def look(module: nn.Module, given: Any, made: torch.Tensor) -> None:
            found.setdefault(name, set()).add(made.dtype)

        hooks = [m.register_forward_hook(look) for k in modules for m in k.modules() if isinstance(m, nn.Conv2d)]
        assert loss()["loss"].dtype == torch.float32
        for hook in hooks:
            hook.remove()
        return {}

    for module in (vae_module, cleaner_module, denoiser_module):
        monkeypatch.setattr(module, "train", once)
    monkeypatch.setattr("restoration.precision.multiplies_bf16", lambda device: native)
    monkeypatch.setattr(run, "save_file", lambda *_: None)
    recipe = PretrainRecipe(photos=photo_folder, products=products, threads=1, **TINY)  # type: ignore[arg-type]
    if products == "bfloat16":
        with pytest.warns(UserWarning, match="products=bfloat16: bfloat16 takes about ten times as long"):
            pretrain(recipe, tmp_path / "out")
    else:
        pretrain(recipe, tmp_path / "out")
    assert found == {"vae": wanted, "cleaner": wanted, "denoiser": wanted}
