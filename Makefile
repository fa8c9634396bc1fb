# Two commands: `make demo` and `make test`. Each does its own set-up on Debian or Ubuntu.
.PHONY: demo test test-http test-load load speed lint setup
.DEFAULT_GOAL := demo

# Builds the release binaries, compiles the built-in model for this CPU and prints a story with tokens/s.
demo: setup
	cargo build --release -p rvllm -p rvllm-compiler
	target/release/rvllm compile models/demo --target native -o target/demo.rvllm
	target/release/rvllm generate target/demo.rvllm --prompt "Once upon a time there was a little" --max-tokens 200 --seed 7

# Every test: the house rules, both IRs, passes, kernels, goldens, runtime.
test: setup
	cargo test --workspace

# The official OpenAI clients, schemathesis and a browser against `rvllm serve` on the demo model, which `make demo` compiles.
test-http:
	tests/http/run.sh

# 256 clients that come, go and misbehave, on the demo model, which `make demo` compiles: for 15 seconds, as CI does.
test-load:
	cargo run --release -p rvllm-benches --bin load -- --seconds 15

# The same for five minutes.
load:
	cargo run --release -p rvllm-benches --bin load

# Requests a second over the mock engine, beside an empty handler.
speed:
	cargo run --release -p rvllm-benches --bin speed

# What CI refuses: unformatted code and warnings.
lint: setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

# LLVM, MLIR and lld 22, where missing.
setup:
	@.ci/setup
