"""`pyiqa:NAME`: the adapter with a small package in pyiqa's place, and with pyiqa itself where it is installed."""

from __future__ import annotations

import os
import random
import socket
import sys
import types
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from reward_service.scorers import Scorer, make_scorer
from reward_service.scorers.offline import Refused, Unsafe, offline
from tests.reward_service.company import reads_only, scores_in_any_company

WEIGHTS = "https://weights.example/judge-1.pth"


class Metric(nn.Module):
    """In the place of pyiqa's InferenceModel."""

    def __init__(self, rule: Callable[[Tensor], Any], lower: bool = False, score_range: str | None = None) -> None:
        super().__init__()
        self.rule, self.lower_better, self.score_range = rule, lower, score_range
        self.offset = torch.zeros(1)  # a plain attribute, as NIQE's parameters are
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Any:
        assert x.dtype == torch.float32 and x.dim() == 4 and x.shape[1] == 3 and x.min() >= 0 and x.max() <= 1
        self.sizes.append(len(x))
        return self.rule(x) + self.offset if isinstance(self.rule(x), Tensor) else self.rule(x)


def brightness(x: Tensor) -> Tensor:
    return x.mean((1, 2, 3)) * 100


def refuses_black(x: Tensor) -> Tensor:
    if not x.any():
        raise RuntimeError("singular matrix")
    return brightness(x)


def fetches(**_: Any) -> Metric:
    urllib.request.urlopen(WEIGHTS, timeout=5)
    raise AssertionError


def judge(pretrained_model_path: str | None = None) -> Metric:
    if pretrained_model_path is None:
        return fetches()
    made = Metric(brightness)
    made.offset = torch.load(pretrained_model_path, weights_only=False)
    return made


METRICS: dict[str, tuple[str, Callable[..., Metric]]] = {
    "bright": ("NR", lambda: Metric(brightness, score_range="0, ~100")),
    "dark": ("NR", lambda: Metric(lambda x: brightness(x)[:, None], True, "0, 100")),
    "unbounded": ("NR", lambda: Metric(brightness)),
    "company": ("NR", lambda: Metric(lambda x: brightness(x) + len(x))),
    "chance": ("NR", lambda: Metric(lambda x: brightness(x) + torch.rand(1) + np.random.rand() + random.random())),
    "black": ("NR", lambda: Metric(refuses_black)),
    "tuple": ("NR", lambda: Metric(lambda x: (brightness(x), "more"))),
    "holes": ("NR", lambda: Metric(lambda x: brightness(x).log())),
    "single": ("NR", lambda: Metric(lambda x: brightness(x).mean())),
    "full": ("NR", lambda: Metric(lambda x: (_ for _ in ()).throw(torch.cuda.OutOfMemoryError("CUDA out of memory")))),
    "fetches": ("NR", fetches),
    "late": ("NR", lambda: Metric(lambda x: socket.create_connection(("weights.example", 443), 5))),
    "judge": ("NR", judge),
    "psnr": ("FR", lambda: Metric(brightness)),
    "fid": ("NR", lambda: Metric(brightness)),
}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    package = types.ModuleType("pyiqa")
    package.__version__ = "9.9"  # type: ignore[attr-defined]
    package.list_models = lambda mode=None: [n for n, (m, _) in METRICS.items() if mode in (None, m)]  # type: ignore[attr-defined]

    def create_metric(name: str, device: torch.device, **options: Any) -> Metric:
        assert isinstance(device, torch.device)
        return METRICS[name][1](**options)

    package.create_metric = create_metric  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyiqa", package)
    yield


def made(metric: str, **params: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make_scorer(f"pyiqa:{metric}", "cpu", **params)


def pictures(count: int = 5, side: int = 32) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, side, side + 8, 3), dtype=np.uint8)


def wanted(images: np.ndarray) -> np.ndarray:
    return images.mean((1, 2, 3), dtype=np.float64) / 2.55


def test_scores_are_the_metrics_and_its_range_too(fake: None) -> None:
    scorer, images = made("bright"), pictures()
    assert isinstance(scorer, Scorer) and scorer.name == "pyiqa:bright" and scorer.range == (0.0, np.inf)
    np.testing.assert_allclose(scores_in_any_company(scorer, images), wanted(images), rtol=1e-5)
    reads_only(scorer, images)
    assert made("tuple").score(images).dtype == np.float32 and made("unbounded").range == (-np.inf, np.inf)


