"""How often the draft block `mtp.0` proposes the token that the model then writes, on held-out answers decoded greedily.

    python acceptance.py ../checkpoint --cases 60
"""
import argparse
import json
import os

import torch

import data
import evaluate
import export
import fast
import model
import quantize
import tokenizer


def main():
    ap = argparse.ArgumentParser(description="Measure the acceptance of the draft block.")
    ap.add_argument("checkpoint")
    ap.add_argument("--cases", type=int, default=60, help="held-out cases a skill")
    a = ap.parse_args()
    with open(os.path.join(a.checkpoint, "config.json"), encoding="utf-8") as f:
        c = json.load(f)
    P, vocabulary = export.read(a.checkpoint, c), tokenizer.load(data.VOCABULARY)
    argmax = evaluate.argmax_of(P, c, False)
    W, m = quantize.release(P, model.spec(c), False, torch.bfloat16, True), model.Model(c, fast.Fast(c))
    out = {"schema": 1, "skills": {}}
    total = [0, 0]
    for skill in evaluate.SKILLS:
        cases = evaluate.heldout(skill, a.cases, 1, vocabulary)
        hit = n = 0
        for case, ids in zip(cases, evaluate.greedy(argmax, cases, vocabulary.eos)):
            seq = case.prompt + ids
            x = torch.full((1, -(-len(seq) // 32) * 32), 2)
            x[0, :len(seq)] = torch.tensor(seq)
            with torch.no_grad():
                draft = m.head(m.mtp(m.streams(W, x), W, x.roll(-1, 1)), W, "mtp.0.").argmax(-1).tolist()
            # streams at t with token t+1 propose token t+2: every written token but the first has such a proposal
            for k in range(len(case.prompt) + 1, len(seq)):
                hit += draft[k - 2] == seq[k]
                n += 1
        out["skills"][skill] = {"accepted": round(hit / n, 4), "tokens": n}
        total = [total[0] + hit, total[1] + n]
    out["accepted"] = round(total[0] / total[1], 4)
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
