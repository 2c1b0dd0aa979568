# What can be made here. `make help` lists it.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.SUFFIXES:

export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Bytecode beside the modules would be sent to targets and found by no one.
export PYTHONDONTWRITEBYTECODE := 1
# Here a test that finds no Docker Engine fails; run by hand it is skipped.
export RECOVERY_TESTS_STRICT := 1

# One more than most machines of a CI have processors: a part of each run is waiting for services. Tests that share the
# Docker replica, and tests of one file, stay together, and the longest begin (tests/conftest.py).
WORKERS ?= 3
PYTEST = .venv/bin/python -m pytest --numprocesses $(WORKERS) --dist loadgroup --no-loadscope-reorder \
	--durations 5 --timeout 1800

.PHONY: help
help: ## Show what can be made
	@echo "make TARGET [PYTHON=python3.12]"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

.PHONY: demo
demo: ## Break a small production on this machine as on 2025-10-21, and recover it (no Docker, no root)
	@command -v git >/dev/null 2>&1 || echo "git is missing: not needed here, but for make test: apt-get install git"
	@tools/venv demo
	@.venv/bin/python tools/demo

.PHONY: install
install: ## Make .venv with what a recovery needs: ansible-core and psycopg
	@tools/venv run

.PHONY: venv
venv:
	@tools/venv make

STAGES = lint unit real

.PHONY: test
test: venv ## Run everything, all that follows (needs a Docker Engine, or starts one; half an hour on two processors)
	@command -v git >/dev/null 2>&1 || { echo "git is missing: apt-get install git"; exit 1; }
	@tools/ensure-docker .venv/bin/python tools/test $(STAGES)

.PHONY: lint
lint: venv ## ruff, mypy, yamllint, ansible-lint (production)
	@status=0; \
	for check in "ruff check ." mypy "yamllint --strict ." ansible-lint; do \
		echo "--> $$check"; \
		.venv/bin/$$check || status=1; \
	done; \
	exit $$status

.PHONY: unit
unit: venv ## Tests of pure code, of the documentation and of the house rules
	$(PYTEST) tests/unit

.PHONY: real
real: venv ## All with real services, in one go: docker, molecule, pairwise, playbooks, replica, integration, verdicts, layouts
	@tools/ensure-package sshd pgbouncer postgresql
	@tools/ensure-docker $(PYTEST) --durations 20 --session-timeout 5300 \
		tests/docker tests/faults tests/playbooks tests/replica tests/integration tests/verdicts tests/layouts tests/compat

.PHONY: integration
integration: venv ## Tests with a real PostgreSQL and real Alembic on this machine
	@tools/ensure-docker $(PYTEST) tests/integration

.PHONY: verdicts
verdicts: venv ## Each verdict and each trap of Alembic, produced for real on this machine
	@tools/ensure-package pgbouncer
	@tools/ensure-docker $(PYTEST) tests/verdicts

.PHONY: layouts
layouts: venv ## Small applications of every layout and of all pairs of versions, and optuna, each brought to head
	@tools/ensure-package postgresql
	$(PYTEST) tests/layouts tests/compat

.PHONY: compat
compat: venv ## Each combination of versions, applications from the package index, 1,000 revisions; writes docs/compatibility.md
	@tools/ensure-package postgresql
	@COMPAT_ALL=1 COMPAT_REPORT=docs/compatibility.md $(PYTEST) --timeout 2400 tests/compat

.PHONY: playbooks
playbooks: venv ## Whole runs of ansible-playbook, refusals among them
	@tools/ensure-docker $(PYTEST) tests/playbooks

.PHONY: replica
replica: venv ## Tests of the replica itself
	@tools/ensure-docker $(PYTEST) tests/replica

.PHONY: pairwise
pairwise: venv ## Faults injected for real; runs are cut off in each stage, and by each victim, at least once
	@tools/ensure-package sshd
	@tools/ensure-docker $(PYTEST) tests/faults

.PHONY: faults
faults: venv ## The same with every stage and every victim, two runs at once ten times, and what else is too long for make test (two hours)
	@tools/ensure-package sshd
	@EVERY_PAIR=1 tools/ensure-docker $(PYTEST) tests/faults tests/playbooks tests/docker

.PHONY: docker
docker: venv ## The recovery of the Docker replica, whole
	@tools/ensure-docker $(PYTEST) tests/docker

.PHONY: molecule
molecule: venv ## Molecule scenarios on the Docker replica
	@tools/ensure-docker .venv/bin/python tools/molecule

.PHONY: performance
performance: venv ## Measure the recovery on the Docker replica, and write docs/performance.md (10 to 25 minutes)
	@tools/ensure-docker .venv/bin/python tools/measure

.PHONY: clean
clean: ## Remove environment, caches and reports (backups stay)
	@[ ! -e .cache/demo/replica ] || { \
		echo "A demo still runs. First: .venv/bin/python -m replica host down --dir .cache/demo/replica"; exit 1; }
	rm -rf .venv .cache .ansible .mypy_cache .ruff_cache .pytest_cache reports demo
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
