# Everything a person or a machine does with this repository. All targets need root, but check.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MINUTES ?= 30

.PHONY: demo demo-down test test-faults test-upgrade soak bench check unit plugin lock clean

demo: $(VENV)/.ready ## three engines as a Swarm, the plugin on each, containers that reach each other
	$(BIN)/python -m tests.demo up

demo-down: $(VENV)/.ready ## removes every trace of the demo
	$(BIN)/python -m tests.demo down

test: check ## unit, real kernel, real etcd, real engines; of the faults a part; coverage by room
	$(BIN)/python -m tests.lab ensure
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -m "not faults" --tb=short --durations=10
	$(BIN)/python -m tests.floors

test-faults: $(VENV)/.ready ## every fault on real engines, under traffic; half an hour
	$(BIN)/python -m tests.lab ensure
	$(BIN)/pytest tests/faults --tb=short --durations=10
	$(BIN)/pytest tests/e2e -m faults --tb=short --durations=10

test-upgrade: $(VENV)/.ready ## a Swarm upgraded host by host, under traffic: make test-upgrade FROM=<revision>
	$(BIN)/python -m tests.lab ensure
	$(BIN)/python -m tests.faults.rolling $(FROM)

soak: $(VENV)/.ready ## churn and random faults: make soak MINUTES=30 SEED=7
	$(BIN)/python -m tests.lab ensure
	$(BIN)/python -m tests.faults.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

bench: $(VENV)/.bench ## side by side with the built-in overlay, into bench/results: make bench [QUICK=1]
	$(BIN)/python -m tests.lab ensure
	$(BIN)/python -m bench $(if $(QUICK),--quick)

unit: $(VENV)/.ready ## what needs neither root nor engines
	$(BIN)/pytest -m "not kernel and not store and not lab"

check: $(VENV)/.ready ## what a reviewer would look at
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.links

plugin: $(VENV)/.ready ## the managed plugin: .cache/lab/plugin/…/{config.json,rootfs}
	$(BIN)/python -m tests.lab build

lock: $(VENV)/.ready ## renew the locked dependencies
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
	  --no-header --no-annotate --upgrade --quiet -o requirements.lock
	$(BIN)/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes \
	  --no-header --no-annotate --upgrade --quiet -o requirements-dev.lock
	$(BIN)/uv pip compile --group bench --universal --python-version 3.11 --generate-hashes \
	  --no-header --no-annotate --upgrade --quiet -o requirements-bench.lock

clean: ## takes down any lab and removes what was built
	-$(BIN)/python -m tests.lab clean
	rm -rf .cache $(VENV)

$(VENV)/.ready: requirements-dev.lock
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { apt-get update -q && apt-get install -y -q python3-venv; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes -r requirements-dev.lock
	@touch $@

$(VENV)/.bench: requirements-bench.lock $(VENV)/.ready
	$(BIN)/pip install --quiet --require-hashes -r requirements-bench.lock
	@touch $@
