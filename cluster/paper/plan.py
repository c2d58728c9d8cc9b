"""From what a user asks of a table to jobs that fill it, and to what is missing for the others. Nothing is started."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cluster.config.configure import ConfigError, load_config, plain
from cluster.config.recipe import RunConfig
from cluster.paper.arms import ITERATED, arm_of
from cluster.paper.cells import MEASURE, TUNE, Cell, Folders, Job, Key, Measuring
from cluster.paper.places import MODEL_FILE, Models, Roots
from cluster.paper.results import differences, read_result
from cluster.paper.scales import Scale
from cluster.paper.tables import MODELS, TRAINING, Line, Part, Table
from cluster.run.checks.scorer_files import scorer_files
from restoration.checkpoints import CheckpointError
from restoration.datasets.matching import DataError
from restoration.datasets.opening import open_set, public_set
from restoration.images import ImageError

RECIPES = Path("configs/paper")
ELSEWHERE = frozenset(
    {
        *("name", "cluster", "actors", "ranks", "store", "tracking", "evaluation"),
        *("checkpoint_every", "keep_checkpoints", "start_timeout_s", "stall_timeout_s", "expected_minutes"),
    }
)
"""Keys and sections of a recipe that say where a training runs and what it tells, not what comes out of it."""


@dataclass(frozen=True)
class Wanted:
    """What is asked.

    Attributes:
        models, arms: of the tables' rows; empty for all.
        words: `key=value` behind every training's recipe.
        second: `key=value` of the reward of the second round (the arm `iterated`).
        sft: recipe by which a model that isn't tuned to a set is first; None takes it as it is.
        recipes: folder of MODEL.yaml.
    """

    tables: tuple[Table, ...]
    folders: Folders
    roots: Roots
    places: Models
    scale: Scale
    seeds: tuple[int, ...] = (0,)
    models: frozenset[str] = frozenset()
    arms: frozenset[str] = frozenset()
    words: tuple[str, ...] = ()
    second: tuple[str, ...] = ()
    sft: Path | None = None
    recipes: Path = RECIPES
    measuring: Measuring = field(default_factory=Measuring)

    def lines(self, table: Table) -> list[Line]:
        """The rows of a table that are asked for."""
        chosen = [line for line in table.lines if not self.models or line.model in self.models]
        return [line for line in chosen if not self.arms or line.arm in self.arms]


@dataclass(frozen=True)
class Plan:
    """
    Attributes:
        jobs: to run, each behind those it needs.
        done: labels of cells that are finished.
        missing: label of a cell -> what it lacks.
        roots: (set, splits) -> where they were found.
        as_they_are: models, by MODEL on SET, that nothing says are tuned to that set.
        configs, models: of jobs by their labels, the training's configuration and a base model that is there already.
    """

    jobs: tuple[Job, ...]
    done: tuple[str, ...]
    missing: Mapping[str, str]
    roots: Mapping[str, Path]
    as_they_are: tuple[str, ...]
    configs: Mapping[str, RunConfig]
    models: Mapping[str, Path]

    @property
    def cells(self) -> int:
        """That are to be measured."""
        return sum(len(job.cells) for job in self.jobs)


class Lacking(Exception):
    """What a cell needs isn't there."""


def make_plan(wanted: Wanted) -> Plan:
    """Look at the disk and lay out what is to be done.

    Raises:
        ConfigError: a word or a recipe that no training takes.
        ValueError: a finished cell that can't be read, or was made with other settings.
    """
    return _Planner(wanted).plan()


