# One virtual environment, .venv, serves every target; each target makes it first where it is missing or old.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.made-from-lock
BUF    := node_modules/.bin/buf
POLICY := $(VENV)/policy

# uv leaves compiling to the first import, which must be allowed to keep what it made.
unexport PYTHONDONTWRITEBYTECODE

# $(call install,ENVIRONMENT,WHAT): uv takes a sixth of pip's time; pip has the last word, since it alone reads pip's settings.
define install
$(BIN)/uv pip install --quiet $(addprefix --find-links ,$(PIP_FIND_LINKS)) --python $(1)/bin/python $(2) || \
  $(BIN)/python -m pip --python $(1)/bin/python install --quiet --disable-pip-version-check $(2)
endef

.DEFAULT_GOAL := help
.PHONY: help setup demo up test lint style types audit format bench overload abuse bench-compare torture fuzz proto proto-check lock clean

help: ## Show this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(STAMP) $(POLICY)/.made-from-lock ## Make .venv with everything (servers, client, models, tools)

$(STAMP): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: set PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^uv==' requirements.lock)
	$(call install,$(VENV),-r requirements.lock)
	$(call install,$(VENV),--no-deps --editable .)
	$(BIN)/python -c "import router.server, shard_server.node, sentence_transformers"  # compiles what every start needs
	@touch $@

# checkov wants versions of its own: see docs/decisions.
$(POLICY)/.made-from-lock: k8s/policy.lock | $(STAMP)
	test -x $(POLICY)/bin/python || $(BIN)/python -m venv --without-pip $(POLICY)
	$(call install,$(POLICY),-r k8s/policy.lock)
	@touch $@

demo: $(STAMP) ## Start a real cluster, load real text, answer real questions, stop
	$(BIN)/python -m loadtest.demo

up: $(STAMP) ## Start a cluster and leave it running until Ctrl-C
	$(BIN)/vectorfleet up

# Of Debian, unpacked beside us and not installed; the tests of alerts and dashboard run it.
.make/prometheus: | $(STAMP)
	$(BIN)/python -m tests.monitoring.prometheus_package

test: $(STAMP) $(POLICY)/.made-from-lock .make/prometheus ## Run every test
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

torture: $(STAMP) ## Kill a cluster's processes ROUNDS=200 times over (SEED=, FIRST=) and check what its clients saw
	$(BIN)/python -m tests.cluster.torture --rounds $(or $(ROUNDS),200) $(if $(SEED),--seed $(SEED)) $(if $(FIRST),--first $(FIRST)) $(ARGS)

fuzz: $(STAMP) ## Send N=20000 malformed requests (SEED=) to every RPC of a cluster and check that none does harm
	$(BIN)/python -m tests.cluster.fuzz --requests $(or $(N),20000) $(if $(SEED),--seed $(SEED)) $(ARGS)

lint: style types audit proto-check ## Check style, types, the contract, and dependencies for known vulnerabilities

style: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

audit: $(STAMP)
	$(BIN)/python .ci/audit_dependencies.py

format: $(STAMP) ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## Measure recall, churn, speed and memory against bare FAISS (ARGS="--peer all": and other stores)
	$(BIN)/python -m loadtest.bench $(ARGS)

overload: $(STAMP) ## Offer a cluster five times what it can answer: goodput, refusals, memory
	$(BIN)/python -m loadtest.overload $(ARGS)

abuse: $(STAMP) ## Abuse a router with idle connections, huge messages and floods while others use it
	$(BIN)/python -m loadtest.abuse $(ARGS)

bench-compare: $(STAMP) ## Put the last benchmark run beside the one before (ARGS="--before FILE" for another)
	$(BIN)/python -m loadtest.compare $(ARGS)

proto: $(STAMP) ## Regenerate vectorfleet/v1 and vectorfleet/internal from protos/
	$(BIN)/python protos/generate.py

proto-check: $(STAMP) $(BUF) ## Check that the contract is clean, compatible, and that its code is current
	$(BUF) lint protos
	$(BUF) format protos --diff --exit-code
	$(BUF) breaking protos --against protos/baseline.binpb
	$(BIN)/python protos/generate.py --check

$(BUF): package.json
	npm install --silent --no-audit --no-fund --no-package-lock
	@touch $@

lock: ## Renew requirements.lock from pyproject.toml
	$(BIN)/pip-compile --quiet --no-header --strip-extras --no-emit-index-url --no-emit-find-links --no-annotate \
	  --extra local --extra embed --extra parquet --extra dev --output-file requirements.lock pyproject.toml
	sed -i -E -e 's/^([^#]+)\+[a-z0-9.]+$$/\1/' -e '/^vectorfleet @/d' requirements.lock  # a local build's label, such as +cpu, is on no index; nor are we

clean: ## Remove what the targets made
	rm -rf $(VENV) node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis
