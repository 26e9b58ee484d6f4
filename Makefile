# hesearch: `make demo` runs a private search over real medical text, `make test` runs every check.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
FIGURES ?= build/figures
CODE := he_engine proto server client benchmarks tests examples
NATIVE := pyproject.toml CMakeLists.txt $(wildcard he_engine/kernels/*.cpp he_engine/kernels/*.hpp)

.PHONY: help demo test test-large figures lint format proto clean requirements

help:
	@echo "make demo        build, then search 98,505 encrypted titles of diagnoses; ARGS='--query \"...\"' asks yours"
	@echo "make test        build, then lint, type-check and run the test suite"
	@echo "make test-large  ten million exact scores against the plaintext integer search (about a minute)"
	@echo "make figures     the README's figures, measured here (minutes)"
	@echo "make lint        ruff and mypy alone          make format   let ruff format the code"
	@echo "make proto       regenerate the gRPC code     make clean    remove what make built, .venv too"

demo: .venv/demo.stamp
	$(BIN)/hesearch demo $(ARGS)

test: lint
	$(BIN)/python -m pytest $(ARGS)

test-large: .venv/dev.stamp
	$(BIN)/python -m pytest -m large $(ARGS)

figures: .venv/dev.stamp
	mkdir -p $(FIGURES)
	for profile in compact exact precise; do \
		$(BIN)/python -m benchmarks.overhead --rows 100000 --dim 512 --threads 1 --profile $$profile \
			--json $(FIGURES)/overhead_$$profile.json && \
		$(BIN)/python -m benchmarks.icd --queries 1000 --profile $$profile \
			--json $(FIGURES)/icd_$$profile.json || exit 1; \
	done
	$(BIN)/python -m benchmarks.table $(FIGURES)

lint: .venv/dev.stamp
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

format: .venv/dev.stamp
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

proto: .venv/dev.stamp
	$(BIN)/python -m grpc_tools.protoc -I proto --python_out=proto --grpc_python_out=proto --pyi_out=proto \
		proto/he_proto/v1/hesearch.proto

# What is installed: `demo` needs less than `dev`, and `dev` has all of it.
.venv/demo.stamp: $(NATIVE) | .venv/bin/pip
	$(BIN)/pip install --quiet --editable '.[demo]'
	@touch $@

.venv/dev.stamp: $(NATIVE) | .venv/bin/pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@ .venv/demo.stamp

.venv/bin/pip: | requirements
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip

requirements:
	@command -v $(PYTHON) >/dev/null || { \
		echo "$(PYTHON) is missing. Install it: sudo apt-get install -y python3 python3-venv python3-dev"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
		echo "got $$($(PYTHON) --version), expected 3.11 to 3.13. Name one: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "Python's venv is missing. Install it: sudo apt-get install -y python3-venv"; exit 1; }
	@$(PYTHON) -c 'import pathlib, sys, sysconfig; \
		sys.exit(not (pathlib.Path(sysconfig.get_path("include")) / "Python.h").exists())' || { \
		echo "Python's headers are missing. Install them: sudo apt-get install -y python3-dev"; exit 1; }
	@command -v c++ >/dev/null || command -v g++ >/dev/null || { \
		echo "A C++ compiler is missing. Install it: sudo apt-get install -y g++"; exit 1; }

clean:
	rm -rf build .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
