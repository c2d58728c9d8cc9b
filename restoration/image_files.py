"""Which files of a folder are pictures, and how a picture is called.

A picture's name is its path below the folder without the suffix, in Unicode's composed form (NFC): macOS and some
archives write "é" as two code points, other systems as one, and both mean the same picture.
"""

from __future__ import annotations

import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath

IMAGE_SUFFIXES = frozenset(
    {
        *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".avif"),
        *(".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm"),
    }
)
# Pictures, or arrays that often are some, of kinds that nothing here reads.
UNREAD_SUFFIXES = frozenset(
    {
        *(".heic", ".heif", ".hif", ".jxl", ".jxr", ".exr", ".hdr", ".pfm", ".dds", ".tga", ".pcx", ".ico"),
        *(".psd", ".psb", ".xcf", ".svg", ".eps", ".npy", ".npz", ".mat", ".fits", ".dcm", ".raf", ".orf", ".pef"),
        *(".dng", ".raw", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".sr2", ".srw", ".rw2"),
    }
)
Inode = tuple[int, int]


def list_images(folder: Path) -> list[Path]:
    """Image files under `folder` at any depth, sorted by name; hidden files (temporary ones too) are left out.

    Links to folders are followed, links that lead back to a folder they lie in are not. A link to nothing with the
    name of an image is in the list, with a warning, so that who reads it tells of it too. Files that look like
    pictures and can't be read here, and folders that can't be opened, are left out with a warning.

    Raises:
        FileNotFoundError: `folder` is no folder.
        PermissionError: it can't be opened.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; give the folder that holds the images")
    found = list(_files(folder, ()))
    kinds_of = [os.path.splitext(path.name)[1].lower() for path, _ in found]
    unread = Counter(suffix for suffix in kinds_of if suffix in UNREAD_SUFFIXES)
    if unread:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(unread.items()))
        warnings.warn(
            f"{folder}: left out {kinds}, kinds of pictures that can't be read here; convert what you need to PNG "
            "(of 16 bits where it is deeper than 8)",
            stacklevel=2,
        )
    images = [file for file, suffix in zip(found, kinds_of, strict=True) if suffix in IMAGE_SUFFIXES]
    if broken := [f"{path.relative_to(folder)} -> {os.readlink(path)}" for path, is_there in images if not is_there]:
        more = ", ..." if len(broken) > 5 else ""
        links = "link leads" if len(broken) == 1 else "links lead"
        warnings.warn(f"{folder}: {len(broken)} {links} nowhere: {', '.join(broken[:5])}{more}", stacklevel=2)
    return [path for path, _ in images]


def image_name(path: Path, folder: Path) -> str:
    """What the image `path` under `folder` is called: `folder`/sub/é.jpg is "sub/é".

    Raises:
        ValueError: it doesn't lie there.
    """
    name, below = str(path), _below(folder)
    if not name.startswith(below):
        raise ValueError(f"{path} doesn't lie in {folder}")
    return normal(os.path.splitext(name[len(below) :])[0].replace(os.sep, "/"))


@lru_cache(maxsize=64)
def _below(folder: Path) -> str:
    """What the paths of all files under `folder` begin with."""
    return "" if str(folder) == "." else os.path.join(folder, "")


def normal(name: str) -> str:
    """`name` in the form that names are compared in; bytes that are no UTF-8 are spelled out."""
    if name.isascii():
        return name
    return unicodedata.normalize("NFC", name.encode("utf-8", "backslashreplace").decode())


def find_named(folder: Path, name: str) -> Path:
    """The file `name` ("sub/é.safetensors") under `folder` in whichever form of Unicode it is written there.

    Where there is none, the path that it would have.
    """
    path = Path(folder)
    for part in PurePosixPath(name).parts:
        path = _entry(path, part)
    return path


def _entry(folder: Path, name: str) -> Path:
    for form in (name, unicodedata.normalize("NFD", name)):
        if name.isascii() or (folder / form).exists():
            return folder / form
    there = folder.iterdir() if folder.is_dir() else ()  # a mixed form, as of old Mac volumes
    return next((entry for entry in there if normal(entry.name) == normal(name)), folder / name)


def _files(folder: Path, above: tuple[Inode, ...]) -> Iterator[tuple[Path, bool]]:
    """(file, whether it is there) under `folder`, also links to nothing; `above` are the folders around it, by inode.

    What the listing tells of an entry is not asked for again: in a million files each call to the disk counts.
    """
    try:
        about = folder.stat()
        if (here := (about.st_dev, about.st_ino)) in above:
            return
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)  # which sorts the paths, part by part
    except OSError as error:
        if not above:
            raise
        warnings.warn(f"{folder} is left out: it can't be opened ({error.strerror})", stacklevel=4)
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if _is(entry.is_dir):
            yield from _files(folder / entry.name, (*above, here))
        elif _is(entry.is_file):
            yield folder / entry.name, True
        elif entry.is_symlink():
            yield folder / entry.name, False


def _is(kind: Callable[[], bool]) -> bool:
    try:
        return kind()
    except OSError:  # a link that leads to itself
        return False
