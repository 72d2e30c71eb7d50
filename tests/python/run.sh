#!/usr/bin/env bash
# Runs the official `ollama` Python client against a real server on each engine: tests/python/run.sh path/to/fathom
# Needs python3 with venv, and PyPI on the first run; the virtual environment is kept in the cache folder of the user.
set -euo pipefail
if [ $# -ne 1 ] || [ ! -x "$1" ]; then
  echo "usage: tests/python/run.sh path/to/fathom" >&2
  exit 2
fi
fathom=$(realpath "$1")
cd "$(dirname "$0")"

cache=${XDG_CACHE_HOME:-$HOME/.cache}/fathom
venv=$cache/python-$(sha256sum requirements.txt | cut -c1-12)
if [ ! -e "$venv/complete" ]; then
  mkdir -p "$cache"
  rm -rf "$venv"
  python3 -m venv "$venv"
  log=$venv/install.log
  if ! "$venv/bin/python" -m pip install --disable-pip-version-check --no-deps -r requirements.txt >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    echo "error: cannot install the Python client: is PyPI reachable? The whole log is in $log" >&2
    exit 1
  fi
  touch "$venv/complete"
fi

work=$(mktemp -d)
server=
cleanup() {
  status=$?
  if [ -n "$server" ]; then
    kill "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
  fi
  if [ "$status" -ne 0 ] && [ -s "$work/serve.log" ]; then
    echo "-- the server's log:" >&2
    tail -n 40 "$work/serve.log" >&2
  fi
  rm -rf "$work"
  exit "$status"
}
trap cleanup EXIT

"$fathom" convert ../data/tiny-v4-a -o "$work/tiny.gguf" >"$work/convert.log" 2>&1 ||
  { cat "$work/convert.log" >&2; echo "error: the small checkpoint could not be converted" >&2; exit 1; }

for engine in llama native; do
  echo "-- on $engine"
  # Emptied here: the server's shell may do it after the first look below, which would find the address of the server before.
  : >"$work/serve.log"
  # Port 0: the system chooses a free one; the server says which.
  FATHOM_HOST=127.0.0.1:0 FATHOM_MODELS=$work/models-$engine FATHOM_ENGINE=$engine "$fathom" serve >"$work/serve.log" 2>&1 &
  server=$!
  url=
  for _ in $(seq 300); do
    url=$(grep -oE 'http://127\.0\.0\.1:[0-9]+' "$work/serve.log" | head -n 1) && [ -n "$url" ] && break
    kill -0 "$server" 2>/dev/null || { echo "error: the server ended" >&2; exit 1; }
    sleep 0.1
  done
  [ -n "$url" ] || { echo "error: the server did not say where it listens" >&2; exit 1; }
  OLLAMA_HOST=$url "$venv/bin/python" client.py "$work/tiny.gguf"
  kill "$server"
  wait "$server" || true
  server=
done
