# `make` lists the targets. ARGS is handed on: make demo ARGS=--keep, make test ARGS='--test broker'.
.PHONY: help parts build demo test faults check docs bench bench-compare memory container-check monitoring-check clean-parts
.DEFAULT_GOAL := help
ARGS ?=
TARGET_DIR := $(or $(CARGO_TARGET_DIR),$(CARGO_BUILD_TARGET_DIR),target)
BENCH_JSON := $(TARGET_DIR)/bench/$(shell date -u +%Y%m%dT%H%M%SZ).json

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

parts: ## fetch Kafka, ONNX Runtime and the embedding model into .local
	@parts/fetch

build: ## build the release binary
	@parts/fetch --check-tools build
	cargo build --release

demo: ## fetch and build what is missing, then run the demo (ARGS=--keep leaves it up)
	@parts/fetch --check-tools demo
	@parts/fetch --corpora
	cargo build --release
	@"$(TARGET_DIR)"/release/sweepstream demo $(ARGS)

test: ## fetch the parts that are missing, then run all tests (ARGS goes to cargo test)
	@parts/fetch --check-tools test
	@parts/fetch
	cargo test --workspace --no-fail-fast $(ARGS)

faults: ## kill, freeze and stop processes and the broker over thousands of texts, and judge (ARGS='--seed 7' repeats)
	@parts/fetch --check-tools test
	@parts/fetch
	cargo test --test faults -- --long $(ARGS)

check: ## formatting, lints and documentation, warnings as errors
	@parts/fetch --check-tools check
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items

docs: ## write the references that are made of the code: docs/settings.md, metrics.md, commands.md, config/sweepstream.toml
	UPDATE_DOCS=1 cargo test --test reference

bench: ## run the benchmarks and write their figures to a file (ARGS goes to cargo bench)
	@parts/fetch --check-tools test
	@parts/fetch
	SWEEPSTREAM_BENCH_JSON="$(abspath $(BENCH_JSON))" cargo bench $(ARGS)
	@echo "figures: $(BENCH_JSON)"

ifeq (bench-compare,$(firstword $(MAKECMDGOALS)))
BENCH_FILES := $(wordlist 2,3,$(MAKECMDGOALS))
.PHONY: $(BENCH_FILES)
$(BENCH_FILES): ; @:
endif

bench-compare: ## two files of `make bench` side by side: make bench-compare A B
	@cargo bench --quiet --bench compare -- $(abspath $(BENCH_FILES))

memory: ## resident memory over 200,000 texts and 50 epochs (ARGS goes to the program)
	@parts/fetch --check-tools test
	@parts/fetch
	cargo bench --bench memory -- $(ARGS)

container-check: ## build the Dockerfile and try the image (as root, on Debian; ARGS='--keep FOLDER' is quicker next time)
	@deploy/check-container $(ARGS)

monitoring-check: ## try the Prometheus and Grafana files on the demo: each query has to have data, no alert may fire
	@parts/fetch --check-tools demo
	@parts/fetch --corpora
	cargo build --release
	@deploy/check-monitoring "$(TARGET_DIR)"/release/sweepstream $(ARGS)

clean-parts: ## remove the fetched parts
	@parts/fetch --clean
