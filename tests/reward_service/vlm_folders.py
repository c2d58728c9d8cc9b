"""Folders of tiny vision-language models with random weights, as transformers saves them, and their tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from reward_service.scorers.level_tokens import LevelSettings

QWEN_MARKS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip
LLAVA_MARKS = ("<s>", "</s>", "<image>")
QWEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{% if c.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined %}<think>\n{% endif %}"
    "{% endif %}"
)
LLAVA_PROMPT = "USER: <image>\nHow would you rate the quality of this image?\nASSISTANT: "


def tokenizer(marks: tuple[str, ...], words: tuple[str, ...] = LevelSettings.levels) -> PreTrainedTokenizerFast:
    """Learnt from the prompts, so that each of their words is one token; "unheard" is several."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    said = [LevelSettings.question, LevelSettings.stem, "user assistant USER ASSISTANT", *(f"is {w}" for w in words)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        said * 5, trainers.BpeTrainer(vocab_size=600, special_tokens=list(marks), initial_alphabet=alphabet)
    )
    names = {"pad_token": marks[0], "eos_token": marks[1]}
    return PreTrainedTokenizerFast(tokenizer_object=made, extra_special_tokens=list(marks[2:]), **names)


def write_qwen(folder: Path, newer: bool = False, **of_tokenizer: Any) -> Path:
    """A Qwen2-VL or Qwen2.5-VL of two layers."""
    words = tokenizer(QWEN_MARKS, **of_tokenizer)
    ids = {mark: words.convert_tokens_to_ids(mark) for mark in QWEN_MARKS}
    text = {
        "vocab_size": len(words), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
    }  # fmt: skip
    vision: dict[str, Any] = {"depth": 2, "num_heads": 2, "patch_size": 14, "in_channels": 3}
    if newer:
        vision |= {
            "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 64, "fullatt_block_indexes": [1],
            "window_size": 56,
        }  # fmt: skip
    else:
        vision |= {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
    marks = {
        "image_token_id": ids["<|image_pad|>"], "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"], "vision_end_token_id": ids["<|vision_end|>"],
    }  # fmt: skip
    config = (Qwen2_5_VLConfig if newer else Qwen2VLConfig)(text_config=text, vision_config=vision, **marks)
    made = (Qwen2_5_VLForConditionalGeneration if newer else Qwen2VLForConditionalGeneration)(config)
    size = {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(size=size), words, Qwen2VLVideoProcessor(), chat_template=QWEN_TEMPLATE
    )
    return _save(folder, made, processor)


def write_llava(folder: Path, **of_tokenizer: Any) -> Path:
    """A LLaVA of a CLIP and a LLaMA of two layers, without a chat template."""
    words = tokenizer(LLAVA_MARKS, **of_tokenizer)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    text = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    image = words.convert_tokens_to_ids("<image>")
    made = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_id=image))
    square = {"height": 28, "width": 28}
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=square), words, patch_size=14,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    return _save(folder, made, processor)


def _save(folder: Path, made: Any, processor: Any) -> Path:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in sorted(made.named_parameters()):
            about = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            value.copy_(about + torch.randn(value.shape, generator=generator) * (0.1 if about else 0.3))
    made.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
