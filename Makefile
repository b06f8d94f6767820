# Every target sets up what it needs. `make` alone says what there is.
SHELL := /bin/bash
.DEFAULT_GOAL := help
UV_VERSION := 0.13.9
# 3.12 where there is a choice, else any Python from 3.11 on.
PYTHON ?= $(shell for p in python3.12 python3.13 python3.11 python3.14 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
# ansible, molecule and pytest find each other by PATH; the machine's own certificates are trusted.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export UV_SYSTEM_CERTS := 1
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
# Where this is set, as in many images, each of a run's hundreds of processes would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## Say what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

.PHONY: venv
venv: .venv/installed ## Virtual environment from the lock

.venv/installed: requirements.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: install it, or name one: make PYTHON=/path/to/python3"; exit 1; }
	@echo "==> Virtual environment (.venv) with $$($(PYTHON) --version)"
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		test "$$(id -u)" = 0 && command -v apt-get >/dev/null || { echo "This Python has no venv: apt-get install python3-venv"; exit 1; }; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends python3-venv >/dev/null; }
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.txt
	@touch $@

.PHONY: lock
lock: .venv/installed ## Renew the locks from pyproject.toml
	@$(BIN)/uv pip compile pyproject.toml --group emulator --group test -o requirements.txt $(LOCK_OPTIONS)
	@$(BIN)/uv pip compile --group emulator -c requirements.txt -o emulator/requirements.txt $(LOCK_OPTIONS)
LOCK_OPTIONS := --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header --quiet

.PHONY: images
images: .venv/installed ## Docker engine where none runs, VM and cloud images
	@$(BIN)/python -m emulator images

