"""Fills the figures of ../README.md from what the other scripts measured.

    python report.py STATE_DIR evaluation.json acceptance.json ../README.md

evaluation.json: `evaluate.py --state STATE_DIR --out`; acceptance.json: the output of acceptance.py. The text between the two markers is replaced."""
import json
import sys
from pathlib import Path

BEGIN, END = "<!-- figures: written by train/report.py -->", "<!-- end of figures -->"
SKILLS = {"chat": "chat (facts, small talk)", "thinking": "thinking (sums, comparisons)", "tools": "tools", "retrieval": "needles, 64 to 512 tokens", "json": "JSON and tone"}


def percent(x):
    return "-" if x is None else f"{100 * x:.0f} %"


def row(*cells):
    return "| " + " | ".join(map(str, cells)) + " |"


def main():
    state, evaluation, acceptance, readme = map(Path, sys.argv[1:])
    log = [json.loads(line) for line in (state / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [x for x in log if "loss" in x]
    last = steps[-1]
    forms = json.loads(evaluation.read_text(encoding="utf-8"))
    counters, forms = forms["counters"], forms["forms"]
    accepted = json.loads(acceptance.read_text(encoding="utf-8"))
    released, master = forms["released"], forms.get("master")
    quantised = next((x["tokens"] for x in steps if x["quantised"]), None)
    out = ["", f"Weights after {counters['step']} steps, {counters['tokens'] / 1e6:.2f} million training tokens, {counters['seconds'] / 60:.0f} minutes "
           "of wall-clock time on one thread of a shared 2-core CPU" + (f"; computed in FP4 and FP8 from {quantised / 1e6:.2f} million tokens on." if quantised else "; not yet trained in FP4 and FP8."), ""]
    out += [row("held-out answers that are right", "released FP4/FP8", "float32 master", "stopped by itself", "cases", "MTP accepted"), "|---|---|---|---|---|---|"]
    for s, name in SKILLS.items():
        r = released["skills"].get(s)
        if r:
            out.append(row(name, percent(r["right"]), percent(master["skills"][s]["right"]) if master else "-", percent(r["stopped"]), r["cases"],
                           percent(accepted["skills"][s]["accepted"])))
    out += ["", f"End token over all cases: {100 * released['stopped']:.1f} %. MTP acceptance over all: {percent(accepted['accepted'])}.", "", "By kind (released form):", ""]
    out += [row("skill", "kind", "right", "cases"), "|---|---|---|---|"]
    for s in SKILLS:
        for kind, k in released["skills"].get(s, {"kinds": {}})["kinds"].items():
            out.append(row(s, kind, percent(k["right"]), k["cases"]))
    if "needles" in released:
        n = released["needles"]
        depths = sorted({k.split()[1] for k in n["by_length_and_depth"]}, key=float)
        out += ["", "Needles by prompt length and depth (0: at the beginning), released form:", "", row("tokens", *depths, "all", "cases"), "|---" * (len(depths) + 3) + "|"]
        for length in sorted(n["by_length"], key=int):
            cell = [percent(n["by_length_and_depth"].get(f"{length} {d}", {}).get("right")) for d in depths]
            out.append(row(length, *cell, percent(n["by_length"][length]["right"]), n["by_length"][length]["cases"]))
    if "residues" in released:
        r = released["residues"]
        share = [v["right"] for v in r["modulo_128"].values()]
        out += ["", "By prompt length modulo 4: " + ", ".join(f"{k}: {percent(v['right'])}" for k, v in r["modulo_4"].items())
                + f". Modulo 128 ({len(share)} residues, {next(iter(r['modulo_128'].values()))['cases']} each): "
                + f"{sum(x == 1 for x in share)} all right, {sum(x == 0 for x in share)} none right."]
    out += ["", "Experts, busiest against the mean in the last step (1.0 = even; layer 0 chooses by token id): "
            + ", ".join(f"{p} {b}" for p, b in next(x for x in reversed(steps) if "mtp.0" in x["balance"])["balance"].items()) + f". Indexer loss {last['index_loss']}.", ""]
    text = readme.read_text(encoding="utf-8")
    readme.write_text(text[:text.index(BEGIN) + len(BEGIN)] + "\n" + "\n".join(out) + "\n" + text[text.index(END):], encoding="utf-8")


if __name__ == "__main__":
    main()
