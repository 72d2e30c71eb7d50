#!/usr/bin/env bash
# Whether src/kernels/sys.rs is what bindgen makes of csrc/fathom.h.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/env.sh

written=$(mktemp --suffix=.rs)
trap 'rm -f "$written"' EXIT
# Not in a folder of its own: bindgen is built there already, for llama.cpp.
FATHOM_BINDINGS="$written" cargo check --locked --release --manifest-path csrc/check/Cargo.toml --features bindgen
if ! diff -u src/kernels/sys.rs "$written"; then
  echo "error: src/kernels/sys.rs is not what bindgen makes of csrc/fathom.h" >&2
  echo "hint: \`cargo check --features bindgen\` writes it anew" >&2
  exit 1
fi
