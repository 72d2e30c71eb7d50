#!/usr/bin/env bash
# Installs what the build and the tests need and the machine lacks. Knows Debian and its children; elsewhere it says what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/env.sh

has_libclang() {
  ldconfig -p 2>/dev/null | grep -q 'libclang[-.0-9]*\.so' || compgen -G '/usr/lib/llvm-*/lib/libclang[-.][s0-9]*' >/dev/null || [ -n "${LIBCLANG_PATH:-}" ]
}

missing=()
{ command -v cc && command -v c++ && command -v make; } >/dev/null 2>&1 || missing+=(build-essential)
command -v cmake >/dev/null 2>&1 || missing+=(cmake)
has_libclang || missing+=(libclang-dev)
command -v curl >/dev/null 2>&1 || missing+=(curl)
python3 -c 'import ensurepip, venv' >/dev/null 2>&1 || missing+=(python3-venv)

[ ${#missing[@]} -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null 2>&1; then
  echo "error: missing what these Debian packages bring: ${missing[*]}" >&2
  echo "hint: install their counterparts with this system's package manager (a C++17 compiler, CMake, libclang, curl, Python 3 with venv)" >&2
  exit 1
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if command -v sudo >/dev/null 2>&1 && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
    as_root=(sudo)
  else
    echo "error: missing packages: ${missing[*]}" >&2
    echo "hint: run \`apt-get install ${missing[*]}\` as root, then try again" >&2
    exit 1
  fi
fi

echo "installing: ${missing[*]}" >&2
log=$(mktemp)
if ! { "${as_root[@]}" apt-get update && "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
  tail -n 20 "$log" >&2
  echo "error: could not install ${missing[*]}; the whole log is in $log" >&2
  exit 1
fi
rm -f "$log"
