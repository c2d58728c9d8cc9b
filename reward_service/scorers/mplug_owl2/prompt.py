"""The question that DeQA-Score and Q-Align ask, as the token ids of LLaMA's vocabulary, and a check of a vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from restoration.checkpoints import CheckpointError, read_json
from restoration.file_kinds import head_of, not_fetched

IMAGE = -200
"""Stands for the picture."""
PROMPT = "USER: How would you rate the quality of this image?\n<|image|>\nASSISTANT: The quality of the image is"
PROMPT_IDS = (
    1, 3148, 1001, 29901, 1128, 723, 366, 6554, 278, 11029, 310, 445, 1967, 29973, 13, IMAGE,
    29871, 13, 22933, 9047, 13566, 29901, 450, 11029, 310, 278, 1967, 338,
)  # fmt: skip
LEVELS = ("excellent", "good", "fair", "poor", "bad")
LEVEL_IDS = (15129, 1781, 6534, 6460, 4319)

_SPACE = "\u2581"  # what a vocabulary writes for a space
_FILES = ("tokenizer.json", "tokenizer.model")


def check_tokenizer(folder: Path) -> bool:
    """Whether a vocabulary lies in the folder, after holding the ids of this file against it.

    Each level must be one token of the expected id, and the prompt's ids must spell the prompt.

    Raises:
        CheckpointError: another vocabulary, with the word and the ids; or a file that is none.
    """
    for name in _FILES:
        if (file := folder / name).is_file():
            _check(file, _of_json(file) if name.endswith(".json") else _of_sentencepiece(file))
            return True
    return False


def _check(file: Path, pieces: Mapping[int, str]) -> None:
    ids = {piece: number for number, piece in pieces.items()}
    for word, expected in zip(LEVELS, LEVEL_IDS, strict=True):
        if (found := ids.get(_SPACE + word)) != expected:
            raise CheckpointError(
                f"{file}: {word!r} has the token {'none' if found is None else found}, expected {expected}: the "
                "folder belongs to another model, or its vocabulary was changed"
            )
    at = PROMPT_IDS.index(IMAGE)
    parts = (PROMPT_IDS[1:at], PROMPT_IDS[at + 1 :])  # without the mark of the beginning
    for part, said in zip(parts, PROMPT.split("<|image|>"), strict=True):
        spelt = "".join(pieces.get(number, "?") for number in part).replace(_SPACE, " ").replace("<0x0A>", "\n")
        if spelt.removeprefix(" ") != said:
            raise CheckpointError(f"{file}: the prompt's tokens spell {spelt!r}, not {said!r}: another vocabulary")


def _of_json(file: Path) -> dict[int, str]:
    """Of a `tokenizer.json`."""
    model = read_json(file).get("model")
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    if not isinstance(vocabulary, Mapping) or not all(isinstance(v, int) for v in vocabulary.values()):
        raise CheckpointError(f"{file} holds no model.vocab of words and numbers: it is another tokenizer's")
    return {number: str(piece) for piece, number in vocabulary.items()}


def _of_sentencepiece(file: Path) -> dict[int, str]:
    """Of a sentencepiece model, a message of protocol buffers: each field 1 is a piece, whose field 1 is its text."""
    if (what := not_fetched(*head_of(file))) is not None:
        raise CheckpointError(f"{file} {what}")
    try:
        pieces = [value for number, value in _fields(file.read_bytes()) if number == 1]
        texts = [next(text for number, text in _fields(piece) if number == 1) for piece in pieces]
        found = {number: bytes(text).decode() for number, text in enumerate(texts)}
    except (ValueError, IndexError, StopIteration, TypeError) as error:
        raise CheckpointError(f"{file} is no sentencepiece model: {error or 'a piece without text'}") from error
    if not found:
        raise CheckpointError(f"{file} is no sentencepiece model: it holds no pieces")
    return found


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protocol buffers message: (number, bytes or integer)."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a number is too long")

    while at < len(message):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            yield number, varint()
            continue
        sizes = {1: 8, 5: 4}
        if kind != 2 and kind not in sizes:
            raise ValueError(f"field {number} is of an unknown kind {kind}")
        size = varint() if kind == 2 else sizes[kind]
        if at + size > len(message):
            raise ValueError("it is cut off")
        yield number, message[at : at + size]
        at += size