def test_where_lower_is_better_the_sign_is_turned(fake: None) -> None:
    scorer, images = made("dark"), pictures()
    np.testing.assert_allclose(scorer.score(images), -wanted(images), rtol=1e-5)
    assert scorer.range == (-100.0, 0.0) and not np.signbit(scorer.range[1])


def test_its_non_commercial_licence_is_said_when_it_is_loaded(fake: None) -> None:
    with pytest.warns(UserWarning, match="pyiqa:bright: pyiqa is under PolyForm-Noncommercial-1.0.0,.* non-commercial"):
        make_scorer("pyiqa:bright")


def test_a_metric_that_looks_at_the_company_or_at_chance_gives_each_picture_one_score(fake: None) -> None:
    images = pictures()
    np.testing.assert_allclose(scores_in_any_company(made("company"), images), wanted(images) + 1, rtol=1e-5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    scores_in_any_company(made("chance"), images)
    assert torch.equal(before[0], torch.get_rng_state()) and random.getstate() == before[2]
    assert np.array_equal(before[1], np.random.get_state()[1])
    together = made("company", batch=3)
    np.testing.assert_allclose(together.score(images), wanted(images) + [3, 3, 3, 2, 2], rtol=1e-5)


def test_a_picture_without_a_number_is_nan_and_its_mates_keep_theirs(fake: None) -> None:
    images = pictures()
    images[2] = 0
    for metric in ("holes", "black"):
        scorer = made(metric)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            scores = scorer.score(images)
        assert np.isnan(scores).tolist() == [False, False, True, False, False]
        assert [("singular matrix" in str(w.message)) for w in said] == [True] * (metric == "black")
    with pytest.raises(RuntimeError, match="pyiqa:black: the metric fails on pictures of 40x32 .*singular matrix"):
        scorer.score(images[2:3])


def test_what_is_no_number_for_each_picture_or_no_memory_is_raised(fake: None) -> None:
    with pytest.raises(RuntimeError, match=r"returned \[1\] for 2 pictures"):
        made("single", batch=2).score(pictures(4))
    with pytest.raises(MemoryError, match="not enough memory on cpu for 1 pictures of 40x32: set a smaller `batch`"):
        made("full").score(pictures(2))


def test_nothing_is_fetched_while_it_is_made_or_scores(fake: None) -> None:
    with pytest.raises(ValueError, match=f"pyiqa:fetches wants a file that isn't here, .*{WEIGHTS}"):
        made("fetches")
    with pytest.raises(RuntimeError, match="weights.example"):
        made("late").score(pictures(2))


def test_weights_of_the_user_are_read_and_are_part_of_the_version(fake: None, tmp_path: Path) -> None:
    versions = set()
    for offset in (1.0, 2.0):
        torch.save(torch.tensor([offset]), file := tmp_path / "judge.pth")
        scorer, images = made("judge", pretrained_model_path=str(file)), pictures()
        np.testing.assert_allclose(scorer.score(images), wanted(images) + offset, rtol=1e-5)
        versions.add(scorer.version)
        assert scorer.version.startswith("pyiqa-9.9-judge-")
    (tmp_path / "elsewhere").mkdir()
    moved = file.rename(tmp_path / "elsewhere" / "c.pth")
    assert made("judge", pretrained_model_path=str(moved)).version in versions
    assert len(versions) == 2 and made("bright").version == made("bright").version
    with pytest.raises(ValueError, match=f"wants a file .*{WEIGHTS}. Download it yourself"):
        made("judge")
    with pytest.raises(ValueError, match="pretrained_model_path=/nowhere: no such file"):
        made("judge", pretrained_model_path="/nowhere")


class Program:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


def test_a_file_with_a_program_in_it_is_not_unpickled(
    fake: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(Program(), file := tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="its file isn't tensors alone"):
        made("judge", pretrained_model_path=str(file))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "params", "told"),
    [
        ("pyiqa:brigth", {}, "pyiqa has no such metric; choose bright"),
        ("pyiqa:psnr", {}, "psnr compares with the ground truth, .* as terms there are psnr, ssim"),
        ("pyiqa:fid", {}, "fid judges sets of pictures"),
        ("pyiqa:bright", {"batch": 0}, "batch=0"),
        ("pyiqa:bright", {"least_side": True}, "least_side=True"),
        ("pyiqa:bright", {"colour": "red"}, "unexpected keyword argument 'colour'"),
    ],
)
def test_what_is_no_scorer_is_refused_by_name(fake: None, name: str, params: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        made(name.removeprefix("pyiqa:"), **params)


def test_small_pictures_and_other_types_are_refused(fake: None) -> None:
    for images, told in ((pictures(2, 31), "too small"), (pictures(2).astype(np.float32), "not float32")):
        with pytest.raises(ValueError, match=told):
            made("bright").score(images)
    assert len(made("bright", least_side=8).score(pictures(2, 8))) == 2


def test_without_the_package_one_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(ValueError, match=r"pyiqa:niqe needs the package pyiqa, an extra .*'restorl\[pyiqa\]'"):
        make_scorer("pyiqa:niqe")


# -- the guard


def test_the_guard_closes_the_network_to_its_thread_for_its_time_only() -> None:
    with socket.socket() as server, socket.socket() as client, socket.socket() as other:
        server.bind(("127.0.0.1", 0))
        server.listen()
        with offline() as wanted:
            with pytest.raises(Refused, match="127.0.0.1 was wanted"):
                client.connect(server.getsockname())
            with pytest.raises(Refused):
                socket.getaddrinfo("weights.example", 443)
        assert wanted == ["127.0.0.1", "weights.example"]
        other.connect(server.getsockname())


def test_the_guard_lets_nothing_but_data_be_unpickled(tmp_path: Path) -> None:
    import pickle

    content = pickle.dumps(Program())
    with offline(), pytest.raises(Unsafe, match=r"posix\.mkdir"):
        pickle.loads(content)
    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    with offline():
        assert pickle.loads(pickle.dumps({"a": [1, 2.5]})) == {"a": [1, 2.5]}
    assert os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD") == before


# -- pyiqa itself


@pytest.fixture(scope="module")
def real() -> Any:
    return pytest.importorskip("pyiqa", reason="an extra, which the suite does without")


def photographs() -> np.ndarray:
    files = sorted((Path(__file__).parents[2] / "data" / "photos").rglob("*.jpg"))[:3]
    return np.stack([np.asarray(Image.open(file).convert("RGB"))[:200, :240] for file in files])


def test_metrics_without_a_file_equal_pyiqas_own_call(real: Any) -> None:
    images = photographs()
    for name, sign in (("piqe", -1), ("entropy", 1)):
        own = real.create_metric(name, device="cpu")(torch.tensor(images).permute(0, 3, 1, 2) / 255)
        scorer = made(name)
        np.testing.assert_allclose(scores_in_any_company(scorer, images), sign * own.numpy().ravel(), rtol=1e-5)
    assert made("piqe").range == (-100.0, 0.0)


def test_niqe_with_our_parameters_as_its_file_is_our_niqe(real: Any, tmp_path: Path) -> None:
    from scipy.io import savemat

    ours = make_scorer("niqe")
    mean, covariance = ours.mean, ours.covariance  # type: ignore[attr-defined]
    savemat(file := tmp_path / "niqe.mat", {"mu_prisparam": mean.numpy()[None], "cov_prisparam": covariance.numpy()})
    images = photographs()
    scorer = made("niqe", pretrained_model_path=str(file), least_side=96)
    np.testing.assert_allclose(scores_in_any_company(scorer, images), ours.score(images) - 100, atol=0.05)


def test_a_networks_file_is_loaded_and_told_from_another(real: Any, tmp_path: Path) -> None:
    from pyiqa.archs.cnniqa_arch import CNNIQA

    images, versions = photographs(), set()
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = CNNIQA(pretrained=None).eval()
        torch.save({"params": network.state_dict()}, file := tmp_path / f"{seed}.pth")
        scorer = made("cnniqa", pretrained_model_path=str(file))
        with torch.no_grad():
            own = torch.cat([network(torch.tensor(image[None]).permute(0, 3, 1, 2) / 255) for image in images])
        np.testing.assert_allclose(scorer.score(images), own.numpy().ravel(), atol=1e-5)
        versions.add(scorer.version)
    assert len(versions) == 2


def test_pyiqas_metrics_that_want_files_name_them(real: Any) -> None:
    for name, file in (("niqe", "niqe_modelparameters.mat"), ("musiq", "musiq_koniq_ckpt-e95806b9.pth")):
        with pytest.raises(ValueError, match=f"wants a file that isn't here, .*{file}"):
            made(name)
