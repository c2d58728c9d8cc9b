"""Every base model through the actor, the reward service, the stream and the learner of the real system.

Two worker processes are kept for all models, since starting one takes far longer than a model's turn.
"""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import yaml

from actors.actor import ActorSpec, EvaluationSpec, RolloutActor
from actors.work import WorkReport, WorkSequence
from cluster.config.configure import load_config, save_config
from cluster.config.recipe import RunConfig
from cluster.metrics import RunMetrics
from cluster.models import load_policy
from learner.process import RankProcess
from learner.source import BatchSource
from restoration.base_models import load
from restoration.base_models.interface import SamplerSettings
from restoration.datasets.paired import discover
from restoration.evaluate import evaluate_pairs
from restoration.weights import WeightsMessage, from_bytes
from reward_service import service
from tests.restoration.released_models import MODELS
from tests.system.conftest import write_pairs
from trajectories.server import EmbeddedServer
from trajectories.settings import StoreAddress
from trajectories.stream import TrajectoryStream

pytestmark = pytest.mark.timeout(600)
WORKER = {"num_cpus": 0.2, "runtime_env": {"env_vars": {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}}}

CONTRAST = "tests.system.scorers:Contrast"


def stream_of(address: StoreAddress, run_id: str, config: RunConfig) -> TrajectoryStream:
    return TrajectoryStream(address, run_id, config.store)


class Actor:
    """A process that is one rollout actor after the other."""

    def begin(self, spec: ActorSpec) -> None:
        self.actor = RolloutActor(spec)

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self.actor, method)(*arguments)


class Rank:
    """A process that is one learner rank after the other."""

    def begin(self, config: RunConfig, make_stream: Any, train: Any) -> None:
        self.rank = RankProcess(partial(load, config.model), partial(getattr, train, "load"))
        host, port = self.rank.address()
        self.rank.start(config.learner_settings(), 0, 1, host, port, "cpu")
        self.rank.open_stream(make_stream)

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self.rank, method)(*arguments)


@dataclass
class System:
    store: StoreAddress
    rewards: Any
    actor: Any
    rank: Any
    pairs: Path

    def ask(self, host: Any, method: str, *arguments: Any) -> Any:
        return ray.get(host.call.remote(method, *arguments), timeout=120)

    def publish(self, version: int) -> WeightsMessage:
        return WeightsMessage(version, 1, self.rank.call.remote("weights", 1, "run", False))


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("models")
    write_pairs(folder / "pairs", side=64)
    settings = RunConfig(model=folder, reward={"scorer": CONTRAST, "num_cpus": 0.2}).reward.services[CONTRAST]  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch, EmbeddedServer(folder / "store") as server:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_agent_register_timeout_ms", "120000")
        ray.init("local", num_cpus=2, include_dashboard=False, logging_level="warning")
        try:
            actor, rank = (ray.remote(kind).options(**WORKER).remote() for kind in (Actor, Rank))
            yield System(server.address, service.deploy(settings, "reward-models"), actor, rank, folder / "pairs")
        finally:
            ray.shutdown()


