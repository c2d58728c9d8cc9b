"""What went wrong with one file, in one line that names it, for lists of what could not be done."""

from __future__ import annotations

import torch

from restoration.image_files import normal

# Errors that are a file's own fault, and say so in words; of others the class is told too.
EXPECTED = (ValueError, OSError)
_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")


def told(name: object, error: BaseException, memory_advice: str) -> str:
    """One line about `error`, which befell the file or picture `name`.

    Args:
        memory_advice: what to do where there was not enough memory.
    """
    reason = reason_of(error, memory_advice)
    called = normal(str(name))
    return reason if reason.startswith(f"{called}: ") else f"{called}: {reason}"


def reason_of(error: BaseException, memory_advice: str) -> str:
    """As `told`, where the name stands elsewhere."""
    if is_memory(error):
        return f"not enough memory for it; {memory_advice}"
    reason = (error.strerror if isinstance(error, OSError) else None) or _first_line(error)
    return normal(reason if isinstance(error, EXPECTED) else f"{type(error).__name__}: {reason}")


def is_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the machine or of a GPU."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _MEMORY)


def free_memory(error: BaseException) -> None:
    """After a GPU's memory ran out, give back what torch keeps for reuse."""
    if is_memory(error) and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
