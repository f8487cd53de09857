# The front door: `make` alone lists what there is. Nothing here touches the machine's own Python.

PYTHON ?= python3
VENV ?= .venv
PREFIX ?= /usr/local
DESTDIR ?=
# More for pytest: make test ARGS="-k ledger -x"
ARGS ?=
# Processes that share the tests; most of them wait for something.
JOBS ?= 4
# What the tests import; test-compiled is not to be had for every Python.
EXTRAS ?= test,test-compiled
# Measure other clients too: make bench PEERS=1
PEERS ?=

BIN := $(VENV)/bin
OLDEST := $(VENV)-oldest
OTHERS := $(VENV)-peers
BUILD := $(VENV)-build
MADE := $(BUILD)/made
FEDORA := $(VENV)-fedora
METADATA := setup.cfg setup.py pyproject.toml
TARGET = --destdir "$(DESTDIR)" --prefix "$(PREFIX)"
# What the tests run besides RabbitMQ.
DATABASES := mariadb-server postgresql
TOOLS := chromium fish git man-db mandoc prometheus python3-venv systemd tini zsh $(DATABASES)
PYTEST := -m pytest -n $(JOBS) --dist worksteal
PIP := -m pip --disable-pip-version-check --no-input -qq
SCHEMAS := tests/schema-packages.txt

# The tests start the command some five hundred times: let Python keep what it has compiled.
unexport PYTHONDONTWRITEBYTECODE

.DELETE_ON_ERROR:
.PHONY: help demo test test-oldest coverage tools matrix parity lint types man manual package release bench faults check \
	install uninstall clean

help:  ## list the targets
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' Makefile | expand -t 22

demo: $(VENV)/.test  ## consume real messages from a private RabbitMQ
	@tests/install.sh rabbitmq-server
	@$(BIN)/python -m tests.demo

test: $(VENV)/.test tools  ## run all tests, on a private RabbitMQ
	$(BIN)/python $(PYTEST) $(ARGS)

test-oldest: $(OLDEST)/.test  ## run the integration tests with the oldest pika we promise
	@tests/install.sh rabbitmq-server $(DATABASES)
	$(OLDEST)/bin/python $(PYTEST) tests/integration $(ARGS)

coverage: $(VENV)/.test tools  ## run all tests and say which lines they missed
	$(BIN)/coverage erase
	$(BIN)/coverage run $(PYTEST) $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

tools:  ## install what the tests run
	@tests/install.sh rabbitmq-server $(TOOLS)

matrix:  ## run all tests in other releases of Debian; wants root
	@[ "$$(id -u)" != 0 ] || tests/install.sh debootstrap
	@$(PYTHON) -m tests.matrix $(ARGS)

parity: $(VENV)/.test $(FEDORA)/.fedora  ## compare with fedora-messaging, case by case
	@tests/install.sh rabbitmq-server
	@$(BIN)/python -m tests.parity --python $(FEDORA)/bin/python $(ARGS)

lint: $(VENV)/.lint  ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.lint  ## check types
	$(BIN)/mypy
	$(BIN)/mypy tests/typed.py

man: $(VENV)/.test  ## build man/fmconsume.1
	$(BIN)/python setup.py --quiet build_manpages

manual: man  ## write the manual as web pages into build/manual
	@tests/install.sh mandoc
	$(BIN)/python packaging/manual.py build/manual

