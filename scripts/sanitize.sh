#!/usr/bin/env bash
# The kernel tests with csrc under AddressSanitizer and UndefinedBehaviorSanitizer. Rust's heap comes from the same allocator, so that
# a kernel that leaves a slice of a test is found. Builds everything once more, in target/sanitize.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/env.sh

target=$(rustc -vV | sed -n 's/^host: //p')
triple=$(tr 'a-z-' 'A-Z_' <<<"$target")
export FATHOM_CSRC_FLAGS="-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
export RUSTFLAGS="-Clink-arg=-lasan -Clink-arg=-lubsan"
# The allocator is replaced only if the runtime is the first library. Without leaks: test harnesses keep things to the end.
export "CARGO_TARGET_${triple}_RUNNER=env LD_PRELOAD=$(gcc -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0"
export CARGO_TARGET_DIR="$TARGET_DIR/sanitize"
# With --target the flags reach the tests and not the build scripts.
cargo test --no-default-features --target "$target" --lib --test suite -- kernels
