# The verbs of this project. `make pretrain` is the whole of it; PRESET=smoke is the first look.
PRESET ?= laptop
N ?= 20
IN := .venv/bin
SERVICES := $(IN)/python -m services
.DEFAULT_GOAL := help
# `tests` is a folder as well
.PHONY: help setup pretrain test lint tests check faults faults-all test-isa test-infra test-fresh deploy-workers destroy-workers up down status doctor clean lock

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

setup: ## everything that a clean clone needs, into .venv/; nothing when nothing changed
	@PYTHON=$(PYTHON) TORCH=$(TORCH) deployments/setup.sh $(WITH)

test check faults faults-all test-isa test-infra: WITH := --tests

pretrain: setup up ## raw text to an aligned, evaluated, exported model, through the Prefect server (PRESET=laptop)
	@$(IN)/python -m services.watch pretrain/full preset=$(PRESET)

test: setup ## everything that CI runs: lint, types and all tests
	@$(MAKE) -j 2 --no-print-directory --output-sync=target lint tests

lint: ## lint and types; make test runs `tests` beside it
	@$(IN)/ruff check . && $(IN)/ruff format --check . && $(IN)/mypy

tests: ## all tests, in three processes: some of them mostly wait
	@$(IN)/python -m pytest -q -n 3 --no-loadscope-reorder

check: setup ## format, lint, types, and the tests that start no process, server or whole stage
	@$(IN)/ruff format . && $(IN)/ruff check . && $(IN)/mypy && $(IN)/python -m pytest -q -n 2 -m "not slow and not e2e"

faults: setup ## N kills at random moments of whole runs, on disk and on S3, from a seed (N=20 SEED=…); 20 take about a quarter of an hour
	@$(IN)/python -m tests.e2e.kills random --kills $(N) $(if $(SEED),--seed $(SEED))

faults-all: setup ## a kill inside every stage, then every test on demand: 1,000 faults of an S3 server, full disks, Ctrl-C, ranks that hang, machines that go
	@$(IN)/python -m tests.e2e.kills chained --workers 2 && BESSEMER_FAULTS=1000 $(IN)/python -m pytest -q -s -m on_demand

test-isa: setup ## the numeric tests under each instruction set that torch, oneDNN, MKL, Numba, OpenBLAS and NumPy can be held to
	@$(IN)/python -m tests.isa $(if $(ONLY),--only "$(ONLY)")

test-infra: setup ## GPU machines: checkov, cloud-init, systemd, then plan, apply, apply, destroy on an AWS emulator (a quarter of an hour)
	@$(IN)/python infra/terraform/tests/checks.py && $(IN)/python infra/terraform/tests/apply.py 124m dev && $(IN)/python infra/terraform/tests/apply.py 1b prod

test-fresh: ## a bare Debian in a folder: set-up and smoke, as root and as an ordinary user (SYSTEMS="bookworm trixie"; root, half an hour each)
	@SYSTEMS="$(SYSTEMS)" tests/deployments/fresh.sh

deploy-workers: setup ## GPU machines on AWS: plan shown, apply (ENV=dev VARS=my.tfvars STATE_BUCKET=… REGION=…)
	@$(IN)/python -m infra.machines.deploy_workers apply "$(ENV)" --vars "$(VARS)" --state-bucket "$(STATE_BUCKET)" --region "$(REGION)"

destroy-workers: setup ## take them down again; the data bucket is kept
	@$(IN)/python -m infra.machines.deploy_workers destroy "$(ENV)" --vars "$(VARS)" --state-bucket "$(STATE_BUCKET)" --region "$(REGION)"

up: setup ## Prefect server and worker in the background, on loopback, with a password (BESSEMER_PORT=4200)
	@$(SERVICES) up

down: ## stop them, after active runs have checkpointed
	@test ! -x $(IN)/python || $(SERVICES) down

status: ## what runs
	@test -x $(IN)/python && $(SERVICES) status || echo "nothing is set up here: make setup"

doctor: ## what this machine lacks, a line a check (PRESET=laptop)
	@test -x $(IN)/python && $(IN)/python -m flows doctor --preset $(PRESET) || exit 1

clean: down ## remove .venv/ and caches; what runs have made stays, and their history in .prefect/
	@rm -rf .venv .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info && find . -name __pycache__ -type d -prune -exec rm -rf {} +

lock: setup ## resolve pyproject.toml into deployments/locks
	@$(IN)/python deployments/lock.py