WHEELS := .cache/wheels/.complete
# The scenario `upgrade` begins with older releases, whose own wheels are for every Python.
OLDER := $(wildcard molecule/upgrade/locks/*.txt)

.PHONY: wheels
wheels: $(WHEELS) ## MLflow's wheels for the Pythons of Debian 12 and 13, shared by all scenarios

# pip runs inside the VM images, so that the lock's markers meet the Python they are about.
$(WHEELS): roles/mlflow/files/requirements-3.17.2.txt $(OLDER) | images
	@echo "==> Fetching MLflow's wheels"
	@mkdir -p .cache/wheels
	@for family in debian-12 debian-13; do docker run --rm -v "$(CURDIR)/.cache/wheels:/wheels" \
		-v "$(CURDIR)/roles/mlflow/files:/files:ro" -e PYTHONPATH=/opt/pip \
		-v "$$(python -c 'import pathlib, pip; print(pathlib.Path(pip.__file__).parent)'):/opt/pip/pip:ro" \
		mlflow-gcp/vm:$$family python3 -m pip download --quiet --disable-pip-version-check --no-cache-dir \
		--require-hashes --only-binary=:all: --dest /wheels -r /files/requirements-3.17.2.txt || exit 1; done
	@for lock in $(OLDER); do $(BIN)/python -m pip download --quiet --disable-pip-version-check --no-cache-dir --no-deps \
		--require-hashes --only-binary=:all: --dest .cache/wheels -r $$lock || exit 1; done
	@touch $@

# For `make long` alone, as is the scenario that installs them.
.PHONY: oidc-wheels
oidc-wheels: wheels
	@for family in debian-12 debian-13; do docker run --rm -v "$(CURDIR)/.cache/wheels:/wheels" \
		-v "$(CURDIR)/roles/mlflow/files:/files:ro" -e PYTHONPATH=/opt/pip \
		-v "$$(python -c 'import pathlib, pip; print(pathlib.Path(pip.__file__).parent)'):/opt/pip/pip:ro" \
		mlflow-gcp/vm:$$family python3 -m pip download --quiet --disable-pip-version-check --no-cache-dir --no-deps \
		--require-hashes --only-binary=:all: --dest /wheels -r /files/oidc-requirements-3.17.2.txt || exit 1; done

.PHONY: clean
clean: ## Remove all that was started or made here, but the virtual environment and the images
	@if test -e .venv/installed && docker version >/dev/null 2>&1; then \
		$(BIN)/python -m emulator down; \
		docker ps --all --quiet --filter label=mlops.mlflow_gcp=molecule | xargs -r docker rm --force >/dev/null; \
	fi
	@# A new one cannot start before this one has ended.
	@if test -e .cache/dockerd.pid; then pid="$$(cat .cache/dockerd.pid)"; kill "$$pid" && rm .cache/dockerd.pid \
		&& timeout 60 tail --pid="$$pid" --follow /dev/null; fi

EMULATED := set -a; . .emulator/env; set +a;

.PHONY: emulator
emulator: .venv/installed ## Emulated Google Cloud; prints the environment that points any client at it
	@$(BIN)/python -m emulator up

.PHONY: demo
demo: .venv/installed ## The whole thing on this machine: cloud, server, a first model
	@$(BIN)/python -m emulator up >/dev/null
	@echo "==> ansible-playbook site.yml -i inventories/local"
	@$(EMULATED) ansible-playbook site.yml -i inventories/local
	@echo "==> Training a model with the MLflow client"
	@$(EMULATED) MLFLOW_TRACKING_URI=https://mlflow.localhost MLFLOW_TRACKING_USERNAME=admin \
		MLFLOW_TRACKING_PASSWORD="$$(python examples/admin_password.py)" MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT=true \
		MLFLOW_ARTIFACT_BUCKET=demo-project-mlflow-artifacts python examples/train.py
	@cat examples/demo.txt

.PHONY: demo-down
demo-down: .venv/installed ## Remove the demo without a trace
	@$(BIN)/python -m emulator down

.PHONY: docs
docs: .venv/installed ## Write docs/resources.md and docs/variables.md from the roles and the table of kinds
	PYTHONPATH=.collections python docs/generate.py

.PHONY: bench
bench: .venv/installed ## Calls and seconds of provisioning, beside the same work with google.cloud
	PYTHONPATH=.:.collections python -m bench

.PHONY: lint
lint: .venv/installed ## ansible-lint, yamllint, ruff, mypy
	ruff check .
	ruff format --check .
	mypy
	yamllint --strict .
	ansible-lint --offline --strict

SANITY := .cache/sanity/ansible_collections/mlops/mlflow_gcp
SANITY_TESTS := action-plugin-docs ansible-doc compile empty-init ignores import line-endings no-assert no-get-exception \
	no-illegal-filenames no-smart-quotes pep8 replace-urlopen runtime-metadata shebang symlinks use-argspec-type-path \
	use-compat-six validate-modules yamllint

.PHONY: sanity
sanity: .venv/installed ## Ansible's own checks of a collection, those that fit; CONTRIBUTING.md says which do not
	@rm -rf $(SANITY) && mkdir -p $(SANITY) .cache/sanity/home/.ansible/test/cache
	@git ls-files -z | xargs -0 cp --no-dereference --parents --target-directory=$(SANITY)
	@git init --quiet $(SANITY)
	@# ansible-test would fetch pip from a server of its own: this stands where it keeps that. Python carries one.
	@printf 'import ensurepip\n\nensurepip.bootstrap()\n' > .cache/sanity/home/.ansible/test/cache/get_pip_24_2.py
	@cd $(SANITY) && HOME=$(CURDIR)/.cache/sanity/home ansible-test sanity $(SANITY_TESTS:%=--test %) \
		--python "$$(python -c 'import sys; print("%d.%d" % sys.version_info[:2])')" plugins/ meta/ galaxy.yml

.PHONY: unit
unit: .venv/installed ## Unit and structure tests, and provisioning without machines
	pytest -q --durations=25 -n 2 --dist loadfile --no-loadscope-reorder tests/provision tests/structure tests/unit

SCENARIOS := upgrade mlflow iap_verifier certbot ops_agent cloud_sql_proxy nginx server_secrets server_egress upkeep
SIDE_BY_SIDE = $(MAKE) --no-print-directory --jobs=3 --keep-going

.PHONY: molecule
molecule: images wheels ## Every server role on Debian 12 and 13, in systemd containers, three at a time
	@$(SIDE_BY_SIDE) $(addprefix logged-scenario-,$(SCENARIOS))

scenario-%:
	molecule test -s $* $(if $(MOLECULE_SYSTEM),--platform-name $*-$(MOLECULE_SYSTEM))

logged-%: # One target; its log is printed when it fails.
	@mkdir -p build/logs
	@echo "==> $* (build/logs/$*.log)"
	@# The longest of all goes before what runs beside it.
	@begun=$$(date +%s); $(if $(filter integration,$*),,nice) $(MAKE) --no-print-directory $* >build/logs/$*.log 2>&1 \
		|| { tail -n 200 build/logs/$*.log; echo "==> $* failed"; exit 1; }; \
		echo "==> $* passed in $$(($$(date +%s) - begun)) s"

.PHONY: browser
browser: # What the browser test needs; certutil makes the browser trust the emulated certificate authority.
	@{ command -v chromium && command -v certutil; } >/dev/null || { \
		test "$$(id -u)" = 0 && command -v apt-get >/dev/null || { echo "The browser test needs chromium and certutil: install them"; exit 1; }; \
		echo "==> Installing Chromium"; apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium libnss3-tools >/dev/null; }

.PHONY: integration
integration: images browser ## The real playbooks against the emulated cloud, end to end
	pytest -q --durations=25 tests/integration

.PHONY: faults
faults: images ## What fails while a client writes, and for how long: docs/faults.md
	@pytest -q tests/integration/test_healing.py
	@sed -e '/^| fault/,$$d' docs/faults.md > build/faults.head && cat build/faults.head build/faults.md > docs/faults.md

.PHONY: security
security: images ## How closed a server is, in figures: docs/security.md
	@pytest -q tests/integration/test_security.py
	@sed -e '/^| figure/,$$d' docs/security.md > build/security.head && cat build/security.head build/security.md > docs/security.md

.PHONY: backups
backups: images ## What backups, restores and drills take, and what they compare: docs/backups.md
	@rm -f build/backups.md
	@pytest -q tests/integration/test_backup.py
	@sed -e '/^|---|---|---|---|---|$$/q' docs/backups.md > build/backups.head && cat build/backups.head build/backups.md > docs/backups.md

.PHONY: upgrades
upgrades long: export UPGRADE_REQUESTS := 10000
upgrades: images wheels ## How many requests an upgrade fails, and how slow the slowest is: docs/upgrades.md
	@rm -f build/upgrades.md
	@molecule test -s upgrade
	@molecule test -s servers
	@sed -e '/^|---|---|---|---|---|---|---|$$/q' docs/upgrades.md > build/upgrades.head && cat build/upgrades.head build/upgrades.md > docs/upgrades.md

# The cloud that a killed run left on this machine would be taken for what this run made.
.PHONY: empty
empty: images # For CI: whoever runs `make test` beside a demo keeps the demo.
	@$(BIN)/python -m emulator down

# Longest first, so that those that run side by side end together.
FIRST := images
TESTS := integration scenario-upgrade unit $(addprefix scenario-,$(filter-out upgrade,$(SCENARIOS))) sanity

.PHONY: test
test: export PYTEST_ADDOPTS := -m "not long"
# Integration has every role of the servers on Debian 12; `make long` has both.
test: export MOLECULE_SYSTEM := debian-13
test: .venv/installed ## Everything CI runs, from nothing
	@# Lint needs no image, and making those needs no whole processor.
	@$(MAKE) --no-print-directory logged-lint & lint=$$!; failed=0; \
		$(MAKE) --no-print-directory $(FIRST) wheels browser && $(SIDE_BY_SIDE) $(addprefix logged-,$(TESTS)) || failed=1; \
		wait $$lint && exit $$failed

.PHONY: long
long: images wheels oidc-wheels browser ## With what `make test` leaves out for the time it takes: before a release
	@for scenario in $(SCENARIOS) oidc servers; do molecule test -s $$scenario || exit 1; done
	@# Whole, as some of their tests go on from others.
	pytest -q --durations=25 tests/integration
	pytest -q --durations=25 $(addprefix tests/provision/test_,$(addsuffix .py,backup destroy private private_service_connect))
