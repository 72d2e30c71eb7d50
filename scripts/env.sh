# Sourced by the other scripts: where cargo is, and where it builds.
# shellcheck shell=bash

if ! command -v cargo >/dev/null 2>&1; then
  if [ -x "$HOME/.cargo/bin/cargo" ]; then
    export PATH="$HOME/.cargo/bin:$PATH"
  else
    echo "error: no \`cargo\` found" >&2
    echo "hint: install Rust 1.95 or newer from https://rustup.rs" >&2
    exit 1
  fi
fi

# CI clones afresh each time; llama.cpp takes minutes to compile and has not changed.
if [ -n "${CI:-}" ] && [ -z "${CARGO_TARGET_DIR:-}" ]; then
  export CARGO_TARGET_DIR="${XDG_CACHE_HOME:-$HOME/.cache}/fathom/target"
fi
TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"
export TARGET_DIR
