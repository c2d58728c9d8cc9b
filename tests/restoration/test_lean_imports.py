"""Each case is a process of its own: what is imported first decides."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEAN = """
import sys
import actors.actor, learner.learner, cluster.run.driver
from restoration.base_models import class_of, KINDS
for kind in KINDS:
    class_of(kind)
heavy = {"peft", "scipy.ndimage", "scipy.stats", "torch._dynamo", "torch._inductor", "transformers.modeling_utils"}
heavy &= sys.modules.keys()
assert not heavy, heavy
many = [name for name in sys.modules if name.startswith("diffusers.models.transformers.")]
assert len(many) < 30, many
"""
# A LoRA is trained, saved and read without the models that peft can adapt.
LORA = """
import sys
import cluster
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.tuners.lora import LoraConfig
from peft.mapping import inject_adapter_in_model
net = torch.nn.Sequential(torch.nn.Linear(2, 2))
inject_adapter_in_model(LoraConfig(target_modules=["0"]), net)
net(torch.ones(1, 2)).sum().backward()
import peft.tuners.tuners_utils as peft_base
heavy = {"peft.peft_model", "sympy", "torch._dynamo", "torchvision", "transformers.modeling_utils"}
heavy &= sys.modules.keys()
assert not heavy, heavy
assert torch.distributed.tensor.Replicate.__module__.startswith("torch.distributed.tensor")
import torch.distributed.tensor
assert type(torch.distributed.tensor.DTensor) is not type(peft_base.PreTrainedModel)
from transformers import AutoModel, BertConfig, PreTrainedModel
assert type(PreTrainedModel) is type
import peft
assert peft.__version__ and LoraConfig is peft.LoraConfig
assert isinstance(net[0], BaseTunerLayer) and isinstance(net[0], peft.tuners.lora.LoraLayer)
bert = AutoModel.from_config(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8))
assert isinstance(bert, peft.tuners.tuners_utils.PreTrainedModel)
model = peft.get_peft_model(bert, peft.LoraConfig(target_modules=["query"]))
assert isinstance(model, peft.PeftModel)
model(input_ids=torch.zeros(1, 2, dtype=torch.long)).last_hidden_state.sum().backward()
"""
# Pipelines, every kind of network and LoRA all need what was put off.
WHOLE = """
import cluster
import torch
from diffusers import AutoencoderKL, DDIMScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from diffusers.loaders import lora_base
from transformers import CLIPTextConfig, CLIPTextModel
from transformers import PreTrainedModel
import peft
text = CLIPTextModel(CLIPTextConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
assert isinstance(text, lora_base.PreTrainedModel) and issubclass(type(text), (int, lora_base.PreTrainedModel))
assert not isinstance(torch.nn.Linear(1, 1), lora_base.PreTrainedModel)
layer = peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["0"]), torch.nn.Sequential(torch.nn.Linear(2, 2)))
assert isinstance(layer[0], lora_base.BaseTunerLayer)
scheduler = EulerDiscreteScheduler(use_beta_sigmas=True)
scheduler.set_timesteps(4)
assert scheduler.sigmas.isfinite().all()
import diffusers.models.transformers as networks
assert networks.AuraFlowTransformer2DModel.__name__ in dir(networks)
from diffusers.hooks import apply_group_offloading, apply_layerwise_casting
from diffusers.hooks.layerwise_casting import _SHOULD_DISABLE_PEFT_INPUT_AUTOCAST
assert _SHOULD_DISABLE_PEFT_INPUT_AUTOCAST
from diffusers import StableDiffusionPipeline
from diffusers.loaders import StableDiffusionLoraLoaderMixin
assert issubclass(StableDiffusionPipeline, StableDiffusionLoraLoaderMixin)
net = torch.nn.Sequential(torch.nn.Linear(4, 4))
apply_group_offloading(net, torch.device("cpu"), torch.device("cpu"), "leaf_level")
assert net(torch.zeros(1, 4)).shape == (1, 4)
try:
    networks.no_such_network
except AttributeError as error:
    assert "no_such_network" in str(error)
else:
    raise AssertionError
"""


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


@pytest.mark.timeout(300)
def test_a_role_imports_every_kind_of_model_without_what_none_of_them_uses() -> None:
    run(LEAN)


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_peft_adapts_our_networks_without_loading_transformers_and_its_models_as_ever() -> None:
    run(LORA)


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_diffusers_has_all_it_has_when_it_is_asked_for() -> None:
    run(WHOLE)
