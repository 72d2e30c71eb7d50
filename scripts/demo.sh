#!/usr/bin/env bash
# Converts the small checkpoint of this repository, serves it, asks it one question over the Ollama interface, and stops.
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

say fathom convert tests/data/tiny-v4-a -o tiny.gguf
"$fathom" convert tests/data/tiny-v4-a -o "$work/tiny.gguf"

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

say fathom create tiny -f Modelfile
printf 'FROM %s\nPARAMETER num_predict 48\nPARAMETER seed 7\n' "$work/tiny.gguf" >"$work/Modelfile"
FATHOM_HOST=$url "$fathom" create tiny -f "$work/Modelfile"

question='Why is the sky blue?'
say "curl $url/api/chat -d '{\"model\": \"tiny\", \"messages\": [{\"role\": \"user\", \"content\": \"$question\"}]}'"
answer=$(curl -fsS "$url/api/chat" -d "{\"model\": \"tiny\", \"stream\": false, \"think\": false, \"messages\": [{\"role\": \"user\", \"content\": \"$question\"}]}")
echo "$answer"
case $answer in
  *'"done":true'*) ;;
  *) echo "error: the answer is not complete" >&2; exit 1 ;;
esac

cat <<MSG

The whole path works: checkpoint -> GGUF -> engine -> HTTP. The text above is random on purpose: the checkpoint that
ships with the repository has random weights of the real structure, so that formats and arithmetic can be tested.
MSG
