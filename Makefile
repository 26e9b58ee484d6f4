# hesearch: `make demo` runs a private search over real medical text, `make test` runs every check.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
BENCH ?= build/bench
TORTURE ?= full
TORTURED ?= build/torture/$(TORTURE)
CODE := he_engine proto server client benchmarks tests examples
NATIVE := pyproject.toml CMakeLists.txt $(wildcard he_engine/kernels/*.cpp he_engine/kernels/*.hpp)

.PHONY: help demo healthcare test single-use federated test-large bench bench-figures torture torture-figures lint format proto clean requirements
.NOTPARALLEL:
.DELETE_ON_ERROR:

help:
	@echo "make demo        build, then search 98,505 encrypted titles of diagnoses; ARGS='--query \"...\"' asks yours"
	@echo "make healthcare  diagnoses predicted from notes of synthetic patients: in the clear, encrypted, private (minutes)"
	@echo "make test        build, then lint, type-check and run the test suite"
	@echo "make test-large  ten million exact scores against the plaintext integer search, and the SDK on one node of Ray (minutes)"
	@echo "make single-use  a million encryptions: no block id, query secret or nonce twice (about a minute)"
	@echo "make federated   hospitals that train together, encrypted: the table of examples/federated (some minutes)"
	@echo "make bench       every figure, measured here into build/bench (an hour or so); again: goes on where it stopped"
	@echo "make torture     kills, faults, overload, a soak and fuzzing (hours; TORTURE=short: some minutes); again: goes on"
	@echo "make lint        ruff and mypy alone          make format   let ruff format the code"
	@echo "make proto       regenerate the gRPC code     make clean    remove what make built, .venv too"

demo: .venv/demo.stamp
	$(BIN)/hesearch demo $(ARGS)

# The example's page and plot, measured here. The committed ones: make healthcare HEALTHCARE=docs/figures
HEALTHCARE ?= build/healthcare
healthcare: .venv/dev.stamp
	mkdir -p $(HEALTHCARE)
	$(BIN)/python -m examples.healthcare.run --json $(HEALTHCARE)/healthcare.json $(ARGS)
	$(BIN)/python -m examples.healthcare.page $(HEALTHCARE)/healthcare.json \
		$(if $(filter docs/figures,$(HEALTHCARE:/=)),examples/healthcare,$(HEALTHCARE))/README.md

# Two processes; a file's tests share one.
test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

single-use: .venv/dev.stamp
	$(BIN)/python -m tests.single_use --encryptions 1000000 --json docs/figures/single_use.json

federated: .venv/dev.stamp
	$(BIN)/python -m examples.federated.run --dp 8 --processes --json docs/figures/federated.json --readme $(ARGS)

test-large: .venv/dev.stamp
	$(BIN)/python -m pytest -m large $(ARGS)

# Figures of docs/benchmarks.md, overhead.md and inversion.md. A file that is there is not measured again: delete it, or
# the folder, to do so. What cannot be measured here fails alone, and the pages say so. The committed ones, and the
# pages, anew:
#     rm -f docs/figures/*.json && make bench BENCH=docs/figures
PROFILES := compact exact precise
PAGES := $(if $(filter docs/figures,$(BENCH:/=)),docs,$(BENCH))
STEPS := $(foreach p,$(PROFILES),$(addprefix overhead_$p,.json _100k_2t.json _1m_1t.json _1m_2t.json _avx2.json) \
	icd_$p.json service_$p.json) concurrency_compact.json concurrency_exact.json \
	layers_compact.json layers_exact.json wire.json at_rest.json cold_start.json catalogue.json redaction.json inversion.json \
	scaling.json scale.json pareto.json approximate.json kernels.json
OVERHEAD = $(BIN)/python -m benchmarks.overhead --dim 512 --profile $* --json $@
PLAIN := --peers numpy faiss

bench: .venv/dev.stamp
	-@$(MAKE) --keep-going --no-print-directory bench-figures
	$(BIN)/python -m benchmarks.report $(BENCH) $(PAGES)/benchmarks.md
	$(BIN)/python -m benchmarks.layers_page $(BENCH) $(PAGES)/overhead.md
	$(BIN)/python -m benchmarks.inversion.page $(BENCH) $(PAGES)/inversion.md
	$(BIN)/python -m benchmarks.table $(BENCH)
	@cd $(BENCH) && ls $(STEPS) >/dev/null

bench-figures: $(addprefix $(BENCH)/,$(STEPS))

$(BENCH):
	mkdir -p $@

$(BENCH)/overhead_%_100k_2t.json: | .venv/dev.stamp $(BENCH)
	$(OVERHEAD) --rows 100000 --threads 2 $(PLAIN)
$(BENCH)/overhead_%_1m_1t.json: | .venv/dev.stamp $(BENCH)
	$(OVERHEAD) --rows 1000000 --threads 1 $(PLAIN)
$(BENCH)/overhead_%_1m_2t.json: | .venv/dev.stamp $(BENCH)
	$(OVERHEAD) --rows 1000000 --threads 2 $(PLAIN)
$(BENCH)/overhead_%_avx2.json: | .venv/dev.stamp $(BENCH)
	$(OVERHEAD) --rows 100000 --threads 1 $(PLAIN) --target avx2
$(BENCH)/overhead_%.json: | .venv/dev.stamp $(BENCH)
	$(OVERHEAD) --rows 100000 --threads 1
$(BENCH)/approximate.json: | .venv/dev.stamp $(BENCH)
	$(BIN)/python -m benchmarks.overhead --rows 100000 --dim 512 --threads 1 $(PLAIN) --approximate --json $@
$(BENCH)/icd_%.json: | .venv/dev.stamp $(BENCH)
	$(BIN)/python -m benchmarks.icd --queries 1000 --profile $* --json $@
$(BENCH)/service_%.json: | .venv/dev.stamp $(BENCH)
	$(BIN)/python -m benchmarks.service --rows 1000000 --dim 512 --threads 1 --profile $* --json $@
$(BENCH)/concurrency_%.json: | .venv/dev.stamp $(BENCH)
	$(BIN)/python -m benchmarks.concurrency --rows 100000 --dim 512 --threads 1 --profile $* --json $@
$(BENCH)/layers_%.json: | .venv/dev.stamp $(BENCH)
	$(BIN)/python -m benchmarks.layers --rows 100000 --dim 512 --profile $* --json $@
$(BENCH)/pareto.json: | .venv/dev.stamp $(BENCH)
	$(BIN)/python -m benchmarks.pareto --rows 100000 --dim 512 --json $@
$(BENCH)/%.json: | .venv/dev.stamp $(BENCH)
	$(BIN)/python -m benchmarks.$* --json $@

# Figures of docs/reliability.md. A file that is there is not made again, also where a test failed: it says so, and in
# the end make fails. The committed ones, and docs/reliability.md, anew:
#     rm -f docs/figures/torture/*.json && make torture TORTURED=docs/figures/torture
RELIABILITY := $(if $(filter docs/figures/torture,$(TORTURED:/=)),docs/reliability.md,$(TORTURED)/reliability.md)
TORTURES := kill_server kill_client lose_server crash_postgres kill_actors soak overload restarts faults_power faults_errors \
	faults_kill fuzz seal bitflips malicious
full_kill_server := --runs 1000
full_kill_client := --runs 500
full_crash_postgres := --runs 50
full_lose_server := --runs 50
full_kill_actors := --runs 100
full_soak := --seconds 1800
full_overload := --seconds 120
full_restarts := --runs 50
full_faults := --every 1
full_fuzz := --inputs 1000000
full_seal := --inputs 30000
full_bitflips := --runs 10000
full_malicious := --lies 20000
short_kill_server := --runs 60
short_kill_client := --runs 60
short_crash_postgres := --runs 10
short_lose_server := --runs 10
short_kill_actors := --runs 10
short_soak := --seconds 180
short_overload := --seconds 30
short_restarts := --runs 10
short_faults := --every 50
short_fuzz := --inputs 20000
short_seal := --inputs 2000
short_bitflips := --runs 1000
short_malicious := --lies 2000

torture: .venv/dev.stamp
	-@$(MAKE) --keep-going --no-print-directory torture-figures
	$(BIN)/python -m tests.torture.report $(TORTURED) $(RELIABILITY)
	@cd $(TORTURED) && ls $(TORTURES:=.json) >/dev/null

torture-figures: $(TORTURES:%=$(TORTURED)/%.json)

$(TORTURED):
	mkdir -p $@

$(TORTURED)/faults_%.json: | .venv/dev.stamp $(TORTURED)
	$(BIN)/python -m tests.faults.run $* $($(TORTURE)_faults) --json $@ >/dev/null || test -s $@
$(TORTURED)/fuzz.json: | .venv/dev.stamp $(TORTURED)
	$(BIN)/python -m tests.fuzz.run $($(TORTURE)_fuzz) --failures $(TORTURED)/fuzz --json $@ || test -s $@
$(TORTURED)/seal.json: | .venv/dev.stamp $(TORTURED)
	$(BIN)/python -m tests.fuzz.seal $($(TORTURE)_seal) --json $@ || test -s $@
$(TORTURED)/malicious.json: | .venv/dev.stamp $(TORTURED)
	$(BIN)/python -m tests.malicious.run $($(TORTURE)_malicious) --json $@ >/dev/null || test -s $@
$(TORTURED)/bitflips.json: | .venv/dev.stamp $(TORTURED)
	$(BIN)/python -m tests.fuzz.bitflips $($(TORTURE)_bitflips) --json $@ || test -s $@
$(TORTURED)/kill_actors.json: | .venv/dev.stamp $(TORTURED)
	$(BIN)/python -m tests.loopback $(BIN)/python -m tests.torture.kill_actors $($(TORTURE)_kill_actors) --json $@ >/dev/null || test -s $@
$(TORTURED)/%.json: | .venv/dev.stamp $(TORTURED)
	$(BIN)/python -m tests.torture.$* $($(TORTURE)_$*) --json $@ >/dev/null || test -s $@

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
