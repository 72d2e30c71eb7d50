#!/usr/bin/env bash
# Every test that needs no GPU and no real weights. Prints the time of each group; the first failing group ends it.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/env.sh

times=()
group() {
  local name=$1 start=$SECONDS
  shift
  printf '\n== %s\n' "$name"
  "$@"
  times+=("$(printf '%-34s %5d s' "$name" $((SECONDS - start)))")
}

group "build (llama.cpp once)" cargo build --release
group "style: fmt, clippy, doc" scripts/style.sh
group "T0: cargo quick" cargo quick
group "T1: cargo full" cargo full
group "bindings: src/kernels/sys.rs" scripts/bindings.sh
group "kernels under sanitizers" scripts/sanitize.sh
group "kernels on AArch64, emulated" scripts/neon.sh --if-possible
group "clients: Python" tests/python/run.sh "$TARGET_DIR/release/fathom"
group "demo" scripts/demo.sh

printf '\n== time of each group\n'
printf '%s\n' "${times[@]}"
printf '%-34s %5d s\n' total "$SECONDS"
