"""Golden logits: float32 results of transformers' DeepseekV4ForCausalLM on a checkpoint's dequantised weights.

    python golden.py ../checkpoint ../golden

golden.safetensors holds for N = 64, 600 and 3000 tokens (prompts of the needle test):
  N.tokens [N] i32, N.rows [r] i32 (every 97th and the last 16), N.logits [r, V] f32,
  N.router_margin [N] f32: how far the last chosen expert is ahead of the first one left out, the narrowest layer (hash layers choose by id),
  N.index_margin [N] f32: the same for the indexer's entries; infinite where all are chosen.
An engine that rounds differently may choose otherwise where a margin is narrow, and differs from there on.
golden.json says where the numbers come from. Nothing is written unless model.py agrees with transformers to 1e-3."""
import argparse
import hashlib
import json
import os
import sys

import torch
import transformers
from safetensors.torch import save_file

import check
import evaluate
import export
import model

LENGTHS = (64, 600, 3000)
SEEDS = 8


def main():
    ap = argparse.ArgumentParser(description="Write golden logits of a checkpoint.")
    ap.add_argument("checkpoint")
    ap.add_argument("out")
    a = ap.parse_args()
    with open(os.path.join(a.checkpoint, "config.json"), encoding="utf-8") as f:
        c = json.load(f)
    P = export.read(a.checkpoint, c)
    hf = check.transformers_model(c, export.values(a.checkpoint))
    m = model.Model(c, model.Ref(c), length=4096)
    out, info = {}, {"schema": 1, "transformers": transformers.__version__, "torch": torch.__version__.split("+")[0], "prompts": {}}
    digest = hashlib.sha256()
    for f in sorted(os.listdir(a.checkpoint)):
        if f.endswith((".safetensors", ".json")):
            with open(os.path.join(a.checkpoint, f), "rb") as g:
                digest.update(g.read())
    info["checkpoint_sha256"] = digest.hexdigest()
    with torch.no_grad():
        for n in LENGTHS:
            # Where two index scores are equal, either choice is right, and implementations differ: take a prompt without such a place.
            for seed in range(SEEDS):
                case = evaluate.needles([n], [0.5], 1, seed)[0]
                ids = torch.tensor([case.prompt])
                assert ids.shape[1] == n
                logits = hf(input_ids=ids, use_cache=False).logits[0]
                m.probe = {}
                mine = m.head(m.streams(P, ids), P)
                err = (logits - mine).abs().max().item()
                if err <= 1e-3:
                    break
            else:
                sys.exit(f"{n} tokens: model.py and transformers differ by {err}; nothing is written")
            rows = torch.tensor(sorted(set(range(0, n, 97)) | set(range(n - 16, n))))
            margins = {}
            for kind in ("router", "index"):
                each = [v for k, v in m.probe.items() if k.endswith(kind)]
                margins[kind] = torch.stack(each).amin(0) if each else torch.full((n,), torch.inf)
                out[f"{n}.{kind}_margin"] = margins[kind].float().contiguous()
            out[f"{n}.tokens"], out[f"{n}.rows"], out[f"{n}.logits"] = ids[0].int(), rows.int(), logits[rows].contiguous()
            best = logits[rows].topk(2).values
            info["prompts"][str(n)] = {"model_py_vs_transformers": err, "narrowest_router_margin": margins["router"].min().item(),
                                       "narrowest_index_margin": min(margins["index"].min().item(), 1e30), "index_ties": int((margins["index"] == 0).sum()),
                                       "narrowest_top2_gap": (best[:, 0] - best[:, 1]).min().item(), "logit_std": logits.std().item()}
            print(n, info["prompts"][str(n)], flush=True)
    os.makedirs(a.out, exist_ok=True)
    path = os.path.join(a.out, "golden.safetensors")
    save_file(out, path, metadata={"format": "pt"})
    os.chmod(path, 0o644)
    with open(os.path.join(a.out, "golden.json"), "w", encoding="utf-8") as f:
        f.write(json.dumps(info, indent=1) + "\n")
    print(path, os.path.getsize(path), "bytes")


if __name__ == "__main__":
    main()
