# The two commands of a newcomer are `make demo` and `make test`; each sets up what it needs in .venv and starts in seconds afterwards.
.PHONY: demo test lint format bench gpu sanitize setup clean help
.DEFAULT_GOAL := help

PYTHON := .venv/bin/python

help:
	@echo "make demo      set up, then train, serve and replay a year of real flights (build/demo/report.html)"
	@echo "make test      set up, then run the whole test suite"
	@echo "make lint      ruff, mypy --strict, pyright"
	@echo "make bench     the benchmarks, quick form (results under build/bench/)"
	@echo "make gpu       on a machine with a GPU: build, its tests, compute-sanitizer and benchmarks (build/gpu/gpu.json)"
	@echo "make sanitize  the native tests and fuzz targets under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer"
	@echo "make format    ruff format and import order, in place"
	@echo "make clean     remove what was built (not .venv)"

demo:
	@tools/setup.sh demo
	@$(PYTHON) examples/flights/run.py

test:
	@tools/setup.sh dev
	@$(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint:
	@tools/setup.sh dev
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy
	@$(PYTHON) -m pyright

bench:
	@tools/setup.sh dev
	@tools/bench.sh

gpu:
	@tools/gpu.sh

sanitize:
	@tools/setup.sh dev
	@tools/sanitize.sh

format:
	@tools/setup.sh dev
	@$(PYTHON) -m ruff check --fix .
	@$(PYTHON) -m ruff format .

setup:
	@tools/setup.sh dev

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
