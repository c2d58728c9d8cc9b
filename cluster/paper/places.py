"""Where the sets and models of a table lie: what a user's words on the command line stand for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cluster.paper.tables import MODELS
from restoration.checkpoints import read_json
from restoration.datasets.layouts import Where
from restoration.datasets.matching import DataError
from restoration.datasets.opening import public_set
from restoration.datasets.registry import SETS

MODEL_FILE = "restorl_model.json"


@dataclass(frozen=True)
class Roots:
    """Folders that hold public sets.

    Attributes:
        named: name of a set -> its folder, whatever that is called.
        folders: in each of which, and in the folders in it, sets are looked for by the names of their own folders
            (docs/data.md), or in one with the set's name, as `restorl data make rain100h data/rain100h` writes it.
    """

    named: Mapping[str, Path]
    folders: tuple[Path, ...]

    @classmethod
    def of(cls, words: Sequence[str]) -> Roots:
        """Of FOLDER and SET=FOLDER. Raises ValueError: no such set, no folder."""
        named, folders = _sorted_out(words, "--data", lambda name: name in SETS, "a set of docs/data.md")
        return cls(named, folders)

    def root_of(self, name: str, splits: Sequence[str]) -> Path:
        """The folder to give as `data.root` of the set.

        Raises:
            DataError: a part of it only; the message says what is missing.
            FileNotFoundError: it isn't there; the message says where it was looked for.
        """
        of, partly = public_set(name), list[str]()
        if name in self.named:
            candidates: Iterator[Path] = iter([self.named[name]])
        else:
            candidates = self._candidates(name)
        for root in candidates:
            found = [self._where(name, root, split) for split in splits]
            if all(where is not None and where.whole for where in found):
                return root
            for split, where in zip(splits, found, strict=True):
                if where is not None and where.missing:
                    partly.append(f"{where.base} holds {', '.join(where.there)}, not {', '.join(where.missing)}")
                elif where is None and any(found):
                    partly.append(f"{root} holds nothing of its {split}")
        if partly:
            raise DataError(f"{of.title} is not whole: {'; '.join(partly)}; get it again, whole")
        places = [self.named[name]] if name in self.named else [*self.folders]
        looked = f"looked in {', '.join(map(str, places))}" if places else "no folder was given"
        raise FileNotFoundError(
            f"{of.title} ({', '.join(splits)}) was not found: {looked}; give --data {name}=FOLDER, the one it was "
            "unpacked in (docs/data.md has its layouts)"
        )

    def _candidates(self, name: str) -> Iterator[Path]:
        for folder in self.folders:
            if (folder / name).is_dir():
                yield folder / name
            yield folder
            yield from sorted(p for p in folder.iterdir() if p.is_dir() and p.name != name and p.name[0] != ".")

    def _where(self, name: str, root: Path, split: str) -> Where | None:
        """The whole place of a split, or one that has a part of it; None for what only looks like it.

        Folders called `input` and `target` are those of five sets: only the name of a folder around them tells which.
        """
        partly = None
        for layout in public_set(name).layouts:
            if (source := layout.splits.get(split)) is None:
                continue
            where = source.where(root)
            named = name in self.named or root.name == name
            if where.base is None or not (named or _is_called(where.base, source.above)):
                continue
            if where.whole:
                return where
            partly = partly or where
        return partly


@dataclass(frozen=True)
class Models:
    """Folders of base models.

    Attributes:
        named: MODEL, or MODEL:SET, the set that it was tuned to -> its folder.
        folders: that hold folders MODEL_SET, or MODEL.
    """

    named: Mapping[str, Path]
    folders: tuple[Path, ...]

    @classmethod
    def of(cls, words: Sequence[str]) -> Models:
        """Of FOLDER, MODEL=FOLDER and MODEL:SET=FOLDER. Raises ValueError: no such model or set, no folder."""

        def known(name: str) -> bool:
            model, colon, of = name.partition(":")
            return model in MODELS and (not colon or of in SETS)

        named, folders = _sorted_out(words, "--models", known, f"one of {', '.join(MODELS)}, with or without :SET")
        return cls(named, folders)

    def folder_of(self, model: str, trained_on: str) -> tuple[Path, bool]:
        """The folder, and whether its name says that it was tuned to the set.

        Raises:
            FileNotFoundError: there is none; the message says how to make one.
            DataError: one of another kind.
        """
        both = f"{model}_{trained_on}"
        tuned = [self.named.get(f"{model}:{trained_on}"), *(folder / both for folder in self.folders)]
        plain = [self.named.get(model), *(folder / model for folder in self.folders)]
        for group, is_tuned in ((tuned, True), (plain, False)):
            for place in group:
                if place is not None and (place / MODEL_FILE).is_file():
                    if (kind := read_json(place / MODEL_FILE).get("kind")) != model:
                        raise DataError(f"{place} is a model of kind {kind}, not {model}; give another folder")
                    return place, is_tuned
        places = [str(place) for place in (*tuned, *plain) if place is not None]
        looked = f"looked for {', '.join(places)}" if places else "no folder was given"
        raise FileNotFoundError(
            f"no model folder of {MODELS[model]} for {trained_on} ({looked}); make it by "
            f"`restorl convert {model}` and `restorl pretrain configs/sft.yaml` (docs/models.md), and give "
            f"--models {model}=FOLDER or --models {model}:{trained_on}=FOLDER"
        )


def _is_called(base: Path, above: str) -> bool:
    return bool(above) and base.name.lower() == PurePosixPath(above).name.lower()


def _sorted_out(
    words: Sequence[str], option: str, known: Callable[[str], bool], what: str
) -> tuple[dict[str, Path], tuple[Path, ...]]:
    named, folders = dict[str, Path](), list[Path]()
    for word in words:
        name, equals, folder = word.partition("=")
        if equals and not Path(word).exists():
            if not known(name):
                raise ValueError(f"{option} {word}: {name!r} is not {what}")
            named[name] = Path(folder).absolute()
        else:
            folders.append(Path(word).absolute())
    for place in (*named.values(), *folders):
        if not place.is_dir():
            raise ValueError(f"{option}: {place} is no folder")
    return named, tuple(folders)
