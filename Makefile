# The front door: `make` alone lists what there is. Nothing here touches the machine's own Python.

PYTHON ?= python3
VENV ?= .venv
PREFIX ?= /usr/local
DESTDIR ?=
# More for pytest: make test ARGS="-k ledger -x"
ARGS ?=

BIN := $(VENV)/bin
OLDEST := $(VENV)-oldest
METADATA := setup.cfg setup.py pyproject.toml
PIP := -m pip --disable-pip-version-check --no-input -qq

.DELETE_ON_ERROR:
.PHONY: help demo test test-oldest coverage lint types man bench faults check install uninstall clean

help:  ## list the targets
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' Makefile | expand -t 22

demo: $(VENV)/.test  ## consume real messages from a private RabbitMQ
	@tests/install-broker.sh
	@$(BIN)/python -m tests.demo

test: $(VENV)/.test  ## run all tests, on a private RabbitMQ
	@tests/install-broker.sh
	$(BIN)/python -m pytest $(ARGS)

test-oldest: $(OLDEST)/.test  ## run the integration tests with the oldest pika we promise
	@tests/install-broker.sh
	$(OLDEST)/bin/python -m pytest tests/integration $(ARGS)

coverage: $(VENV)/.test  ## run all tests and say which lines they missed
	@tests/install-broker.sh
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

lint: $(VENV)/.lint  ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.lint  ## check types
	$(BIN)/mypy

man: $(VENV)/.test  ## build man/fmconsume.1
	$(BIN)/python setup.py --quiet build_manpages

bench: $(VENV)/.test  ## measure, on a private RabbitMQ
	@test -e benchmarks/__main__.py || { echo "there are no benchmarks yet" >&2; exit 1; }
	@tests/install-broker.sh
	$(BIN)/python -m benchmarks $(ARGS)

faults: $(VENV)/.test  ## survive a long series of random faults
	@test -e tests/faults/__main__.py -o -e tests/faults.py || \
		{ echo "there is no fault suite yet" >&2; exit 1; }
	@tests/install-broker.sh
	$(BIN)/python -m tests.faults $(ARGS)

check: lint types test-oldest test  ## everything that CI checks

install: $(VENV)/.test  ## install below DESTDIR and PREFIX; needs pika and tomli there
	rm -rf build dist
	$(BIN)/python $(PIP) wheel --no-deps -w dist .
	$(PYTHON) $(PIP) install --no-deps --ignore-installed --no-warn-script-location \
		--root "$(DESTDIR)/" --prefix "$(PREFIX)" dist/fmconsume-*.whl
	for unit in etc/*.service; do \
		if [ -e "$$unit" ]; then \
			install -Dm644 -t "$(DESTDIR)$(PREFIX)/lib/systemd/system" "$$unit"; \
		fi; \
	done

uninstall:  ## remove what install put there
	rm -f "$(DESTDIR)$(PREFIX)/bin/fmconsume" "$(DESTDIR)$(PREFIX)/share/man/man1/fmconsume.1" \
		"$(DESTDIR)$(PREFIX)"/lib/systemd/system/fm-consumer@.service
	find "$(DESTDIR)$(PREFIX)"/lib* -depth -type d -path '*-packages/fmconsume*' \
		-regex '.*-packages/fmconsume\(-[^/]*\.dist-info\)?' -exec rm -r {} +

clean:  ## remove everything that make made
	rm -rf $(VENV) $(OLDEST) build dist *.egg-info man/fmconsume.1
	rm -rf .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -r {} +

$(VENV)/.test: $(METADATA) | $(BIN)/python
	@echo "Installing fmconsume and the test tools in $(VENV)"
	@$(BIN)/python $(PIP) install --editable '.[test]'
	@touch $@

$(VENV)/.lint: $(VENV)/.test
	@echo "Installing the checking tools in $(VENV)"
	@$(BIN)/python $(PIP) install --editable '.[test,lint]'
	@touch $@

$(OLDEST)/.test: $(METADATA) | $(OLDEST)/bin/python
	@echo "Installing fmconsume with pika 1.3.2 in $(OLDEST)"
	@$(OLDEST)/bin/python $(PIP) install --editable '.[test]' pika==1.3.2
	@touch $@

%/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 9))' || \
		{ echo "$(PYTHON) is no Python 3.9 or later: try make PYTHON=python3.x" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) cannot make virtual environments: install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv $*
