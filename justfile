# Daily commands. `just` lists them; each is one line that also works without just.

# Lists the recipes.
default:
    @just --list

# Serves the demo model, or what the arguments say.
run *args:
    cargo run --release --bin text-generation-launcher -- {{ args }}

# Before a commit: formatting, lints, everything compiles.
check: fmt-check lint

# Before a push: exactly what CI runs.
test:
    .ci/run

# Formats the code.
fmt:
    cargo fmt --all

fmt-check:
    cargo fmt --all --check

# Warnings are errors here; while you work they are only warnings.
lint:
    cargo clippy --workspace --release --all-targets -- -D warnings

# Licences, sources and duplicate versions of the dependencies (needs cargo-deny).
deny:
    cargo deny check bans licenses sources

# The figures of the README, each with its goal.
bench: bench-startup bench-concurrency bench-long-prompt bench-grammar-load bench-first-token bench-router

# Time from start to the ready line.
bench-startup *args:
    cargo run --release -p integration-tests --example startup -- {{args}}

# 64 concurrent streams against one.
bench-concurrency:
    cargo run --release -p integration-tests --example concurrency

# A decode step without router and protocol, for 1 to 64 rows.
bench-step *args:
    cargo run --release -p shard --example step_cost -- {{ args }}

# What each mode of --quantize costs in quality, against bfloat16.
bench-quality *args:
    cargo run --release -p shard --example quality -- {{ args }}

# On a machine with a GPU: tests, steps, peers, the server, compute-sanitizer, each against its goal (`--help`; pieces of 9 minutes at most).
gpu-check *args:
    python3 integration-tests/gpu-check/run.py {{ args }}

# Each operation against the machine's bandwidth and arithmetic.
bench-ops *args:
    cargo run --release -p kernels --example bench_ops -- {{ args }}

# What a long prompt costs running streams.
bench-long-prompt:
    cargo run --release -p integration-tests --example long_prompt

# What streams under a grammar cost plain ones beside them.
bench-grammar-load:
    cargo run --release -p integration-tests --example grammar_load

# Time to the first token on fresh and on kept connections.
bench-first-token:
    cargo run --release -p integration-tests --example first_token

# What the router itself costs, in front of a shard that computes nothing: its time, memory and delay.
bench-router *args:
    cargo run --release -p integration-tests --example router_cost -- {{ args }}

# What drafts are worth where a text repeats itself, and cost where it does not.
bench-speculation *args:
    cargo run --release -p integration-tests --example speculation -- {{ args }}

# text-generation-benchmark: prefill and decode on shards, or with --url requests to a server.
bench-load *args:
    cargo run --release -p benchmark -- {{ args }}

# This server, llama.cpp, transformers and vLLM in turn on the same weights: writes docs/performance.md (--quick: only prints).
bench-peers *args:
    python3 integration-tests/bench/run.py {{ args }}
