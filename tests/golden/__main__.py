"""`python -m tests.golden [--keys] DIR`: hold our code against every golden file in DIR; exit 1 on a difference.

With --keys only the key layouts of released files, NAME.full_keys.json: how many keys our loaders consume, and how
many of our networks' keys are missing there, how many of theirs we don't know, and how many have another shape.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from tests.golden import advantages, attended, deqa, faithdiff, networks, one_step, ratings, stablesr, transitions
from tests.golden.case import Golden, Outputs, Verdict, compare

RUNNERS: dict[str, tuple[Callable[[Golden], Outputs], set[str]]] = {
    "diffbir_vae": (networks.diffbir_vae, {"image01", "z"}),
    "diffbir_cliptext": (networks.diffbir_cliptext, {"tokens"}),
    "diffbir_sampler": (transitions.diffbir_sampler, {"x_T", "noises"}),
    "diffbir_plosses": (networks.diffbir_plosses, {"x_start", "noise", "t", "c_txt", "c_img"}),
    "diffbir": (networks.diffbir, {"x_t", "c_img", "c_txt", "t"}),
    "restormer": (networks.restormer, {"x"}),
    "snr": (networks.snr, {"x", "mask", "mask2"}),
    "snr_mask": (networks.snr_mask, set()),
    "ddim_logprob": (transitions.ddim_logprob, set()),
    "flow_sde_logprob": (transitions.flow_sde_logprob, set()),
    "seesr": (attended.seesr, {"x_t", "prompt", "image01", "t", "image_embeds"}),
    "pasd": (attended.pasd, {"x_t", "prompt", "image01", "t"}),
    "xpsr": (attended.pasd, {"x_t", "prompt", "image01", "t", "prompt_low"}),
    "faithdiff": (faithdiff.faithdiff, {"x_t", "t", "prompt", "image", "text_embeds", "time_ids"}),
    "stablesr": (stablesr.stablesr, {"x_t", "lq_latent", "context", "t"}),
    "stablesr_cfw": (stablesr.stablesr_cfw, {"image", "z"}),
    "pisa": (one_step.pisa, {"z", "prompt", "t"}),
    "tsdsr": (
        one_step.tsdsr,
        {"z", "prompt_embeds", "pooled_prompt_embeds", "timestep", "image", "posterior_noise"},
    ),
    "stat_tracker": (advantages.stat_tracker, set()),
    "deqa": (deqa.deqa, {"images", "input_ids"}),
    "deqa_loss": (deqa.deqa_loss, {"images_A", "images_B"}),
    "opinions": (ratings.opinions_of, set()),
    "strengths": (ratings.strengths_of, set()),
}
"""Beginning of a file's name -> what computes its outputs, and the inputs that it needs."""


def runner_of(golden: Golden) -> Callable[[Golden], Outputs] | None:
    """By the name inside the file, else by the file's own; the longest beginning wins."""
    for name in (str(golden.meta.get("name", "")), golden.name):
        for beginning in sorted(RUNNERS, key=len, reverse=True):
            run, needed = RUNNERS[beginning]
            if name.startswith(beginning) and needed <= golden.inputs.keys():
                return run
    return None


def check_file(file: Path) -> Verdict:
    """The verdict on one golden file; an exception in our code is a FAIL that names it."""
    try:
        if file.name.endswith(".full_keys.json"):
            return _check_keys(file)
        if not file.with_suffix(".safetensors").exists():
            return Verdict(file.stem, "FAIL", note=f"{file.with_suffix('.safetensors').name} is missing")
        golden = Golden.read(file)
        run = runner_of(golden)
        return Verdict(file.stem, "not implemented") if run is None else compare(golden, run(golden))
    except Exception as error:
        return Verdict(file.stem, "FAIL", note=f"{type(error).__name__}: {error}")


def _check_keys(file: Path) -> Verdict:
    described = json.loads(file.read_text())
    shapes = {k: tuple(v) for k, v in described["state"].items()}
    name = str(described.get("name") or file.stem)
    note = (
        stablesr.full_keys(name, shapes)
        or one_step.full_keys(name, shapes, file.parent)
        or deqa.full_keys(name, shapes)
        or networks.full_keys(name, shapes)
    )
    return Verdict(file.stem, "not implemented") if note is None else Verdict(file.stem, "ok", 0.0, 0.0, note)


def verdicts(folder: Path) -> Iterator[Verdict]:
    """One for each golden file in `folder`, by name."""
    for file in sorted(folder.glob("*.json")):
        yield check_file(file)


def keys_line(file: Path) -> tuple[bool | None, str]:
    """Whether a key layout is met, None where nothing of ours reads it, and its line of the table."""
    verdict = check_file(file)
    name, released = file.name.removesuffix(".full_keys.json"), len(json.loads(file.read_text())["state"])
    if verdict.status == "not implemented":
        return None, f"{name:28} {released:8} {'not implemented':>10}"

    def said(pattern: str) -> int:
        found = re.search(pattern, verdict.note)
        return int(found[1]) if found else 0

    missing, invented, wrong = (said(rf"(\d+) {what}") for what in ("missing", "unexpected", "of another shape"))
    met = verdict.status == "ok"
    consumed = said(r"(\d+) keys mapped") if met else released - invented - wrong
    rest = verdict.note.partition(", ")[2] if met else verdict.note
    return met, f"{name:28} {released:8} {consumed:8} {missing:8} {invented:8} {wrong:11}  {rest}".rstrip()


def keys(folder: Path) -> int:
    """Print the table of key layouts; 1 if one is not met."""
    print(f"{'':28} {'released':>8} {'consumed':>8} {'missing':>8} {'unknown':>8} {'other shape':>11}")
    met = []
    for file in sorted(folder.glob("*.full_keys.json")):
        good, line = keys_line(file)
        print(line, flush=True)
        met.append(good)
    print(f"total: {met.count(True)} met, {met.count(False)} not met, {met.count(None)} not implemented")
    return 1 if False in met else 0 if met else 2


def main(arguments: list[str]) -> int:
    only_keys = arguments[:1] == ["--keys"]
    arguments = arguments[only_keys:]
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        print("usage: python -m tests.golden [--keys] DIR   (golden files: NAME.json with NAME.safetensors)")
        return 2
    if only_keys:
        return keys(Path(arguments[0]))
    torch.manual_seed(0)
    counts: Counter[str] = Counter()
    for verdict in verdicts(Path(arguments[0])):
        print(verdict, flush=True)
        counts[verdict.status] += 1
    if not counts:
        print(f"no golden file in {arguments[0]}")
        return 2
    print(f"total: {counts['ok']} ok, {counts['FAIL']} FAIL, {counts['not implemented']} not implemented")
    return 1 if counts["FAIL"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
