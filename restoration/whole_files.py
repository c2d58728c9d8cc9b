"""Files that appear whole: written under another name in the same folder, then renamed."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """A system's error in here names `path`: that of a write names no file, or a temporary one.

    Raises:
        OSError: of the same class and number, with `path` as its file name.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename == str(path):
            raise
        raise OSError(error.errno, error.strerror or os.strerror(error.errno), str(path)) from error


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a hidden, unique path beside `path` to write to; it becomes `path` when the block ends well, else it goes.

    Its name doesn't hold that of `path`, since a name that just fits a file system leaves no room for more.

    Raises:
        OSError: it can't be written, or the rename fails (a name that is too long, a folder in its place); it names
            `path`. Besides, what the block raises.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    with naming(path):
        try:
            yield temporary
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