package: $(VENV)/.lint  ## build what is released in dist/, and check it
	@tests/install.sh rpm rpmlint
	$(BIN)/check-manifest
	rm -rf build dist
	$(BIN)/python -m build
	$(BIN)/twine check dist/*
	rpmlint --config packaging/rpmlint.toml packaging/fmconsume.spec

release: $(VENV)/.lint  ## build a release, try it and say how to upload it; uploads nothing
	@$(BIN)/python packaging/release.py check
	@$(MAKE) --no-print-directory package
	@$(BIN)/python packaging/release.py tell

bench: $(VENV)/.test $(if $(PEERS),$(OTHERS)/.peers $(OTHERS)/bin/rabbitmq_c)  ## measure speed, idling, memory; PEERS=1 adds other clients
	@tests/install.sh rabbitmq-server
	$(BIN)/python -m benchmarks $(if $(PEERS),--peers $(OTHERS)) $(ARGS)

faults: $(VENV)/.test  ## survive a long series of random faults
	@tests/install.sh rabbitmq-server $(DATABASES)
	$(BIN)/python -m tests.faults $(ARGS)

check: lint types package test-oldest test  ## everything that CI checks

install: $(BUILD)/.build  ## install below DESTDIR and PREFIX, for PYTHON; needs pika and tomli there
	rm -rf build $(MADE)
	$(BUILD)/bin/python $(PIP) wheel --no-deps -w $(MADE) .
	install -Dm644 etc/fmconsume.sysusers $(MADE)/data/lib/sysusers.d/fmconsume.conf
	install -Dm644 -t $(MADE)/data/share/doc/fmconsume etc/demo.toml etc/*.example etc/*.json \
		etc/*.yml etc/openshift.yaml
	$(BUILD)/bin/python packaging/completions.py $(MADE)/data/share
	$(BUILD)/bin/python packaging/install.py --python "$(PYTHON)" $(TARGET) $(MADE)

uninstall:  ## remove everything that install put there
	$(PYTHON) packaging/uninstall.py $(TARGET)

clean:  ## remove everything that make made
	rm -rf $(VENV) $(OLDEST) $(OTHERS) $(FEDORA) $(BUILD) build dist *.egg-info man/fmconsume.1
	rm -rf .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -r {} +

$(VENV)/.test: $(METADATA) $(SCHEMAS) | $(BIN)/python
	@echo "Installing fmconsume and the test tools in $(VENV)"
	@$(BIN)/python $(PIP) install --editable '.[$(EXTRAS)]'
	@$(BIN)/python $(PIP) install --no-deps --upgrade --target $(VENV)/schema-packages -r $(SCHEMAS)
	@touch $@

$(BUILD)/.build: $(METADATA) | $(BUILD)/bin/python
	@echo "Installing what builds fmconsume in $(BUILD)"
	@$(BUILD)/bin/python $(PIP) install --editable '.[build]'
	@touch $@

$(VENV)/.lint: $(VENV)/.test
	@echo "Installing the checking tools in $(VENV)"
	@$(BIN)/python $(PIP) install --editable '.[$(EXTRAS),lint]'
	@touch $@

$(OLDEST)/.test: $(METADATA) $(SCHEMAS) | $(OLDEST)/bin/python
	@echo "Installing fmconsume with pika 1.3.2 in $(OLDEST)"
	@$(OLDEST)/bin/python $(PIP) install --editable '.[$(EXTRAS)]' pika==1.3.2
	@$(OLDEST)/bin/python $(PIP) install --no-deps --upgrade --target $(OLDEST)/schema-packages -r $(SCHEMAS)
	@touch $@

$(FEDORA)/.fedora: tests/fedora-messaging.txt | $(FEDORA)/bin/python
	@echo "Installing fedora-messaging in $(FEDORA)"
	@$(FEDORA)/bin/python $(PIP) install --upgrade -r $<
	@touch $@

$(OTHERS)/.peers: benchmarks/peers.txt | $(OTHERS)/bin/python
	@echo "Installing other clients in $(OTHERS)"
	@$(OTHERS)/bin/python $(PIP) install --upgrade -r benchmarks/peers.txt
	@touch $@

$(OTHERS)/bin/rabbitmq_c: benchmarks/clients/rabbitmq_c.c | $(OTHERS)/bin/python
	@$(CC) -O2 -o $@ $< -lrabbitmq 2>/dev/null || \
		echo "There is no C compiler with librabbitmq-dev: measuring without rabbitmq-c"

%/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 9))' || \
		{ echo "$(PYTHON) is no Python 3.9 or later: try make PYTHON=python3.x" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) cannot make virtual environments: install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv $*
	@$*/bin/python $(PIP) install 'pip>=22.3'
