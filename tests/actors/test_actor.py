"""What an actor does with pictures that can't be used, with weights, and with the terms of a reward."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from actors import actor as module
from actors.actor import RolloutActor, draw_batch
from actors.terms import RewardTerms, Term
from actors.work import Quarantined, WorkItem
from restoration.adapters import AdaptSettings, load_trainable, make_trainable, trainable_state
from restoration.datasets.paired import PairedFolder
from restoration.images import write_image
from restoration.metrics.full_reference import full_reference
from restoration.weights import StaleEpoch, WeightsInfo, WeightsMessage, to_bytes
from reward_service.client import RewardResult
from reward_service.errors import InvalidBlock, InvalidReward, RewardError, RewardTimeout
from reward_service.settings import RewardApp
from tests.learner.fakes import FakeModel


@pytest.fixture
def pairs(tmp_path: Path) -> PairedFolder:
    """Pictures a, b, c of 32x32 and small of 16x16."""
    for kind in ("input", "target"):
        (tmp_path / kind).mkdir()
        for n, name in enumerate(("a", "b", "c", "small")):
            side = 16 if name == "small" else 32
            write_image(tmp_path / kind / f"{name}.png", np.full((side, side, 3), 40 * n, np.uint8))
    return PairedFolder(tmp_path / "input", tmp_path / "target")


def test_one_picture_that_cannot_be_read_costs_its_own_group_only(pairs: PairedFolder) -> None:
    (pairs.gt / "b.png").write_bytes((pairs.gt / "b.png").read_bytes()[:60])
    (pairs.lq / "c.png").unlink()
    batch, refused = draw_batch(pairs, WorkItem(7, ("b", "a", "c")), side=16, seed=0, multiple=8)
    assert batch is not None and list(batch.image_ids) == ["a"] and batch.places == (1,)
    assert [(q.what, q.reason) for q in refused] == [("00000007-000", "picture"), ("00000007-002", "picture")]
    assert "b.png" in refused[0].detail and "c.png" in refused[1].detail


def test_the_crop_of_a_picture_does_not_depend_on_its_company(pairs: PairedFolder) -> None:
    item = WorkItem(7, ("b", "a"))
    whole, _ = draw_batch(pairs, item, side=16, seed=0, multiple=8)
    (pairs.gt / "b.png").unlink()
    part, _ = draw_batch(PairedFolderWithout(pairs, "b"), item, side=16, seed=0, multiple=8)
    assert whole is not None and part is not None
    assert part.crops == [whole.crops[1]] and part.flips == [whole.flips[1]]


class PairedFolderWithout:
    def __init__(self, pairs: PairedFolder, gone: str) -> None:
        self.pairs, self.gone = pairs, gone

    def load(self, image_id: str):  # type: ignore[no-untyped-def]
        if image_id == self.gone:
            raise FileNotFoundError(f"{image_id} is gone")
        return self.pairs.load(image_id)


def test_a_picture_smaller_than_the_crop_is_refused_and_an_item_of_such_gives_no_batch(pairs: PairedFolder) -> None:
    batch, refused = draw_batch(pairs, WorkItem(0, ("small",)), side=32, seed=0, multiple=8)
    assert batch is None and "32 px does not fit" in refused[0].detail


def test_whole_pictures_of_unequal_size_are_an_error_of_the_recipe(pairs: PairedFolder) -> None:
    with pytest.raises(ValueError, match=r"rollout.images_per_batch=1"):
        draw_batch(pairs, WorkItem(0, ("a", "small")), side=0, seed=0, multiple=8)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> RolloutActor:
    """An actor of epoch 5 with a model and nothing else; references are the bytes themselves."""
    monkeypatch.setattr(module, "ray", SimpleNamespace(get=lambda ref, timeout: ref))
    made = RolloutActor.__new__(RolloutActor)
    made.model = FakeModel()  # type: ignore[assignment]
    settings = AdaptSettings(rank=2)
    make_trainable(made.model, settings)
    made.spec = SimpleNamespace(adapt=settings, fetch_timeout_s=1.0)  # type: ignore[assignment]
    made.version, made.epoch = 9, 5
    return made


def weights(model: FakeModel, epoch: int, value: float) -> WeightsMessage:
    state = {name: torch.full_like(v, value) for name, v in trainable_state(model).items()}
    return WeightsMessage(2, epoch, to_bytes(state, WeightsInfo(2, epoch)))


def test_an_evaluation_takes_the_weights_of_its_checkpoint_whatever_epoch_has_begun(bare: RolloutActor) -> None:
    """The learner was replaced meanwhile; refused, the part would come back for ever."""
    with bare._weights(weights(bare.model, epoch=4, value=0.5)):  # type: ignore[arg-type]
        assert all((v == 0.5).all() for v in trainable_state(bare.model).values())
    assert bare.version == -1  # the next item takes its own weights again
    with pytest.raises(StaleEpoch):
        bare._take(weights(bare.model, epoch=4, value=0.5))  # type: ignore[arg-type]


def test_the_base_model_is_evaluated_with_the_adapter_switched_off_and_nothing_loaded(bare: RolloutActor) -> None:
    x, t, latent = torch.randn(1, 3, 4, 4), torch.tensor([500]), torch.randn(1, 3, 4, 4)
    base = FakeModel().policy(x, t, latent)
    load_trainable(bare.model, {n: torch.full_like(v, 0.3) for n, v in trainable_state(bare.model).items()})
    trained = bare.model.policy(x, t, latent)
    with bare._weights(None):
        assert torch.equal(bare.model.policy(x, t, latent), base)
    assert torch.equal(bare.model.policy(x, t, latent), trained) and bare.version == 9


def test_a_reward_that_is_not_finite_names_the_picture_of_each_group_that_it_costs(
    bare: RolloutActor, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Rewards:
        def score(self, rolled: object) -> None:
            raise InvalidReward("scorer nima gave nan for 1 of 4 images", [2])

    rolled = SimpleNamespace(batch=SimpleNamespace(places=(0, 2)))
    refused = [Quarantined("00000007-001", "picture", "b: it is cut off")]
    monkeypatch.setattr(module, "draw_batch", lambda *_: (object(), list(refused)))
    bare.denoising = threading.Lock()
    bare.metrics = SimpleNamespace(**dict.fromkeys(("observe_phase", "published", "reward_failed"), lambda *_: None))
    bare.spec.data = bare.spec.seed = None  # type: ignore[misc]
    bare.spec.rollout = SimpleNamespace(crop=16, rollouts_per_image=2)  # type: ignore[misc,assignment]
    monkeypatch.setattr(bare, "_denoise", lambda *_: rolled)
    monkeypatch.setattr(bare, "_score", Rewards().score)
    monkeypatch.setattr(bare, "_take", lambda _: None)
    bare.clients = {}
    app = {"nima": RewardApp("reward-run", "nima", "nima-1")}
    report = bare.roll(WorkItem(7, ("a", "b", "c")), weights(bare.model, epoch=5, value=0.5), app)  # type: ignore[arg-type]
    assert report.spans is not None and [(s.name, s.note) for s in report.spans.spans] == [("rollout", "item 7")]
    told = {q.what: q.detail for q in report.quarantined}
    assert told["00000007-000"] == "a: scorer nima gave nan for 1 of 4 images"
    assert told["00000007-002"] == "c: scorer nima gave nan for 1 of 4 images" and report.published == 0


def test_a_report_says_when_an_actor_rolled_out_waited_for_scores_and_published(
    bare: RolloutActor, monkeypatch: pytest.MonkeyPatch
) -> None:
    rolled = SimpleNamespace(batch=SimpleNamespace(places=(0,)))
    monkeypatch.setattr(module, "draw_batch", lambda *_: (object(), []))
    monkeypatch.setattr(module, "complete", lambda *_: ["record"])
    bare.denoising, published = threading.Lock(), list[str]()
    bare.metrics = SimpleNamespace(**dict.fromkeys(("observe_phase", "published"), lambda *_: None))
    bare.stream = SimpleNamespace(publish=lambda record, timeout_s: published.append(record))  # type: ignore[assignment]
    rollout = SimpleNamespace(crop=16, rollouts_per_image=2)
    bare.spec = SimpleNamespace(data=None, seed=0, rollout=rollout, publish_timeout_s=1.0, terms=None)  # type: ignore[assignment]
    for name, result in (("_denoise", rolled), ("_score", (None, None, "v")), ("_take", None), ("_metas", [])):
        monkeypatch.setattr(bare, name, lambda *_, result=result: result)
    bare.clients = {}
    report = bare.roll(WorkItem(7, ("a",)), weights(bare.model, epoch=5, value=0.5), {})  # type: ignore[arg-type]
    assert published == ["record"] and report.spans is not None
    spans = report.spans.spans
    assert [span.name for span in spans] == ["rollout", "reward", "publish"]
    assert report.spans.arrived <= spans[0].start <= spans[0].end <= spans[1].start <= report.spans.sent
    assert [span.end - span.start for span in spans] == pytest.approx(list(report.seconds.values()), abs=1e-6)


class Service:
    """A reward client whose tickets are answered with what the test says."""

    def __init__(self, answers: list[RewardResult | RewardError]) -> None:
        self.answers, self.cancelled = answers, list[RewardResult | RewardError]()

    def submit(self, images: np.ndarray) -> SimpleNamespace:
        answer = self.answers.pop(0)

        def result() -> RewardResult:
            if isinstance(answer, RewardError):
                raise answer
            assert len(answer.scores) == len(images)
            return answer

        return SimpleNamespace(result=result, cancel=lambda: self.cancelled.append(answer))


def scored(value: float, version: str, rows: int = 4) -> RewardResult:
    return RewardResult(np.full(rows, value, np.float32), version)


@pytest.fixture
def two_terms(bare: RolloutActor) -> RolloutActor:
    """Terms deqa and psnr of two images with two rollouts each, scored at decisions 0 and 1."""
    terms = RewardTerms((Term("deqa"), Term("psnr", 0.5, "psnr", served=False)))
    bare.spec = SimpleNamespace(terms=terms, score_gt=False)  # type: ignore[assignment]
    bare.references = {"psnr": full_reference("psnr")}
    return bare


def rolled_blocks(offset: int = 10) -> SimpleNamespace:
    gt = torch.full((2, 3, 8, 8), 100 / 255)
    blocks = {i: np.full((4, 8, 8, 3), 100 + offset + i, np.uint8) for i in (0, 1)}
    settings = SimpleNamespace(rollouts_per_image=2)
    return SimpleNamespace(batch=SimpleNamespace(gt=gt), blocks=blocks, settings=settings)


def test_each_term_is_scored_at_each_decision_and_the_version_is_of_all(two_terms: RolloutActor) -> None:
    two_terms.clients = {"deqa": Service([scored(3.0, "deqa-1"), scored(4.0, "deqa-1")])}  # type: ignore[dict-item]
    scores, gt_scores, version = two_terms._score(rolled_blocks())  # type: ignore[arg-type]
    assert {i: v.tolist() for i, v in scores["deqa"].items()} == {0: [3.0] * 4, 1: [4.0] * 4} and gt_scores is None
    assert np.allclose(scores["psnr"][0], 10 * np.log10(255**2 / 100)) and scores["psnr"][1].shape == (4,)
    expected = two_terms.spec.terms.version({"deqa": "deqa-1", "psnr": "psnr-1-lowlight_rgb"})
    assert version == expected


def test_a_term_whose_version_changes_within_a_rollout_is_refused_by_name(two_terms: RolloutActor) -> None:
    two_terms.clients = {"deqa": Service([scored(3.0, "deqa-1"), scored(4.0, "deqa-2")])}  # type: ignore[dict-item]
    with pytest.raises(RewardError, match=r"several versions of deqa: \['deqa-1', 'deqa-2'\]"):
        two_terms._score(rolled_blocks())  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [RewardTimeout("late"), InvalidReward("gave nan for 1 of 4 images", [2])])
def test_a_term_that_is_missing_is_a_missing_reward_of_that_kind_and_names_the_term(
    two_terms: RolloutActor, error: RewardError
) -> None:
    service = Service([error, scored(3.0, "deqa-1")])
    two_terms.clients = {"deqa": service}  # type: ignore[dict-item]
    with pytest.raises(type(error), match=f"reward term 'deqa': {error.message}") as raised:
        two_terms._score(rolled_blocks())  # type: ignore[arg-type]
    assert raised.value.indexes == error.indexes and len(service.cancelled) == 2  # nobody waits for the other


def test_a_term_of_the_actor_that_is_not_finite_is_no_reward(two_terms: RolloutActor) -> None:
    two_terms.clients = {"deqa": Service([scored(3.0, "deqa-1"), scored(4.0, "deqa-1")])}  # type: ignore[dict-item]
    broken = replace(full_reference("psnr"), score=lambda a, b: np.array([1, np.inf, 1, 1], np.float32))
    two_terms.references = {"psnr": broken}
    with pytest.raises(InvalidReward, match="reward term 'psnr' gave inf for 1 of 4") as raised:
        two_terms._score(rolled_blocks())  # type: ignore[arg-type]
    assert raised.value.indexes == (1,)


def test_pictures_too_small_for_a_term_of_the_actor_are_a_block_that_it_can_not_take(two_terms: RolloutActor) -> None:
    two_terms.spec.terms = RewardTerms((Term("ssim", 1.0, "ssim", served=False),))  # type: ignore[misc]
    two_terms.references, two_terms.clients = {"ssim": full_reference("ssim")}, {}
    with pytest.raises(InvalidBlock, match="reward term 'ssim': pictures of 8x8 are too small: sides of 11 at least"):
        two_terms._score(rolled_blocks())  # type: ignore[arg-type]
