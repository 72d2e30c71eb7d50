#!/usr/bin/env bash
# The kernel tests for AArch64, by qemu's emulation of the processor. Builds csrc/check in target/neon. Where tools are missing it says
# so, and with `--if-possible` that is no error.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/env.sh

target=aarch64-unknown-linux-gnu
missing=()
command -v aarch64-linux-gnu-gcc >/dev/null 2>&1 || missing+=("Debian's gcc-aarch64-linux-gnu and libc6-dev-arm64-cross")
command -v qemu-aarch64 >/dev/null 2>&1 || missing+=("Debian's qemu-user")
[ -d "$(rustc --print target-libdir --target "$target")" ] || missing+=("\`rustup target add $target\`")
if [ ${#missing[@]} -gt 0 ]; then
  printf 'not run: this machine lacks %s\n' "${missing[@]}"
  [ "${1:-}" = --if-possible ] && exit 0
  exit 1
fi

export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu"
export CARGO_TARGET_DIR="$TARGET_DIR/neon"
cargo test --locked --manifest-path csrc/check/Cargo.toml --target "$target"
