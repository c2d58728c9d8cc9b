"""`level_tokens`: what DeQA-Score and Q-Align do, with any vision-language model that transformers knows.

The model is asked how good a picture is, its answer is begun for it, and the score is the mean of what the levels are
worth under the probabilities of its next word. Only the last position is computed, and all pictures of a pass have one
size and one prompt, so that nothing is ever padded: a picture gets the score that it gets alone.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from restoration.checkpoints import CheckpointError, check_fetched
from restoration.file_kinds import first
from restoration.precision import resolve
from restoration.trouble import is_memory
from reward_service.scorers.digests import summary_of
from reward_service.scorers.interface import check_block
from reward_service.scorers.offline import offline
from reward_service.scorers.passes import in_passes, spread_over_places

LEAST_SIDE = 32
NATIVE = 512
"""Side of the pictures that estimates are for; the models take any size."""
_FILES = (
    "config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
    "tokenizer.model", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json",
    "chat_template.json", "chat_template.jinja",
)  # fmt: skip
"""What in a model's folder changes how a picture reaches the model."""
_TOLERANCE = {torch.float32: 2.5e-5, torch.float16: 2.5e-3, torch.bfloat16: 2e-2}
"""The most that a score changes with its company, as a share of the range: one rounding of the level logits."""


@dataclass(frozen=True)
class LevelSettings:
    """How a model is asked; all of it is part of the version.

    Args:
        question: what stands beside the picture in the model's own chat template.
        stem: how its answer begins.
        levels: the words that may follow, from best to worst, without the space before them.
        level_weights: what they are worth.
        prompt: the whole text before the stem, with the model's own mark of a picture in it, in place of chat
            template and question.
        template: further variables of the chat template, such as {enable_thinking: false}.
        processor: settings of the image processor that replace the folder's, such as {size: {...}}.
        deterministic: every pass has the same number of rows, filled up with grey pictures, so that a score has the
            same bits in any company. Tried at each size of pictures when it first comes.
    """

    question: str = "How would you rate the quality of this image?"
    stem: str = "The quality of the image is"
    levels: tuple[str, ...] = ("excellent", "good", "fair", "poor", "bad")
    level_weights: tuple[float, ...] = (5.0, 4.0, 3.0, 2.0, 1.0)
    prompt: str = ""
    template: Mapping[str, Any] = field(default_factory=dict)
    processor: Mapping[str, Any] = field(default_factory=dict)
    deterministic: bool = False

    def __post_init__(self) -> None:
        levels, weights = list(self.levels), list(self.level_weights)
        if len(levels) < 2 or len(set(levels)) < len(levels) or not all(level.strip() for level in levels):
            raise ValueError(f"levels={levels}: two different words at least, from best to worst")
        if len(weights) != len(levels) or not all(math.isfinite(weight) for weight in weights):
            raise ValueError(f"level_weights={weights}: one finite number for each of {', '.join(levels)}")
        if any(better <= worse for better, worse in zip(weights, weights[1:], strict=False)):
            raise ValueError(f"level_weights={weights}: must fall from {levels[0]} to {levels[-1]}")
        if not self.prompt and not self.question:
            raise ValueError("question='': ask something, or give the whole text as `prompt`")

    def spelt(self, level: str) -> str:
        """A level as it follows the stem."""
        return level if not self.stem or self.stem[-1].isspace() else f" {level}"


