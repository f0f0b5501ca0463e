PYTHON ?= python3
RUN = .venv/bin/python

.PHONY: help setup eval test test-quick data-coco lint bench mini clean

help:            ## this list
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "diffseg needs Python 3.11 or later; choose one with make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

setup: .venv/installed  ## make .venv with everything in known-good versions

eval: setup      ## segment held-out scenes with the embedded model, print accuracy, mIoU, IoU per class
	$(RUN) -m diffseg.eval.run

test: setup      ## all tests (a few minutes, 8 GB of memory)
	$(RUN) -m pytest

test-quick: setup  ## without the slow ones
	$(RUN) -m pytest -m "not slow"

data-coco: setup  ## fetch COCO val2017 photos and stuff labels into DATA (about 1.5 GB)
	$(RUN) -m diffseg.datasets.download $(or $(DATA),data/coco)

lint: setup      ## style and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

bench: setup     ## seconds per stage, peak memory, merging against the straightforward way
	$(RUN) -m diffseg.eval.bench

mini: setup      ## train the embedded model again from nothing (over an hour on two cores); an interrupted training continues
	$(RUN) -m diffseg.mini.train

clean:           ## remove what make made
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
