#!/usr/bin/env bash
# Format, lints and documentation links, for both feature sets that we promise.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/env.sh

cargo fmt --all --check
cargo fmt --manifest-path csrc/check/Cargo.toml --check
cargo clippy --workspace --no-default-features --all-targets -- -D warnings
# --release so that llama.cpp is the one that the tests build.
cargo clippy --workspace --release --all-targets -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --release --no-deps --document-private-items
