# Every target does its own set-up. `make test` and `make demo` are the two to start with.
.PHONY: help setup compiled demo test test-compiled evidence evidence-bits conformance conformance-mutants attacks escape gpu gpu-memory gpu-wheels check bench peers flood forgetting verify-speed fuzz fmt protos triton-vectors docs lock clean

PY := .venv/bin/python
# Kept low: the suite starts real servers, brokers and TPMs, and must not starve them. One more than a small machine has
# cores, for a third of the time is waiting.
TEST_PROCESSES ?= 3
FUZZ_MINUTES ?= 5

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: ## Make .venv and install what is missing (quick when nothing is)
	@requirements/install

demo: setup ## Seal, attest, release the keys, serve and answer, end to end
	@rm -rf demo
	@$(PY) -m hermetic demo --folder demo

# The suite starts Python some thousand times: compiled once, also where the environment says not to write byte code.
# Threads of plain models that tests compare with would wait for each other, and take cores from the rest.
test: compiled ## Run everything that needs no special hardware
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(PY) -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

evidence: setup ## Judge all recorded evidence and every manipulation of it, and write docs/evidence.md and docs/refusals.md
	$(PY) -m tests.attestation.stored.page

# One process: those of xdist would run the source. Left out: what traces the source, and what changes a constant of it.
test-compiled: compiled ## Run unit tests of the request path on the compiled modules themselves
	$(PY) -m hermetic.compiled pytest tests/server tests/enclave/test_batch_runner.py tests/enclave/test_channel.py \
	    --ignore tests/server/test_foreign.py --ignore tests/server/http2/test_spinning.py --ignore tests/server/http2/test_turns.py --ignore tests/server/test_batch_answers.py --deselect tests/server/test_ordering.py::test_early_answers_are_bounded_whatever_a_worker_makes_of_them

evidence-bits: setup ## Flip every bit that recorded GPU, SEV-SNP, TDX and SGX evidence signs, and see each refused (minutes)
	$(PY) -m pytest -n $(TEST_PROCESSES) $(wildcard tests/attestation/verifiers/*_bits.py)

conformance: setup ## Write the conformance corpus anew (tests/vectors/conformance, the same bytes each time) and judge it
	$(PY) -m tests.conformance.generate
	$(PY) -m pytest --quiet tests/conformance

conformance-mutants: setup ## Switch off every check of every verifier and policy, one by one, and see the corpus notice each
	$(PY) -m tests.conformance.mutants

# No set-up: a machine with a GPU brings torch and onnxruntime, and often no network.
gpu-memory: ## Search this machine's GPU for what should be wiped (status 3: not everything ran)
	PYTHONPATH=src $(if $(wildcard $(PY)),$(PY),python3) -m tests.hardware.gpu_memory --json build/gpu-memory.json

# Where there is no .venv: GPU_PYTHON has torch, onnxruntime and numpy, build/gpu-wheels what else is needed.
GPU_PYTHON ?= python3
GPU_OPTIONS ?=
gpu: ## Run all GPU tests and the GPU benchmark of this machine into build/gpu.json (status 3: not everything ran)
	@python=$(PY); [ -x $$python ] || python=$$($(GPU_PYTHON) requirements/gpu_environment.py) || exit 1; \
	exec $$python -m tests.hardware.gpu --json build/gpu.json $(GPU_OPTIONS)

gpu-wheels: setup ## Fetch what `make gpu` needs on a bare machine into build/gpu-wheels (PYTHON_THERE=3.12: its Python)
	@requirements/gpu-wheels

compiled: setup ## Compile the modules that every request passes (a minute or two, once for a state of the source)
	@$(PY) hatch_build.py

bench: compiled ## Measure the server beside what gRPC and the model allow
	@mkdir -p build
	$(PY) -m hermetic bench quick --json build/bench-quick.json
	$(PY) -m hermetic bench unseal --json build/bench-unseal.json
	$(PY) -m hermetic bench attest --handshakes 30 --seconds 5 --json build/bench-attest.json
	$(PY) -m hermetic bench renewals --turns 10 --json build/bench-renewals.json

attacks: setup ## Write docs/attacks*.md: attacks on a caller's trust, on a broker and on its governance, and what refuses each
	$(PY) -m tests.flows.attacks
	$(PY) -m tests.attestation.governance.attacks
	$(PY) -m tests.attestation.broker.attacks

escape: setup ## Try every escape from a locked room against every layer, all but one too, and write docs/escape-matrix.md
	$(PY) -m tests.enclave.isolation.page docs/escape-matrix.md

flood: compiled ## Attack a server in every way we know, beside a client that behaves
	@mkdir -p build
	$(PY) -m hermetic bench flood --connections 10000 --json build/bench-flood.json

forgetting: compiled ## Search all processes of a server for canaries after each moment, and write docs/forgetting.md (as root)
	@mkdir -p build
	$(PY) -m hermetic bench forget --json build/bench-forget.json --page docs/forgetting.md

verify-speed: setup ## Measure one verification of every kind of evidence, and write docs/verification-speed.md
	$(PY) -m tests.attestation.verifiers.speed docs/verification-speed.md

fuzz: setup ## Fuzz every decoder for FUZZ_MINUTES each, from tests/corpus on
	$(PY) -m pip install -qq --disable-pip-version-check --no-deps --require-hashes --root-user-action=ignore -r requirements/fuzz.txt
	$(PY) -m tests.fuzz.run --minutes $(FUZZ_MINUTES)
	$(PY) -m tests.fuzz.hostile_worker --minutes $(FUZZ_MINUTES)

peers: compiled ## Measure beside Triton, KServe and MLServer, and write docs/performance.md (half an hour, a quiet machine)
	@mkdir -p build
	$(PY) -m hermetic bench peers --json build/bench-peers.json
	$(PY) -m hermetic bench peers --servers hermetic,triton --json build/bench-peers-perf-analyzer.json \
	    --perf-analyzer "$$($(PY) -m hermetic.bench.fetch_perf_analyzer)"
	$(PY) -m hermetic bench costs --json build/bench-costs.json
	$(PY) -m hermetic bench growth --json build/bench-growth.json
	$(PY) -m hermetic bench publish docs/performance.md build/bench-peers.json build/bench-peers-perf-analyzer.json \
	    build/bench-costs.json build/bench-growth.json

check: setup ## Format, lint, types, import rules, generated files, wheel contents, Dockerfile
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	.venv/bin/lint-imports --no-logo
	$(PY) protos/generate.py --check
	.venv/bin/hadolint Dockerfile
	$(PY) -m pytest --quiet tests/packaging tests/imports

fmt: setup ## Format the code and fix what the linter can
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

protos: setup ## Generate the protobuf modules from protos/
	$(PY) protos/generate.py

triton-vectors: setup ## Record anew what a real Triton answers (installs it from PyPI, takes minutes)
	$(PY) tests/vectors/triton/record.py
	$(PY) -m tests.vectors.triton.transport

docs: setup ## Build the user guide into site/
	$(PY) -m pip install -qq --disable-pip-version-check --no-deps --require-hashes --root-user-action=ignore -r requirements/docs.txt
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet --strict

lock: setup ## Write the lock files anew (requirements/lock --upgrade for newer versions)
	requirements/lock

clean: ## Remove what the targets made, the environment too
	rm -rf .venv build dist site demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
