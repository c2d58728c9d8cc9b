# RestoRL: make setup | make demo | make test | make test-slow | make lint | make bench | make study | make faults
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Roles share cores: spinning OpenMP threads of one starve the others.
export OMP_WAIT_POLICY := PASSIVE
# A run starts a dozen processes, each of which would compile all of torch's modules anew (10 s).
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup lock test test-unit test-services test-runs test-learner lint style types
setup: $(STAMP)

# DS_BUILD_OPS=0: DeepSpeed ships as source; build no native operator.
$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 12) else f"RestoRL needs Python 3.11 or 3.12, this is {v[0]}.{v[1]}; try make PYTHON=python3.11 setup")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q uv
	DS_BUILD_OPS=0 $(BIN)/uv pip install -q --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .
	touch $(STAMP)

lock:
	uv pip compile pyproject.toml --extra dev --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --custom-compile-command 'make lock' -o requirements.lock
	cp requirements.lock requirements-pyiqa.lock  # its versions, where pyiqa lets them be
	uv pip compile pyproject.toml --extra pyiqa --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --custom-compile-command 'make lock' -o requirements-pyiqa.lock

lint: style types

style: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	nice -n 19 $(BIN)/mypy

# One process for each part that starts Ray: a process keeps the authentication of its first cluster. What starts none,
# many tiny models, takes two processes of one thread each; files in the order of their names, since those of trajectories/
# are quick and leave neither process waiting. Whole runs mostly wait, so that the services, and the types and then the
# learner, fit beside them.
test: setup
	$(MAKE) style
	$(MAKE) test-unit
	$(MAKE) -j 3 -O test-services test-runs test-learner

test-unit: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=15 \
	  --ignore=tests/learner --ignore=tests/reward_service --ignore=tests/system

test-learner: types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --durations=5 tests/learner

test-services: setup
	$(BIN)/python -m pytest --durations=5 tests/reward_service

test-runs: setup
	$(BIN)/python -m pytest --durations=5 tests/system --ignore=tests/system/test_models.py
	$(BIN)/python -m pytest --durations=5 tests/system/test_models.py

# What takes too long for every change: tests marked `slow`, in the processes of `make test`, at most half an hour. One part
# after the other: some hold figures of a service that nothing else may slow. Pytest's status 5 says that a part has none.
SLOW = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow --durations=15
.PHONY: test-slow slow-parts slow-unit slow-learner slow-services slow-runs
test-slow: setup
	timeout 1800 $(MAKE) slow-parts

slow-parts:
	$(MAKE) slow-unit
	$(MAKE) slow-learner
	$(MAKE) slow-services
	$(MAKE) slow-runs

slow-unit:
	$(SLOW) -n 2 --dist loadfile --ignore=tests/learner --ignore=tests/reward_service --ignore=tests/system || test $$? = 5

slow-learner:
	$(SLOW) tests/learner || test $$? = 5

slow-services:
	$(SLOW) tests/reward_service || test $$? = 5
	$(SLOW) tests/system/test_models.py || test $$? = 5

slow-runs:
	$(SLOW) tests/system --ignore=tests/system/test_models.py || test $$? = 5

# Whole clusters, minutes each, not in CI: a run on one that changes all the time, for who changes how actors, replicas or
# nodes come and go; what `restorl deploy` writes; a table of the paper on a cluster that stands already.
.PHONY: test-cluster
test-cluster: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m cluster --durations=15 tests/system
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m cluster --durations=15 tests/cluster/cli/test_paper.py

# The main job on real photographs; ends by printing where its report is. RUN=folder, SEED=n, ARGS='iterations=12 ...'.
SEED ?= 0
RUN ?= runs/demo-seed$(SEED)
.PHONY: demo demo-seeds pictures bench
demo: setup
	$(BIN)/restorl data demo data/demo --task rain
	rm -rf $(RUN)
	$(BIN)/restorl train configs/demo.yaml seed=$(SEED) $(ARGS) --run $(RUN)
	$(BIN)/restorl report $(RUN) --animate

demo-seeds: setup
	for seed in 0 1 2; do $(MAKE) demo SEED=$$seed RUN=runs/demo-seed$$seed || exit 1; done
	$(BIN)/python -m benchmarks.demo_seeds runs/demo-seed0 runs/demo-seed1 runs/demo-seed2

# The pictures of the pages, by the model of a run that is done: whole photographs before and after, README's strip, chain.
pictures: setup
	$(BIN)/restorl data demo data/demo --task rain
	$(BIN)/python -m benchmarks.pictures $(RUN)

# What a run over two hosts survives (network namespaces; needs root): docs/faults.md. AGAIN=1: also what has a result.
.PHONY: faults
faults: setup
	$(BIN)/python -m benchmarks.faults $(if $(AGAIN),--again)

# The paper's comparison; goes on where it was interrupted. QUICK=1: the three main arms of one seed, made anew;
# RESULTS=runs/again: all arms made anew. Both compare with the committed results. PUBLISHED=weights: LPIPS and FID, too.
RESULTS ?= $(if $(QUICK),runs/study_quick,benchmarks/results/study)
.PHONY: study
study: setup
	$(BIN)/restorl data demo data/demo --task rain --task low_light
	$(BIN)/python -m benchmarks.study --results $(RESULTS) $(if $(QUICK),--quick) $(if $(PUBLISHED),--published $(PUBLISHED))
	$(BIN)/python -m benchmarks.study_report --results $(RESULTS)

# The paper's six tables by tiny models on stand-ins of the sets, into docs/paper_tables: that all of it runs, no more.
# Of table 1 the cell DiffBIR x LOL-real by the demo's model; SFT=configs/sft_demo.yaml tunes it to the set before.
.PHONY: paper paper-cell
CELL := runs/paper_cell
paper: setup
	$(BIN)/python -m benchmarks.paper_tables

paper-cell: setup
	$(BIN)/restorl data make lol_v2_real $(CELL)/data/lol_v2_real --train 200 --test 48
	$(BIN)/restorl paper run 1 --data $(CELL)/data --models diffbir=models/demo --model diffbir --skip-missing \
	  --recipes configs/paper/demo $(if $(SFT),--sft $(SFT)) --scorer lite0_levels --pictures --out $(CELL)
	$(BIN)/restorl paper table 1 --out $(CELL) --write docs/paper_tables/demo

bench: setup
	$(BIN)/restorl data demo data/demo --task rain
	$(BIN)/python -m benchmarks.rollout
	$(BIN)/python -m benchmarks.reward_path
	$(BIN)/python -m benchmarks.store
	$(BIN)/python -m benchmarks.deqa
	$(BIN)/python -m benchmarks.scorers
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.start
	$(BIN)/python -m benchmarks.tiles
	$(BIN)/python -m benchmarks.whole_loop
	$(BIN)/python -m benchmarks.evaluation
	$(BIN)/python -m benchmarks.every_model

# Every panel and alert of `restorl watch` against a real Prometheus; ten minutes, docs/watching.md.
.PHONY: watching
watching: setup
	$(BIN)/python -m benchmarks.watching $(WATCHING)

# Of the size of a cluster, by actors and ranks that sleep: what the parts that no GPU makes faster sustain, and what
# `restorl plan` says against what runs take. Ten minutes each, by the clock: nothing else should run.
.PHONY: scale plan-bench
scale: setup
	$(BIN)/python -m benchmarks.size

plan-bench: setup
	$(BIN)/python -m benchmarks.plan
