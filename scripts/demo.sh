#!/usr/bin/env bash
# Converts the small model of this repository, serves it, asks it a fact, a sum and a question that needs a tool over the Ollama
# interface, and stops.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/env.sh

cargo build --release
fathom="$TARGET_DIR/release/fathom"

work=$(mktemp -d)
server=
cleanup() {
  [ -z "$server" ] || { kill "$server" 2>/dev/null && wait "$server" 2>/dev/null; } || true
  rm -rf "$work"
}
trap cleanup EXIT
export FATHOM_MODELS="$work/models"

say() { printf '\n$ %s\n' "$*"; }

say fathom serve
# Port 0: the system chooses a free one; the server says which.
FATHOM_HOST=127.0.0.1:0 "$fathom" serve >"$work/serve.log" 2>&1 &
server=$!
url=
for _ in $(seq 100); do
  url=$(grep -oE 'http://127\.0\.0\.1:[0-9]+' "$work/serve.log" | head -n 1) && [ -n "$url" ] && break
  kill -0 "$server" 2>/dev/null || { cat "$work/serve.log" >&2; echo "error: the server ended" >&2; exit 1; }
  sleep 0.1
done
[ -n "$url" ] || { cat "$work/serve.log" >&2; echo "error: the server did not come up in 10 s" >&2; exit 1; }
echo "listening on $url"
export FATHOM_HOST=$url

# FROM names the checkpoint, so creating converts it.
say fathom create fathom-tiny -f modelfiles/fathom-tiny/Modelfile
"$fathom" create fathom-tiny -f modelfiles/fathom-tiny/Modelfile
"$fathom" show fathom-tiny

say python3 scripts/demo.py "$url" fathom-tiny
python3 scripts/demo.py "$url" fathom-tiny

cat <<MSG

The whole path works: checkpoint -> GGUF -> engine -> HTTP. \`fathom run fathom-tiny\` talks to the same model.
MSG
