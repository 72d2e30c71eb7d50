"""Writes a training state as a checkpoint in the released format, and reads such a checkpoint back.

    python export.py --state STATE_DIR --out ../checkpoint
"""
import argparse
import json
import os
import shutil

import torch
from safetensors import safe_open
from safetensors.torch import save_file

import data
import model
import quantize

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def released(P: dict, c: dict) -> tuple[dict, dict]:
    """(tensors as stored, their float32 values), both by released name; experts one by one, w1 and w3 apart"""
    disk, value = {}, {}

    def put(name, t, form):
        if form == "f32":
            disk[name] = value[name] = t.float().contiguous()
        elif form == "bf16":
            disk[name] = t.to(torch.bfloat16).contiguous()
            value[name] = disk[name].float()
        else:
            base = name.removesuffix(".weight")
            pack = quantize.pack_fp8 if form == "fp8" else quantize.pack_fp4
            disk[base + ".weight"], disk[base + ".scale"], value[base + ".weight"] = pack(t.float().contiguous())

    for name, (_, form, _, _) in model.spec(c).items():
        t = P[name].detach().cpu()
        I = c["moe_intermediate_size"]
        if ".experts.w13" in name or ".shared_experts.w13" in name:
            p = name.removesuffix("w13")
            for e in range(t.shape[0]) if t.dim() == 3 else [None]:
                q, w = (p, t) if e is None else (f"{p}{e}.", t[e])
                put(q + "w1.weight", w[:I], form), put(q + "w3.weight", w[I:], form)
        elif name.endswith("experts.w2"):
            p = name.removesuffix("w2")
            for e in range(t.shape[0]) if t.dim() == 3 else [None]:
                q, w = (p, t) if e is None else (f"{p}{e}.", t[e])
                put(q + "w2.weight", w, form)
        else:
            put(name, t, form)
    for l in range(c["num_hash_layers"]):
        name = f"layers.{l}.ffn.gate.tid2eid"
        disk[name] = value[name] = P[name].cpu().long().contiguous()
    return disk, value


def write(out: str, P: dict, c: dict, shards=2) -> int:
    """the whole checkpoint folder; returns the bytes of its files"""
    disk, _ = released(P, c)
    os.makedirs(out, exist_ok=True)
    for f in os.listdir(out):
        if f.endswith((".safetensors", ".json")):
            os.remove(os.path.join(out, f))
    size = lambda t: t.numel() * t.element_size()
    total = sum(map(size, disk.values()))
    parts, filled = [{}], 0
    for k, t in disk.items():
        if filled > total / shards and len(parts) < shards:
            parts.append({})
            filled = 0
        parts[-1][k] = t
        filled += size(t)
    where = {}
    for i, part in enumerate(parts):
        name = f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors"
        save_file(part, os.path.join(out, name), metadata={"format": "pt"})
        where.update({k: name for k in part})

    def dump(name, obj):
        with open(os.path.join(out, name), "w", encoding="utf-8") as f:
            f.write(json.dumps(obj, indent=2, ensure_ascii=False) + "\n")
    dump("model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))})
    dump("config.json", c)
    dump("generation_config.json", {"_from_model_config": True, "bos_token_id": 0, "eos_token_id": 1, "do_sample": True, "temperature": 1.0,
                                    "top_p": 1.0, "transformers_version": c["transformers_version"]})
    for f in TOKENIZER_FILES:
        shutil.copyfile(os.path.join(data.VOCABULARY, f), os.path.join(out, f))
    for f in os.listdir(out):
        os.chmod(os.path.join(out, f), 0o644)
    return sum(os.path.getsize(os.path.join(out, f)) for f in os.listdir(out))


def values(folder: str) -> dict:
    """float32 values of every released tensor of a checkpoint folder (routing tables: int64)"""
    raw = {}
    for f in sorted(os.listdir(folder)):
        if f.endswith(".safetensors"):
            with safe_open(os.path.join(folder, f), "pt") as s:
                raw.update({k: s.get_tensor(k) for k in s.keys()})
    out = {}
    for k, t in raw.items():
        if k.endswith(".scale") and not k.endswith(("hc_attn_scale", "hc_ffn_scale", "hc_head_scale")):
            continue
        scale = raw.get(k.removesuffix(".weight") + ".scale") if k.endswith(".weight") else None
        if scale is None:
            out[k] = t if t.dtype == torch.int64 else t.float()
            continue
        s = torch.exp2(scale.view(torch.uint8).float() - 127)
        if t.dtype == torch.int8:
            b = t.view(torch.uint8).int()
            code = torch.stack([b & 15, b >> 4], -1).flatten(1)
            v = quantize.FP4[code & 7] * torch.where(code > 7, -1.0, 1.0)
            out[k] = v * s.repeat_interleave(32, 1)
        else:
            o, i = t.shape
            out[k] = t.float() * s.repeat_interleave(128, 0)[:o].repeat_interleave(128, 1)[:, :i]
    return out


def read(folder: str, c: dict) -> dict:
    """the parameters of model.py with a checkpoint's values, to train on from or to evaluate"""
    v = values(folder)
    P = {}
    for name, (shape, _, _, _) in model.spec(c).items():
        if name.endswith("w13"):
            p = name.removesuffix("w13")
            both = lambda q: torch.cat([v[q + "w1.weight"], v[q + "w3.weight"]])
            P[name] = both(p) if "shared" in p else torch.stack([both(f"{p}{e}.") for e in range(shape[0])])
        elif name.endswith("experts.w2"):
            p = name.removesuffix("w2")
            P[name] = v[p + "w2.weight"] if "shared" in p else torch.stack([v[f"{p}{e}.w2.weight"] for e in range(shape[0])])
        else:
            P[name] = v[name]
        assert tuple(P[name].shape) == tuple(shape), (name, P[name].shape, shape)
    for l in range(c["num_hash_layers"]):
        P[f"layers.{l}.ffn.gate.tid2eid"] = v[f"layers.{l}.ffn.gate.tid2eid"]
    return P


def main():
    ap = argparse.ArgumentParser(description="Write a training state as a checkpoint in the released format.")
    ap.add_argument("--state", required=True)
    ap.add_argument("--out", required=True)
    ap.add_argument("--weights", default="ema", choices=["ema", "P"], help="the moving average or the last step")
    ap.add_argument("--random", action="store_true", help="random weights instead of a state, to try the format")
    a = ap.parse_args()
    if a.random:
        import tokenizer
        c = model.config(tokenizer.load(data.VOCABULARY).vocabulary)
        P = model.init(c, 1)
    else:
        saved = torch.load(os.path.join(a.state, "state.pt"), map_location="cpu", weights_only=True)
        c, P = saved["config"], saved[a.weights]
        print(saved["counters"])
    print(f"{a.out}: {write(a.out, P, c)} bytes")


if __name__ == "__main__":
    main()