class LevelTokens:
    """Scores between the least and the greatest of the level weights, 1 to 5 by default.

    Args:
        weights: folder of the model: config, safetensors, tokenizer and processor as transformers saves them.
        device: where to run.
        dtype: float32, bfloat16, float16, or auto, which is bfloat16 where the device multiplies it in hardware.
        batch: pictures a pass at most; halved, with a warning, when memory runs out. By default 1 on a CPU, where no
            company can then change a score, and 16 elsewhere.
        question, stem, levels, level_weights, prompt, template, processor, deterministic: of `LevelSettings`.

    Attributes:
        least_side, preferred_batch, batch_tolerance: pixels a side that pictures must have, pictures that fill a
            pass, and how far a score may move with its company.

    Raises:
        ValueError: files that are absent or don't fit; a prompt that the model's processor refuses; a level that is no
            single token after the stem; a setting that is none; `deterministic` where the device doesn't keep it.
        MemoryError: the weights don't fit on the device.
    """

    name = "level_tokens"
    least_side = LEAST_SIDE

    def __init__(
        self,
        weights: str | Path | None = None,
        device: str = "cpu",
        dtype: str = "auto",
        batch: int | None = None,
        question: str = LevelSettings.question,
        stem: str = LevelSettings.stem,
        levels: Sequence[str] = LevelSettings.levels,
        level_weights: Sequence[float] = LevelSettings.level_weights,
        prompt: str = "",
        template: Mapping[str, Any] | None = None,
        processor: Mapping[str, Any] | None = None,
        deterministic: bool = False,
    ) -> None:
        if weights is None:
            raise ValueError(f"scorer {self.name} needs `weights`, the folder of a model: see docs/reward.md")
        self.device = torch.device(device)
        self.batch = batch if batch is not None else 1 if self.device.type == "cpu" else 16
        if isinstance(self.batch, bool) or not isinstance(self.batch, int) or self.batch < 1:
            raise ValueError(f"batch={batch!r}: a whole number of at least 1")
        self.settings = LevelSettings(
            question,
            stem,
            tuple(map(str, levels)),
            tuple(map(float, level_weights)),
            prompt,
            dict(template or {}),
            dict(processor or {}),
            deterministic,
        )
        self.dtype = resolve(dtype, self.device)
        self.range = (self.settings.level_weights[-1], self.settings.level_weights[0])
        folder = Path(weights)
        self._processor, self._model = self._load(folder)
        self._text = self._prompt(folder)
        self._special = not _begins_itself(self._processor.tokenizer, self._text)
        self._ids = torch.tensor(self._level_ids(folder), device=self.device)
        self._values = torch.tensor(self.settings.level_weights, device=self.device)
        self._last_only = "logits_to_keep" in inspect.signature(self._model.forward).parameters
        self.tokens = self._try_prompt(folder)
        self.version = self._version(folder)
        self._proven: set[tuple[int, int]] = set()  # sizes at which a picture's place changed no bit

    @property
    def preferred_batch(self) -> int:
        return self.batch

    @property
    def batch_tolerance(self) -> float:
        if self.batch == 1 or self.settings.deterministic:
            return 0.0
        return _TOLERANCE[self.dtype] * (self.range[1] - self.range[0])

    def memory_bytes(self, batch: int | None = None) -> int:
        """An estimate of what the device must hold: the weights, and a layer's work for `batch` pictures of 512 x 512.

        Twice the largest layer of the language model, since the vision models' are of about its size.
        """
        parameters = sum(p.numel() * p.element_size() for p in self._model.parameters())
        config = self._model.config.get_text_config()
        width = config.hidden_size
        inside = getattr(config, "intermediate_size", None) or 4 * width
        work = 2 * self.tokens * self.dtype.itemsize * (4 * inside + 8 * width)
        return int(parameters + (batch or self.batch) * work)

    @torch.inference_mode()
    def score(self, images: Any) -> np.ndarray:
        """uint8 [N, H, W, 3] RGB, sides of at least 32 -> float32 [N] in `range`; NaN where the model gives none.

        Raises:
            ValueError: another dtype or shape, smaller pictures, or a shape that the model's processor refuses, or at
                which `deterministic` isn't kept.
            MemoryError: not even one picture fits, or `deterministic` forbids a smaller batch.
        """
        images = check_block(images, LEAST_SIDE)
        if self.settings.deterministic and images.shape[1:3] not in self._proven:
            self._require_equal_bits(*images.shape[1:3])
        return self.probed(images)

    @torch.inference_mode()
    def probed(self, images: np.ndarray) -> np.ndarray:
        """As `score`, of pictures at whose size `deterministic` need not be kept: the probe's, held to a tolerance."""
        kept = self.settings.deterministic
        found = in_passes(self, len(images), lambda i, j: self._scores(images[i:j]), filled=kept, kept=kept)
        return found.cpu().numpy()

    def _scores(self, images: np.ndarray) -> Tensor:
        """float32 [B], on the device."""
        rows = len(images)
        if self.settings.deterministic:
            grey = np.full((self.batch - rows, *images.shape[1:]), 128, np.uint8)
            images = np.concatenate([images, grey])
        levels = self._levels(self._inputs(images))[:rows]
        # row by row: a product of matrices may add up in another order for other numbers of rows
        scores = (levels.softmax(-1) * self._values).sum(-1)
        return torch.where(levels.isfinite().all(-1), scores, torch.nan)

    def _inputs(self, images: np.ndarray) -> Any:
        """What the model takes, on the device: one prompt for every picture."""
        pictures = [[torch.tensor(image).permute(2, 0, 1)] for image in images]
        made = self._processor(
            text=[self._text] * len(images),
            images=pictures,
            text_kwargs={"add_special_tokens": self._special, "padding": False},
            images_kwargs=dict(self.settings.processor),
            return_tensors="pt",
        )
        return made.to(self.device, self.dtype)

    def _levels(self, inputs: Any) -> Tensor:
        """Logits of the levels in the last position, float32 [B, levels]."""
        kept = {"logits_to_keep": 1} if self._last_only else {}
        logits: Tensor = self._model(**inputs, use_cache=False, **kept).logits
        return logits[:, -1, self._ids].float()

    def _load(self, folder: Path) -> tuple[Any, Any]:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        if not (folder / "config.json").is_file():
            raise ValueError(
                f"scorer {self.name}: {folder} holds no config.json; give the folder of a downloaded "
                "vision-language model"
            )
        if (folder / "adapter_config.json").is_file():
            raise ValueError(f"scorer {self.name}: {folder} holds a LoRA; merge it into its model and save that")
        local = {"local_files_only": True, "trust_remote_code": False}
        try:
            check_fetched(folder)
            with offline():
                processor = AutoProcessor.from_pretrained(str(folder), **local)
                model, found = AutoModelForImageTextToText.from_pretrained(
                    str(folder),
                    dtype=self.dtype,
                    device_map={"": self.device},
                    use_safetensors=True,
                    output_loading_info=True,
                    **local,
                )
        except (CheckpointError, OSError, ValueError, TypeError, KeyError, RuntimeError, ImportError) as error:
            if is_memory(error):
                raise MemoryError(
                    f"scorer {self.name}: the weights don't fit on {self.device} in {self.dtype}: free memory, or give "
                    "it a larger device or part of one"
                ) from error
            raise ValueError(f"scorer {self.name}: {folder}: {_line(error)}") from error
        except Exception as error:  # of safetensors, whose class is its extension module's own
            raise ValueError(f"scorer {self.name}: {folder}: {type(error).__name__}: {_line(error)}") from error
        for what in ("missing", "unexpected", "mismatched"):
            if keys := found[f"{what}_keys"]:
                named = first(sorted(key if isinstance(key, str) else key[0] for key in keys))
                raise ValueError(f"scorer {self.name}: {folder} does not fit its config.json: {what} keys {named}")
        return processor, model.eval().requires_grad_(False)

    def _prompt(self, folder: Path) -> str:
        asked = self.settings
        if asked.prompt:
            return asked.prompt + asked.stem
        content = [{"type": "image"}, {"type": "text", "text": asked.question}]
        try:
            text = self._processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False, **asked.template
            )
        except Exception as error:  # whatever a template's program raises
            raise ValueError(
                f"scorer {self.name}: {folder} has no chat template that takes a picture and a question "
                f"({_line(error)}): give the whole text as `prompt`"
            ) from error
        return f"{text}{asked.stem}"

    def _level_ids(self, folder: Path) -> list[int]:
        """The token of each level behind the stem. Raises ValueError: a level that is none, or two of one token."""
        tokenizer = self._processor.tokenizer

        def ids(text: str) -> list[int]:
            return list(tokenizer(text, add_special_tokens=self._special)["input_ids"])

        before, found = ids(self._text), dict[str, int]()
        for level in self.settings.levels:
            whole = ids(self._text + self.settings.spelt(level))
            if len(whole) != len(before) + 1 or whole[:-1] != before:
                shown = tokenizer.convert_ids_to_tokens(whole[len(before) - 1 :])
                raise ValueError(
                    f"scorer {self.name}: {folder}: the level {level!r} is no single token behind "
                    f"{self._text[-40:]!r}, whose last one it makes {first(map(str, shown), 6)}: choose another "
                    "word in `levels`, or another `stem`"
                )
            if (other := next((name for name, number in found.items() if number == whole[-1]), None)) is not None:
                raise ValueError(
                    f"scorer {self.name}: {folder}: {other!r} and {level!r} are the same token; choose other `levels`"
                )
            found[level] = whole[-1]
        return list(found.values())

    def _try_prompt(self, folder: Path) -> int:
        """Tokens of the prompt with a picture of 512 x 512. Raises ValueError: the processor refuses it."""
        try:
            ids = self._inputs(np.full((1, NATIVE, NATIVE, 3), 128, np.uint8))["input_ids"]
        except (ValueError, TypeError, IndexError, KeyError) as error:
            raise ValueError(
                f"scorer {self.name}: {folder}: its processor refuses a picture with the text {self._text[:80]!r} "
                f"({_line(error)}): does `prompt` have the model's own mark of a picture, once?"
            ) from error
        return int(ids.shape[1])

    def _version(self, folder: Path) -> str:
        import transformers

        found = hashlib.sha256()
        for name, value in sorted(self._model.state_dict().items()):
            found.update(name.encode() + b"\0" + summary_of(value))
        for name in _FILES:
            if (file := folder / name).is_file():
                found.update(name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
        # Another version of transformers may prepare pictures, or compute, in another way.
        said = {**asdict(self.settings), "dtype": str(self.dtype), "transformers": transformers.__version__}
        if self.settings.deterministic:
            said["batch"] = self.batch
        found.update(json.dumps(said, sort_keys=True, default=str).encode())
        return f"{self.name}-{found.hexdigest()[:16]}"

    @torch.inference_mode()
    def _require_equal_bits(self, height: int, width: int) -> None:
        """Raises ValueError unless pictures of a size have the same bits in every row and beside every other.

        Vision models that lay the patches of all pictures in one row keep that at some sizes only.
        """
        noise = np.random.default_rng(0).integers(0, 256, (self.batch, height, width, 3), dtype=np.uint8)
        spread = spread_over_places(
            lambda order: in_passes(
                self, len(order), lambda i, j: self._scores(noise[list(order)][i:j]), filled=True, kept=True
            ),
            self.batch,
        )
        if spread:
            raise ValueError(
                f"scorer {self.name}: deterministic=true, but on {self.device} the score of a picture of "
                f"{width}x{height} differs by {spread:.1e} with its place in a batch of {self.batch}: set batch=1, or "
                "another size"
            )
        self._proven.add((height, width))


def _begins_itself(tokenizer: Any, text: str) -> bool:
    """Whether a text has the mark of the beginning already, which the tokenizer must not put before it again."""
    return tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
