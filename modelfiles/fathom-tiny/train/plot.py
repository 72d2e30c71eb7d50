"""Draws the log of a training run: loss by skill, and held-out accuracy over the same time.

    python plot.py STATE_DIR ../training.svg
"""
import json
import sys

import matplotlib

matplotlib.use("Agg")
matplotlib.rcParams["svg.hashsalt"] = "fathom-tiny"
import matplotlib.pyplot as plt


def smooth(values, weight=0.8):
    out, last = [], None
    for v in values:
        last = v if last is None else weight * last + (1 - weight) * v
        out.append(last)
    return out


def main():
    state, target = sys.argv[1:3]
    with open(f"{state}/log.jsonl", encoding="utf-8") as f:
        lines = [json.loads(line) for line in f]
    steps = [x for x in lines if "loss" in x]
    checks = []
    try:
        with open(f"{state}/accuracy.jsonl", encoding="utf-8") as f:
            checks = [json.loads(line) for line in f]
    except FileNotFoundError:
        pass
    fig, axes = plt.subplots(2 if checks else 1, 1, figsize=(8, 7 if checks else 4), sharex=True, squeeze=False)
    ax = axes[0][0]
    for skill in ("chat", "thinking", "tools", "retrieval", "json"):
        have = [x for x in steps if skill in x["skills"]]
        ax.plot([x["tokens"] / 1e6 for x in have], smooth([x["skills"][skill] for x in have]), label=skill, linewidth=1.2)
    quantised = [x["tokens"] / 1e6 for x in steps if x["quantised"]]
    if quantised:
        for q in (ax, *([axes[1][0]] if checks else [])):
            q.axvline(quantised[0], color="0.5", linestyle=":", label="trained in FP4 / FP8 from here" if q is ax else None)
    ax.set_yscale("log"), ax.set_ylabel("loss of answer tokens (nats)"), ax.legend(fontsize=8), ax.grid(alpha=0.3)
    if checks:
        for skill in checks[0]["accuracy"]:
            axes[1][0].plot([x["tokens"] / 1e6 for x in checks], [100 * x["accuracy"][skill] for x in checks], marker="o", markersize=3, label=skill)
        axes[1][0].set_ylabel("held-out answers, word for word (%)"), axes[1][0].grid(alpha=0.3)
    axes[-1][0].set_xlabel("training tokens (millions)")
    fig.tight_layout()
    fig.savefig(target, metadata={"Date": None} if target.endswith("svg") else None)


if __name__ == "__main__":
    main()