QUICK = ("diffbir", "controlnet", "stablesr", "pisa", "flux")  # one of each way to roll out, train and decode


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=() if n in QUICK else pytest.mark.slow)
        for n in MODELS
        if n not in ("seesr", "controlnet_sdxl")  # as rap, controlnet
    ],
)
def test_a_model_goes_from_rollout_through_reward_and_learner_step_to_restored_pictures(
    system: System, name: str, tmp_path: Path
) -> None:
    MODELS[name](tmp_path).save(tmp_path / "model")
    steps = load(tmp_path / "model").sampler.steps
    recipe = {
        "model": str(tmp_path / "model"),
        "data": {"root": str(system.pairs)},
        "sampler": {"steps": min(steps, 2)},
        "rollout": {"images_per_batch": 2, "rollouts_per_image": 2, "crop": 64},
        "reward": {"scorer": CONTRAST},
        "adapt": {"rank": 2},
        "optimiser": {"lr": 1e-3},
        "source": {"groups_per_step": 2, "max_staleness": 0, "timeout_s": 60},
        "learner": {"norms_every": 0},
    }
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    config = load_config(RunConfig, tmp_path / "recipe.yaml")
    save_config(config, run / "config.yaml")
    train = discover(config.data.root, config.data.train)
    heldout = discover(config.data.root, config.data.heldout)
    make_stream = partial(stream_of, system.store, name, config)
    with make_stream() as stream:
        assert stream.begin_epoch() == 1
    of = config.evaluation
    spec = ActorSpec(
        run_id=name,
        seed=0,
        model=config.model,
        embeddings=None,
        data=train,
        sampler=config.sampler,
        rollout=config.rollout,
        evaluation=EvaluationSpec(heldout, of.protocol, of.seed, 1, of.pixels, of.limit, of.dtype, of.tiling),
        adapt=config.adapt,
        score_gt=False,
        device="cpu",
        threads=1,
        publish_timeout_s=30,
        fetch_timeout_s=60,
        stream=make_stream,
        metrics=partial(RunMetrics, "actor", "models"),
        judges=dict,
        terms=config.reward.resolved,
    )
    ray.get([system.actor.begin.remote(spec), system.rank.begin.remote(config, make_stream, train)], timeout=240)

    before = system.publish(0)
    report: WorkReport = system.ask(
        system.actor, "roll", WorkSequence(train.image_ids, 2, 0).item(0), before, {CONTRAST: system.rewards}
    )
    assert report.published == 2 and not report.quarantined
    with make_stream() as stream:
        schedule = load(config.model).schedule(config.sampler)
        source = BatchSource(stream, stream, config.source, schedule.fingerprint, system.rewards.version, epoch=1)
        stop = threading.Event()
        threading.Timer(60, stop.set).start()
        batch = source.collect(0, stop)
        assert batch.staleness == [0, 0]
        assert system.ask(system.rank, "prepare", batch.groups) == []
        metrics = system.ask(system.rank, "step", batch.groups)
        assert metrics["weights_version"] == 1 and metrics["reward_mean"] > 0
        source.use(batch, 1)
        system.ask(system.rank, "snapshot")
        system.ask(system.rank, "write", run / "checkpoints", 1, 1, {}, (), 1)
        source.settle(source.not_yet_durable())
        assert stream.audit().consumed == 2
    # 1 but for what another batch size changes in the last bits; tests/restoration has it to 1e-6 at an equal one
    assert metrics["ratio_min"] == pytest.approx(1, abs=1e-4) and metrics["ratio_max"] == pytest.approx(1, abs=1e-4)

    after = system.publish(1)
    old, new = (from_bytes(memoryview(ray.get(message.ref)), 1)[0] for message in (before, after))
    targets = load(config.model).lora_targets
    assert new.keys() == old.keys() and all(re.fullmatch(targets, n.partition(".lora_")[0]) for n in new)
    assert any(not new[n].equal(old[n]) for n in new)
    ids = heldout.image_ids[:1]
    _, tuned, _ = system.ask(system.actor, "evaluate", ids, after, (), ids, {CONTRAST: system.rewards})
    torch.set_num_threads(spec.threads)  # more would change the last bits
    policy, sampler = load_policy(run)
    assert sampler == config.sampler and isinstance(sampler, SamplerSettings)
    seen: dict[str, Any] = {}

    def keep(image_id: str, lq: Any, out: Any, gt: Any) -> None:
        seen[image_id] = out.copy()

    evaluate_pairs(policy, heldout, sampler, {}, of.protocol, of.seed, 1, on_image=keep)
    assert tuned[ids[0]].std() > 1
    assert (tuned[ids[0]] == seen[ids[0]]).all()
    shutil.rmtree(tmp_path)
