#!/usr/bin/env bash
# What rounding and fewer experts cost on fathom-tiny, as the tables of docs/performance.md and docs/routing.md: the divergence of each row
# type and engine from exact arithmetic, and of coarser files from the lossless one, beside the noise floor; needles at every remainder of the prompt's
# length on both engines; calibrated routing profiles, with the picture docs/routing-fathom-tiny.svg, which is written anew.
# Run it anew with each checkpoint: scripts/accuracy.sh path/to/fathom [LENGTHS]. `make accuracy` builds the program first.
set -euo pipefail
if [ $# -lt 1 ] || [ ! -x "$1" ]; then
  echo "usage: scripts/accuracy.sh path/to/fathom [LENGTHS]" >&2
  exit 2
fi
fathom=$(realpath "$1")
lengths=${2:-256,512}
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$fathom" convert modelfiles/fathom-tiny/checkpoint -o "$work/fathom-tiny.gguf" >&2
text=(--only text --text modelfiles/fathom-tiny/heldout.txt --parse-specials --json --scratch "$work")
for kv in f32 f16 fp8; do
  "$fathom" eval "$work/fathom-tiny.gguf" --engine native --kv "$kv" --against-f32 "${text[@]}" >"$work/native-$kv.json"
done
"$fathom" eval "$work/fathom-tiny.gguf" --engine llama --kv f16 --against-f32 "${text[@]}" >"$work/llama-f16.json"
for change in "--dense q8_0" "--experts q8_0" "--experts q4_k"; do
  name=coarse-$(echo "${change#--}" | tr ' ' -)
  # shellcheck disable=SC2086 # two words
  "$fathom" convert modelfiles/fathom-tiny/checkpoint -o "$work/$name.gguf" $change >&2
  "$fathom" eval "$work/$name.gguf" --engine native --against "$work/fathom-tiny.gguf" "${text[@]}" >"$work/$name.json"
done
"$fathom" eval "$work/fathom-tiny.gguf" --engine native --against-engine llama --only needles --residues \
  --needle-lengths "$lengths" --json >"$work/needles.json"
# Fails when no profile is worth keeping; its report says so.
heldout=$PWD/modelfiles/fathom-tiny/heldout.txt
(cd "$work" && "$fathom" calibrate fathom-tiny.gguf --text "$heldout" --parse-specials --json >calibrate.json) || true
cp "$work/fathom-tiny.routing.svg" docs/routing-fathom-tiny.svg
python3 scripts/accuracy.py "$work"
