#!/usr/bin/env bash
# The kernel tests with csrc under AddressSanitizer and UndefinedBehaviorSanitizer. Rust's heap comes from the same allocator, so that
# a kernel that leaves a slice of a test is found. Builds csrc/check in target/sanitize.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/env.sh

target=$(rustc -vV | sed -n 's/^host: //p')
triple=$(tr 'a-z-' 'A-Z_' <<<"$target")
asan=$(gcc -print-file-name=libasan.so)
if [ ! -e "$asan" ]; then
  echo "not run: gcc has no AddressSanitizer here (Debian: libgcc-12-dev and the like bring it)"
  exit 0
fi
# -O1: instrumented code takes over a minute more to compile with -O3, and the tests run in less time than that.
export FATHOM_CSRC_FLAGS="-O1 -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
export RUSTFLAGS="-Clink-arg=-lasan -Clink-arg=-lubsan"
# The allocator is replaced only if the runtime is the first library. Without leaks: test harnesses keep things to the end.
export "CARGO_TARGET_${triple}_RUNNER=env LD_PRELOAD=$asan ASAN_OPTIONS=detect_leaks=0"
export CARGO_TARGET_DIR="$TARGET_DIR/sanitize"
# With --target the flags reach the tests and not the build scripts.
cargo test --locked --manifest-path csrc/check/Cargo.toml --target "$target"