class _Planner:
    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.jobs: dict[str, Job] = {}
        self.done: list[str] = []
        self.missing: dict[str, str] = {}
        self.roots: dict[str, Path] = {}
        self.as_they_are: dict[str, None] = {}
        self.configs: dict[str, RunConfig] = {}
        self.models: dict[str, Path] = {}
        self._lacking: dict[str, str] = {}
        self._steps: dict[Path, int] = {}

    def plan(self) -> Plan:
        seen = set[str]()
        for table in self.wanted.tables:
            for line in self.wanted.lines(table):
                for part in table.parts:
                    for seed in self.wanted.seeds:
                        key = Key(line.model, part.trained_on, line.arm, seed)
                        if (label := f"{key.label}.{part.set}.{part.split}") not in seen:
                            seen.add(label)
                            self._add(key, part)
        return Plan(
            tuple(self._ordered()),
            tuple(self.done),
            self.missing,
            self.roots,
            tuple(self.as_they_are),
            self.configs,
            self.models,
        )

    def _add(self, key: Key, part: Part) -> None:
        """The cell, with the job that it needs."""
        try:
            root = self._root(part.set, (part.split,))
            job = self._job(key)
        except Lacking as error:
            self.missing[self._bare(key, part).label] = str(error)
            return
        limit, protocol = self.wanted.scale.limit, self._protocol(part)
        settings = {
            **{"scale": self.wanted.scale.name, "root": str(root), "protocol": protocol, "limit": limit},
            "tile": self.wanted.measuring.tile,
            **_rests_on(job, self.configs[job.label]),
        }
        cell = Cell(key, part.set, part.split, root, protocol, limit, settings)
        folder = self.wanted.folders.cell(cell)
        found = read_result(folder)
        if found is not None and (others := differences(found, cell)):
            raise ValueError(
                f"{folder} was made with other settings ({'; '.join(others[:3])}); give another --out, or remove it, "
                f"and what was trained for it in {self.wanted.folders.run(key)}"
            )
        if found is not None and found.has(self.wanted.measuring.wanted):
            self.done.append(cell.label)
            return
        held = self.jobs[job.label]
        self.jobs[job.label] = replace(held, cells=(*held.cells, cell))

    def _job(self, key: Key) -> Job:
        """Of that training, made once. Raises Lacking."""
        if key.label in self.jobs:
            return self.jobs[key.label]
        if key.label in self._lacking:
            raise Lacking(self._lacking[key.label])
        try:
            job = self._made(key)
        except Lacking as error:
            self._lacking[key.label] = str(error)
            raise
        self.jobs[key.label] = job
        return job

    def _made(self, key: Key) -> Job:
        wanted, arm = self.wanted, arm_of(key.arm)
        base, needs = self._base(key)
        recipe, after = wanted.recipes / f"{key.model}.yaml", None
        own = wanted.scale.in_place_of.get(key.arm, arm.words)
        if arm.after is not None:
            first = self._job(Key(key.model, key.trained_on, arm.after, key.seed))
            own = wanted.second or own
            if key.arm == ITERATED and not own:
                raise Lacking(
                    "a second round takes a reward that learned from ratings of the first one's results; give it with "
                    "--second, such as --second reward.params.weights=FOLDER"
                )
            needs, after, base = (*needs, first.label), first.run, wanted.folders.exported(key)
        root = self._root(key.trained_on, ("train", "test")) if arm.trains else None
        words = tuple(self._words(key, base, root, own, recipe))
        job = Job(
            label=key.label,
            form=MEASURE,
            recipe=recipe,
            words=words,
            model=base,
            run=wanted.folders.run(key) if arm.trains else None,
            single=wanted.scale.single,
            exported_from=after,
            needs=needs,
            measuring=wanted.measuring,
        )
        config = load_config(RunConfig, recipe, words)
        if arm.trains and (problems := list(scorer_files(config))):
            raise Lacking("; ".join(map(str, problems)))
        self.configs[key.label] = config
        return job

    def _base(self, key: Key) -> tuple[Path, tuple[str, ...]]:
        """The folder of the base model, and the job that makes it, if one does."""
        wanted = self.wanted
        try:
            place, tuned = wanted.places.folder_of(key.model, key.trained_on)
        except (FileNotFoundError, DataError, CheckpointError) as error:
            raise Lacking(str(error)) from None
        self.models[key.label] = place
        if tuned:
            return place, ()
        if wanted.sft is None:
            self.as_they_are[f"{MODELS[key.model]} on {public_set(key.trained_on).title} ({place})"] = None
            return place, ()
        made = wanted.folders.tuned(key.model, key.trained_on)
        label = f"{key.model}.{key.trained_on}.tune"
        if (made / MODEL_FILE).is_file():
            return made, ()
        if label not in self.jobs:
            root = self._root(key.trained_on, ("train", "test"))
            words = (
                f"model={json.dumps(str(place))}",
                f"data.set={key.trained_on}",
                f"data.root={json.dumps(str(root))}",
                *wanted.scale.sft_words,
            )
            self.jobs[label] = Job(label, TUNE, wanted.sft, words, place, made)
        return made, (label,)

    def _words(self, key: Key, base: Path, root: Path | None, own: Sequence[str], recipe: Path) -> Iterator[str]:
        """Behind the recipe; later ones win."""
        scale = self.wanted.scale
        yield f"name={key.label}"
        yield f"seed={key.seed}"
        yield f"model={json.dumps(str(base))}"
        yield f"data.set={key.trained_on}"
        if root is not None:
            yield f"data.root={json.dumps(str(root))}"
        yield f"evaluation.protocol={public_set(key.trained_on).protocol}"
        yield from TRAINING.get(key.trained_on, ())
        yield from scale.words
        if scale.steps is not None:
            if recipe not in self._steps:
                self._steps[recipe] = load_config(RunConfig, recipe, ("model=.",)).sampler.steps
            yield f"sampler.steps={min(scale.steps, self._steps[recipe])}"
        yield from own
        yield from self.wanted.words

    def _root(self, name: str, splits: tuple[str, ...]) -> Path:
        """Where these splits are, which have been opened: what is wrong with them is told now, once."""
        told = f"{name} {', '.join(splits)}"
        if told in self._lacking:
            raise Lacking(self._lacking[told])
        if told not in self.roots:
            try:
                root = self.wanted.roots.root_of(name, splits)
                for split in splits:
                    open_set(name, root, split)
            except (FileNotFoundError, DataError, ImageError) as error:
                self._lacking[told] = str(error)
                raise Lacking(str(error)) from None
            self.roots[told] = root
        return self.roots[told]

    def _bare(self, key: Key, part: Part) -> Cell:
        return Cell(key, part.set, part.split, Path(), self._protocol(part), None, {})

    @staticmethod
    def _protocol(part: Part) -> str:
        protocol = public_set(part.set).protocol
        if protocol is None:
            raise ConfigError.of(f"{part.set}: a set without originals is no part of a table; mend the table")
        return protocol

    def _ordered(self) -> Iterator[Job]:
        """Those with something to do, each behind what it needs."""
        wanted = [job for job in self.jobs.values() if job.cells]
        given = set[str]()

        def of(job: Job) -> Iterator[Job]:
            for label in job.needs:
                if label in self.jobs and label not in given:
                    yield from of(self.jobs[label])
            if job.label not in given:
                given.add(job.label)
                yield job

        for job in wanted:
            yield from of(job)


def _rests_on(job: Job, config: RunConfig) -> dict[str, Any]:
    """Of the training's configuration what a cell's figures rest on, key by key; of a base model what restores."""
    flat = dict(_flat(plain(config)))
    if job.run is None:
        return {key: v for key, v in flat.items() if key in ("model", "data.embeddings") or key.startswith("sampler.")}
    return {key: v for key, v in flat.items() if key.split(".")[0] not in ELSEWHERE}


def _flat(section: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value
