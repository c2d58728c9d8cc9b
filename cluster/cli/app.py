"""The `restorl` command. Heavy libraries are imported inside the commands, so that help is there at once."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.actors import actors_app
from cluster.cli.annotate import annotate_app
from cluster.cli.chain import chain
from cluster.cli.compare import compare
from cluster.cli.convert import convert
from cluster.cli.data import compared, data_app
from cluster.cli.deploy import deploy_app
from cluster.cli.errors import UserMistake, argv, as_mistake, guarded, only_with, say
from cluster.cli.export import export
from cluster.cli.leaving import leaving
from cluster.cli.output import Counter, partial_csv, print_rows, summary_text
from cluster.cli.paper import paper_app
from cluster.cli.paper_figure import paper_figure
from cluster.cli.plan_gpus import plan
from cluster.cli.restore import require, restore
from cluster.cli.reward import reward_app
from cluster.cli.reward_check import reward_check
from cluster.cli.reward_probe import reward_probe
from cluster.cli.scorer_text import named_scorer
from cluster.cli.status import status
from cluster.cli.timeline import timeline
from cluster.cli.watch import watch_app

if TYPE_CHECKING:
    import numpy as np

    from cluster.config.recipe import RunConfig

app = typer.Typer(
    help="Improve a diffusion restoration model by reinforcement learning with an image-quality reward.\n\n"
    "Start with `restorl train configs/demo.yaml`. `--debug` after any command shows the stack trace of an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.add_typer(data_app, name="data")
app.add_typer(reward_app, name="reward")
app.add_typer(deploy_app, name="deploy")
app.command()(convert)
app.command()(restore)
app.command()(export)
app.command()(chain)
reward_app.command("check")(reward_check)
reward_app.command("probe")(reward_probe)
app.add_typer(actors_app, name="actors")
app.command()(status)
app.command()(timeline)
app.add_typer(watch_app, name="watch")
app.command()(plan)
app.command()(compare)
app.add_typer(annotate_app, name="annotate")
paper_app.command("figure")(paper_figure)
app.add_typer(paper_app, name="paper")

Overrides = Annotated[list[str] | None, typer.Argument(help="Such as `sampler.steps=4`.", metavar="[KEY=VALUE]...")]
DEFAULT_SCORER = "lite0_levels"


@app.command()
@guarded
def train(
    config: Annotated[str | None, typer.Argument(help="YAML recipe.", metavar="CONFIG")] = None,
    overrides: Overrides = None,
    resume: Annotated[Path | None, typer.Option(help="Continue the run in this folder.", metavar="RUN")] = None,
    run: Annotated[Path | None, typer.Option(help="Folder of the new run; default `runs/<name>`.")] = None,
    if_there: Annotated[
        bool, typer.Option("--resume-if-there", help="With --run: go on with the run in that folder, if it holds one.")
    ] = False,
    single: Annotated[
        bool, typer.Option("--single", help="In this process alone, without Ray, to step through.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Start nothing: check everything and show the plan. Status 2 on problems.")
    ] = False,
    shape: Annotated[
        str | None, typer.Option(help="With --dry-run: sd21, sdxl, sd3 or flux in place of a model folder.")
    ] = None,
) -> None:
    """Tune a base model by reinforcement learning.

    restorl train configs/demo.yaml

    restorl train configs/demo.yaml --dry-run

    restorl train configs/gpu.yaml --dry-run --shape sdxl rollout.crop=1024

    restorl train configs/demo.yaml --single

    restorl train configs/demo.yaml iterations=20 optimiser.lr=1e-5 --run runs/try

    restorl train --resume runs/try iterations=40

    restorl train configs/demo.yaml --run runs/try --resume-if-there
    """
    from cluster.cli.resuming import resume_if_there, tell_complete, train_when_free
    from cluster.config.configure import load_config
    from cluster.models import load_run_config

    given, complete = list(overrides or []), None
    if if_there and (run is None or resume is not None or single):
        raise UserMistake("--resume-if-there goes with --run FOLDER, and without --resume and --single")
    if shape is not None:
        if not dry_run or resume is not None or if_there:
            raise UserMistake("--shape stands for a model without weights: give it with --dry-run and a CONFIG")
        given.append(f"model={shape}")
    if resume is not None:
        if run is not None:
            raise UserMistake("--run and --resume name two folders; give one of them")
        # With --resume the recipe is the run's own, so that the first word is an override already.
        given = [*([config] if config else []), *given]
        if config and "=" not in config:
            raise UserMistake(f"{config}: a resumed run has its own recipe; leave CONFIG out, or give key=value")
        loaded, folder = load_run_config(resume, tuple(given)), resume
    elif if_there and run is not None:
        found = resume_if_there(run, config, given)
        loaded, folder, complete = found.config, run, found.complete
        resume = run if found.resume else None
    else:
        if config is None:
            raise UserMistake("which recipe? restorl train CONFIG, such as configs/demo.yaml, or --resume RUN")
        from cluster.config.recipe import RunConfig

        loaded = load_config(RunConfig, Path(config), given)
        folder = run or _new_run_folder(loaded.name)
    if dry_run:
        from cluster.cli.dry_run import show_plan

        raise typer.Exit(show_plan(loaded, shape, resume))
    if single:
        if resume is not None:
            raise UserMistake("--single can't be resumed: leave out one of --single and --resume")
        _train_single(loaded, folder)
        return
    if complete is not None:
        tell_complete(folder, complete)
        return
    from cluster.run import driver

    say(f"run folder: {folder}")
    try:
        summary = train_when_free(loaded, folder) if if_there else driver.train(loaded, folder, resume is not None)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(str(error) or f"stopped; go on with: restorl train --resume {folder}") from None
    if summary is not None:
        print(summary_text(summary))


@app.command()
@guarded
def pretrain(
    config: Annotated[Path, typer.Argument(help="YAML recipe of the training.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the model; default `models/<name of CONFIG>`.")] = None,
) -> None:
    """Supervised learning: fine-tune a model on a task (`kind: sft`), or train a small one from scratch.

    restorl pretrain configs/sft.yaml model=models/diffbir data.root=data/LOLv1 --out models/diffbir_lol

    restorl pretrain configs/pretrain_demo.yaml --out models/demo

    Stopped, the same command goes on from its last state.
    """
    from cluster.config.configure import ConfigError, load_config, value_of
    from restoration.pretrain.run import PretrainRecipe
    from restoration.pretrain.run import pretrain as train_from_scratch
    from restoration.pretrain.sft import SftRecipe, fine_tune

    given, folder = overrides or [], out or Path("models") / config.stem
    kind = value_of("kind", config, given) or "scratch"
    if kind not in ("scratch", "sft"):
        raise ConfigError.of(f"kind: {kind} is no kind of supervised learning; choose sft or scratch")

    try:
        with Counter() as shown:

            def show(stage: str, done: int, total: int, figures: dict[str, float]) -> None:
                shown(stage, done, total)

            if kind == "sft":
                fine_tune(load_config(SftRecipe, config, given), folder, show)
            elif train_from_scratch(load_config(PretrainRecipe, config, given), folder, show) is None:
                print(f"trained: {folder / 'stages'}; the model is written with the denoiser")
                return
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(str(error) or "stopped; the same command goes on") from None
    print(f"model: {folder}")


@app.command()
@guarded
def evaluate(
    lq: Annotated[
        Path, typer.Argument(help="Folder of degraded images (or of results, without --model); with --set, its root.")
    ],
    gt: Annotated[Path | None, typer.Argument(help="Folder of the originals; not with --set.")] = None,
    model: Annotated[Path | None, typer.Option(help="Run or model that restores LQ first.")] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Of a run: latest (default), average, base, or an iteration.")
    ] = None,
    embeddings: Annotated[Path | None, typer.Option(help="With --model: as of `restorl restore`.")] = None,
    set_name: Annotated[
        str | None, typer.Option("--set", help="A public set by name (docs/data.md) in the folder LQ.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="With --set: which part of it; default test.")] = None,
    results: Annotated[
        Path | None, typer.Option(help="With --set: measure these results, named as the set's inputs.")
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(help="How PSNR and SSIM are taken (docs/data.md); default the set's own, else lowlight_rgb."),
    ] = None,
    scorer: Annotated[list[str] | None, typer.Option(help="No-reference score(s) to add; as of `score`.")] = None,
    lpips: Annotated[Path | None, typer.Option(help="Folder with LPIPS's weights, see docs/models.md.")] = None,
    lpips_net: Annotated[list[str] | None, typer.Option(help="alex or vgg; may be repeated.")] = None,
    fid: Annotated[Path | None, typer.Option(help="Folder with FID's weights, see docs/models.md.")] = None,
    fid_kind: Annotated[
        list[str] | None, typer.Option(help="clean, legacy or patchN (tiles of N pixels); may be repeated.")
    ] = None,
    dists: Annotated[Path | None, typer.Option(help="Folder with DISTS's weights, see docs/models.md.")] = None,
    match: Annotated[
        str | None, typer.Option(help="Without --set: how files are paired: stem (default), digits, sorted or group.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write one line an image here.")] = None,
    seed: Annotated[int | None, typer.Option(help="With --model: seed of the sampling noise; default 0.")] = None,
    batch: Annotated[int | None, typer.Option(help="With --model: images restored together; default 8.", min=1)] = None,
    device: Annotated[str | None, typer.Option(help="With --model: auto (default), cpu, cuda, cuda:1, ...")] = None,
) -> None:
    """PSNR, SSIM and no-reference scores of restored images against their originals.

    restorl evaluate data/demo/rain/test/input data/demo/rain/test/target --model runs/demo --scorer lite0_levels

    restorl evaluate restored/ originals/ --lpips weights/ --csv scores.csv

    restorl evaluate data/Rain100H --set rain100h --model runs/demo
    """
    from restoration.evaluate import Row, evaluate_pairs, evaluate_results, has_scenes, scene_means, write_csv
    from restoration.metrics import protocol as find_protocol
    from restoration.metrics.published import Published

    only_with("--lpips FOLDER", lpips is not None, lpips_net=lpips_net)
    only_with("--fid FOLDER", fid is not None, fid_kind=fid_kind)
    of_model = {"checkpoint": checkpoint, "embeddings": embeddings, "seed": seed, "batch": batch, "device": device}
    only_with("--model RUN_OR_FOLDER", model is not None, **of_model)
    with as_mistake(ValueError):
        published = Published(lpips, fid, lpips_net or ["alex"], fid_kind or ["clean"], dists)
    scorers = {name: judge.score for name, _, judge in map(named_scorer, scorer or [])}
    if results is not None and model is not None:
        raise UserMistake("--results are finished already: leave out one of --results and --model")
    of = compared(lq, gt, match, set_name, split, results, protocol)
    made: list[Row] = []
    with partial_csv(csv, made), Counter() as shown:
        if model is None:
            rows = evaluate_results(of.pairs, scorers, of.protocol, published.see, made.append)
        else:
            from cluster.models import load_policy
            from restoration.devices import device_of

            with as_mistake(ValueError):
                place = device_of(device or "auto")
            policy, sampler = load_policy(model, checkpoint or "latest", embeddings)
            with as_mistake(ValueError):
                require(policy, sampler)
            rows = evaluate_pairs(
                policy.to(place),
                of.pairs,
                sampler,
                scorers,
                of.protocol,
                seed or 0,
                batch or 8,
                device=place,
                on_image=published.see,
                progress=lambda done, total: shown("evaluate", done, total),
                tolerant=True,
                on_row=made.append,
            )
    rows = published.beside(rows)
    title = f"protocol {of.protocol} ({find_protocol(of.protocol).told}){published.of_all()}"
    print_rows(rows, title, scene_means(rows) if of.per_scene and has_scenes(rows) else None)
    if csv is not None:
        write_csv(csv, rows)
    raise typer.Exit(int(any(row.missing for row in rows)))


@app.command()
@guarded
def score(
    folder: Annotated[Path, typer.Argument(help="A folder of images.")],
    scorer: Annotated[
        str,
        typer.Option(
            help="Name of the scorer, pyiqa:METRIC, https://..., or module:class; its settings behind commas: "
            "NAME,KEY=VALUE,..."
        ),
    ] = DEFAULT_SCORER,
    csv: Annotated[Path | None, typer.Option(help="Write one line an image here.")] = None,
) -> None:
    """Score images without a reference.

    restorl score restored/ --csv scores.csv

    restorl score restored/ --scorer deqa,weights=weights/DeQA-Score-Mix3,device=cuda
    """
    from restoration.evaluate import Row, write_csv
    from restoration.figures import LESS_MEMORY, PICTURE
    from restoration.image_files import list_images, normal
    from restoration.images import ImageError, read_image, to_uint8
    from restoration.trouble import told

    scorer, _, judge = named_scorer(scorer)
    images = list_images(folder)
    if not images:
        raise ImageError(f"{folder} holds no image")
    rows: list[Row] = []
    with partial_csv(csv, rows), Counter() as shown:
        for i, path in enumerate(images):
            shown(path.name, i, len(images))
            name = normal(path.relative_to(folder).as_posix())
            try:
                block: np.ndarray = to_uint8(read_image(path)[None])
                value = float(judge.score(block)[0])
            except Exception as error:
                rows.append(Row(name, {scorer: math.nan}, {PICTURE: told(path, error, LESS_MEMORY)}))
                continue
            missing = {} if math.isfinite(value) else {PICTURE: f"{path}: {scorer} gave {value:g}, which is no score"}
            rows.append(Row(name, {scorer: math.nan if missing else value}, missing))
    print_rows(rows, f"{judge.name}, version {judge.version}, range {judge.range[0]:g} to {judge.range[1]:g}")
    if csv is not None:
        write_csv(csv, rows)
    raise typer.Exit(int(any(row.missing for row in rows)))


@app.command()
@guarded
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run, finished or not.")],
    animate: Annotated[
        bool, typer.Option("--animate", help="Denoise some held-out pictures first, to show their chains step by step.")
    ] = False,
    scorer: Annotated[
        str | None, typer.Option(help="With --animate: in place of the run's own; as of `score`.")
    ] = None,
) -> None:
    """Write the run's report.html again.

    restorl report runs/demo

    restorl report runs/demo --animate
    """
    from cluster.report.report import write_report

    if scorer is not None and not animate:
        raise UserMistake("--scorer is for the chains that --animate shows: give both, or neither")
    if animate:
        from cluster.report.chains import animate as animated

        with as_mistake(ValueError), Counter() as shown:
            animated(run, named_scorer(scorer)[2].score if scorer else None, shown)
    with as_mistake(ValueError):
        print(write_report(run))


@app.command()
@guarded
def audit(
    run: Annotated[Path, typer.Argument(help="Folder of a run, running, killed or finished.")],
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Was each trajectory used exactly once, dropped with a reason, or is it still pending? Exit status 1 if not.

    restorl audit runs/demo
    """
    from dataclasses import asdict

    from cluster.report.run_audit import audit_run

    found, source = audit_run(run)
    print(json.dumps({"source": source, "ok": found.ok, **asdict(found)}) if as_json else found.render())
    if not as_json:
        say(f"from: {source}")
    raise typer.Exit(0 if found.ok else 1)


def _train_single(config: RunConfig, folder: Path) -> None:
    from cluster.report.report import write_report
    from cluster.run.single import train_single

    say(f"run folder: {folder}")
    with Counter() as shown:
        rows = train_single(config, folder, lambda i, m: shown(f"reward {m['reward_mean']:.3f}", i, config.iterations))
    print_rows(rows, "held-out images")
    print(f"report: {write_report(folder).resolve()}")


def _new_run_folder(name: str) -> Path:
    """runs/<name>, or with the first free number behind it."""
    safe = "".join(c if c.isalnum() or c in "._-" else "-" for c in name) or "run"
    folder, number = Path("runs") / safe, 2
    while folder.exists():
        folder, number = Path("runs") / f"{safe}-{number}", number + 1
    return folder


def main() -> None:
    """Entry point of the console script: it ends the process."""
    with leaving():
        app(args=argv(), prog_name="restorl")


if __name__ == "__main__":
    main()
