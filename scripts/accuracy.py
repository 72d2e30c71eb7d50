"""The reports that accuracy.sh made, as the tables of docs/performance.md and docs/routing.md."""

import hashlib
import json
import os
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

print("\n| file, against the lossless one | bytes | mean KL | standard error | p99 | same top token | noise floor (mean KL) | perplexity |")
print("|---|---|---|---|---|---|---|---|")
for name in ("dense-q8_0", "experts-q8_0", "experts-q4_k"):
    whole = report(f"coarse-{name}")
    text = whole["text"]
    kl, noise = text["against"]["divergence"], text["noise"]
    print(
        f"| `--{name.replace('-', ' ', 1)}` | {whole['file_bytes']:,} of {os.path.getsize(work / 'fathom-tiny.gguf'):,} | {kl['mean_kl']:.2e} | {kl['mean_kl_error']:.1e} "
        f"| {kl['p99_kl']:.2e} | {100 * kl['same_top']:.2f} % | {noise['mean_kl']:.2e} | {text['perplexity']['value']:.4f} |"
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

found = report("calibrate")
held, made = found["text"]["heldout"], found["text"]["calibration"]
print(f"\ndocs/routing.md: checkpoint {digest[:12]}, {made['windows']} windows ({made['tokens']:,} tokens) for calibration, {held['windows']} ({held['tokens']:,} tokens, {held['scored']:,} scored) held out.\n")
print("| policy | experts of a token | mean KL from all experts | standard error | p99 | same top token | perplexity ratio |")
print("|---|---|---|---|---|---|---|")


def row(name, experts, kl, ratio):
    print(
        f"| {name} | {experts:.2f} | {kl['mean_kl']:.2e} | {kl['mean_kl_error']:.1e} | {kl['p99_kl']:.2e} "
        f"| {100 * kl['same_top']:.2f} ± {100 * kl['same_top_error']:.2f} % | {ratio:.4f} |"
    )


row("`off`, in steps of 101 tokens (noise)", found["experts_used"], found["noise"], 1)
for tried in found["profiles"]:
    row(f"**{tried['name']}**", tried["mean_experts"], tried["divergence"], tried["perplexity_ratio"])
for other in sorted(found["others"], key=lambda other: (other["routing"][:3], -other["mean_experts"])):
    row(f"`{other['routing']}`", other["mean_experts"], other["divergence"], other["perplexity_ratio"])

print("\n| profile | KL minus that of a fixed number | KL minus that of `rel` | tokens at the fewest, at all | rank correlation with loss | experts of each layer | |")
print("|---|---|---|---|---|---|---|")
for tried in found["profiles"]:
    less = [f"{tried[name]['difference']:+.2e} ± {tried[name]['difference_error']:.1e}" for name in ("against_topk", "against_rel")]
    layers = ", ".join(f"{layer['mean_experts']:.2f}" for layer in tried["layers"])
    spearman = "-" if tried["spearman_loss"] is None else f"{tried['spearman_loss']:.2f}"
    print(
        f"| {tried['name']} | {less[0]} | {less[1]} | {100 * tried['share_fewest']:.1f} %, {100 * tried['share_all']:.1f} % "
        f"| {spearman} | {layers} | {'' if tried['accepted'] else 'rejected'} |"
    )
