# Each target creates .venv and installs what it needs. PYTHON chooses the interpreter (3.11 to 3.13).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test test-slow parity lint bench clean

quickstart: .venv/installed
	$(BIN)/flaxbert quickstart

test: .venv/installed-test
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

test-slow: .venv/installed-test
	$(BIN)/python -m pytest

parity: .venv/installed-parity
	$(BIN)/python -m pytest tests/parity -n 2 --dist loadfile

lint: .venv/installed-test
	$(BIN)/flake8 flaxbert data_pipeline experiments tests benchmarks
	$(BIN)/mypy

# What a CPU can answer, on INPUT, a text of some 50 MB or more; each result is a file in build/bench.
BENCH := build/bench
TEXT = $(or $(INPUT),$(error make bench INPUT=FILE: the text to measure on))
bench: .venv/installed-bench $(BENCH)/corpus/dataset.json
	$(BIN)/python -m benchmarks.prepare_throughput --input $(TEXT) --output $(BENCH)/prepare.json
	$(BIN)/python -m benchmarks.stream_throughput --corpus $(BENCH)/corpus --output $(BENCH)/stream.json
	$(BIN)/python -m benchmarks.make_batches --corpus $(BENCH)/corpus --output $(BENCH)/batches.npz
	$(BIN)/python -m benchmarks.train_step --batches $(BENCH)/batches.npz --json $(BENCH)/train_step.json --markdown $(BENCH)/train_step.md
	$(BIN)/python -m benchmarks.loop_overhead --corpus $(BENCH)/corpus --json $(BENCH)/loop_overhead.json
	$(BIN)/python -m benchmarks.startup --corpus $(BENCH)/corpus --json $(BENCH)/startup.json
	$(BIN)/python -m benchmarks.checkpoint_overhead --json $(BENCH)/checkpoint_overhead.json

$(BENCH)/corpus/dataset.json: | .venv/installed-bench
	$(BIN)/flaxbert prepare $(TEXT) --output $(BENCH)/corpus

clean:
	rm -rf .venv build *.egg-info

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info[:2] <= (3, 13) else "Python 3.11 to 3.13 is needed, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python setup.cfg
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

.venv/installed-bench: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	touch $@

.venv/installed-parity: .venv/installed-test
	$(BIN)/python -m pip install --quiet --editable '.[parity]'
	touch $@
