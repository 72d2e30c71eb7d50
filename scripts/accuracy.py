"""The reports that accuracy.sh made, as the tables of docs/performance.md."""

import hashlib
import json
import pathlib
import sys

work = pathlib.Path(sys.argv[1])


def report(name):
    return json.loads((work / f"{name}.json").read_text())


def share(score):
    return f"{score['right']} of {score['of']}"


weights = pathlib.Path("modelfiles/fathom-tiny/checkpoint").glob("*.safetensors")
digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(weights))).hexdigest()
first = report("native-f16")["text"]
print(f"Checkpoint {digest[:12]}, {first['scored_tokens']} scored tokens of the held-out conversations, steps of 512 tokens.\n")
print("| engine, rows | mean KL from exact arithmetic | standard error | p99 | same top token | noise floor (mean KL) | perplexity |")
print("|---|---|---|---|---|---|---|")
for name in ("native-f32", "native-f16", "native-fp8", "llama-f16"):
    text = report(name)["text"]
    kl, noise = text["against"]["divergence"], text["noise"]
    print(
        f"| `{name.replace('-', '`, `')}` | {kl['mean_kl']:.2e} | {kl['mean_kl_error']:.1e} | {kl['p99_kl']:.2e} "
        f"| {100 * kl['same_top']:.2f} % | {noise['mean_kl']:.2e} | {text['perplexity']['value']:.4f} |"
    )

ours = report("needles")["needles"]
theirs = ours["against"]
lengths = ", ".join(f"{n} to {n + 127}" for n in ours["lengths"])
print(f"\nNeedles at the lengths {lengths}, one prompt for each: every remainder modulo 128, and so modulo 4.\n")
print("| engine | found | in steps of 101 | length mod 4 = 0 | 1 | 2 | 3 |")
print("|---|---|---|---|---|---|---|")
for name, needles in (("native", ours), (theirs["engine"], theirs["needles"])):
    by_4 = " | ".join(share(score) for score in needles["modulo_4"])
    print(f"| `{name}` | {share(needles['all'])} | {share(needles['all_second_split'])} | {by_4} |")
worse = [n for n, (a, b) in enumerate(zip(ours["modulo_128"], theirs["needles"]["modulo_128"])) if a["right"] < b["right"]]
better = [n for n, (a, b) in enumerate(zip(ours["modulo_128"], theirs["needles"]["modulo_128"])) if a["right"] > b["right"]]
print(
    f"\nFound by native only: {theirs['only_model']}, by {theirs['engine']} only: {theirs['only_reference']}; answers that another step "
    f"size changes: {ours['answers_that_differ']} and {theirs['needles']['answers_that_differ']}. "
    f"Remainders modulo 128 with fewer found: {', '.join(map(str, worse)) or 'none'}; with more: {', '.join(map(str, better)) or 'none'}."
)
