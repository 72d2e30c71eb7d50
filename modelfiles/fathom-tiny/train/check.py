"""Holds model.py against two other implementations, on one checkpoint:

    python check.py ../checkpoint

1. logits of model.py (plain torch, float32) against transformers' DeepseekV4ForCausalLM on the dequantised weights: at most 1e-3 apart;
2. the kernels of kernels.cpp against plain torch: losses, and the direction of every gradient (BF16 activations against float32);
3. a tensor that goes through the released format comes back with the values that training saw.
Exits with 1 when one fails."""
import argparse
import json
import os
import sys

import torch
import torch.nn.functional as F

import export
import fast
import model
import quantize


def hf_state(c, v):
    out = {"model.embed_tokens.weight": v["embed.weight"], "model.norm.weight": v["norm.weight"], "lm_head.weight": v["head.weight"]}
    for x in ("fn", "base", "scale"):
        out["model.hc_head.hc_" + x] = v["hc_head_" + x]
    for l in range(c["num_hidden_layers"]):
        s, d = f"layers.{l}.", f"model.layers.{l}."
        pairs = [("attn_norm.weight", "input_layernorm.weight"), ("ffn_norm.weight", "post_attention_layernorm.weight"),
                 ("attn.attn_sink", "self_attn.sinks"), ("attn.wq_a.weight", "self_attn.q_a_proj.weight"),
                 ("attn.q_norm.weight", "self_attn.q_a_norm.weight"), ("attn.wq_b.weight", "self_attn.q_b_proj.weight"),
                 ("attn.wkv.weight", "self_attn.kv_proj.weight"), ("attn.kv_norm.weight", "self_attn.kv_norm.weight"),
                 ("attn.wo_a.weight", "self_attn.o_a_proj.weight"), ("attn.wo_b.weight", "self_attn.o_b_proj.weight"),
                 ("ffn.gate.weight", "mlp.gate.weight")]
        for x in ("fn", "base", "scale"):
            pairs += [("hc_attn_" + x, "attn_hc." + x), ("hc_ffn_" + x, "ffn_hc." + x)]
        for w, h in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")):
            pairs.append((f"ffn.shared_experts.{w}.weight", f"mlp.shared_experts.{h}.weight"))
        comp = [("ape", "position_bias"), ("wkv.weight", "kv_proj.weight"), ("wgate.weight", "gate_proj.weight"), ("norm.weight", "kv_norm.weight")]
        ratio = c["compress_ratios"][l]
        if ratio:
            pairs += [("attn.compressor." + a, "self_attn.compressor." + b) for a, b in comp]
        if ratio == 4:
            pairs += [("attn.indexer.compressor." + a, "self_attn.compressor.indexer." + b) for a, b in comp]
            pairs += [("attn.indexer.wq_b.weight", "self_attn.compressor.indexer.q_b_proj.weight"),
                      ("attn.indexer.weights_proj.weight", "self_attn.compressor.indexer.scorer.weights_proj.weight")]
        pairs.append(("ffn.gate.tid2eid", "mlp.gate.tid2eid") if l < c["num_hash_layers"] else ("ffn.gate.bias", "mlp.gate.e_score_correction_bias"))
        for a, b in pairs:
            out[d + b] = v[s + a]
        ex = lambda e, w: v[f"{s}ffn.experts.{e}.{w}.weight"]
        E = range(c["n_routed_experts"])
        out[d + "mlp.experts.gate_up_proj"] = torch.stack([torch.cat([ex(e, "w1"), ex(e, "w3")]) for e in E])
        out[d + "mlp.experts.down_proj"] = torch.stack([ex(e, "w2") for e in E])
    return out


def transformers_model(c, v):
    """transformers' model in float32 with the values `v` (released names)"""
    from transformers import DeepseekV4Config, DeepseekV4ForCausalLM
    drop = ("quantization_config", "expert_dtype", "architectures", "model_type", "torch_dtype", "transformers_version")
    hc = DeepseekV4Config(**{k: x for k, x in json.loads(json.dumps(c)).items() if k not in drop})
    hc._attn_implementation = "eager"
    hc._experts_implementation = "eager"
    m = DeepseekV4ForCausalLM(hc).float().eval()
    res = m.load_state_dict(hf_state(c, v), strict=False)
    bad = [k for k in res.missing_keys if "inv_freq" not in k] + list(res.unexpected_keys)
    if bad:
        sys.exit(f"tensors do not match transformers': {bad[:8]}")
    return m


def plain_weights(P):
    """weights of a float32 pass with the parameters' own values"""
    return {k: v for k, v in P.items()}


def losses(c, P, forms, ids, ops, kernels):
    W = quantize.release(P, forms, True, ops.dtype, kernels)
    m, idx = model.Model(c, ops), []
    S = m.streams(W, ids, idx)
    loss = F.cross_entropy(m.head(S, W), ids.roll(-1, 1).flatten()) + 1e-3 * sum(idx)
    loss = loss + 0.3 * F.cross_entropy(m.head(m.mtp(S, W, ids.roll(-1, 1)), W, "mtp.0."), ids.roll(-2, 1).flatten())
    loss.backward()
    return loss.item(), {k: v.grad.float() for k, v in W.items() if v.requires_grad and v.grad is not None}


def main():
    ap = argparse.ArgumentParser(description="Check the training implementation against transformers and against its kernels.")
    ap.add_argument("checkpoint")
    a = ap.parse_args()
    with open(os.path.join(a.checkpoint, "config.json"), encoding="utf-8") as f:
        c = json.load(f)
    P, v, forms, ok = export.read(a.checkpoint, c), export.values(a.checkpoint), model.spec(c), True
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        hf = transformers_model(c, v)
        m = model.Model(c, model.Ref(c), length=1024)
        for n in (48, 300, 600):
            ids = torch.randint(3, c["vocab_size"] - 20, (1, n), generator=g)
            err = (hf(input_ids=ids, use_cache=False).logits[0] - m.head(m.streams(plain_weights(P), ids), P)).abs().max().item()
            print(f"{n} tokens: logits at most {err:.1e} from transformers'")
            ok &= err <= 1e-3
    back = export.released(P, c)[1]
    same = all(torch.equal(back[k], x) for k, x in v.items())
    print("the released values survive another export" if same else "the released values change in another export")
    ids = torch.randint(3, c["vocab_size"] - 20, (2, 192), generator=g)
    lp, gp = losses(c, P, forms, ids, model.Ref(c), False)
    lk, gk = losses(c, P, forms, ids, fast.Fast(c), True)
    cos = {k: F.cosine_similarity(x.flatten(), gk[k].flatten(), dim=0).item() for k, x in gp.items() if x.norm() > 1e-4}
    worst = min(cos, key=cos.get)
    median = sorted(cos.values())[len(cos) // 2]
    print(f"loss {lp:.4f} in plain torch, {lk:.4f} with the kernels; gradients: median cosine {median:.5f}, lowest {cos[worst]:.3f} ({worst})")
    ok &= same and abs(lp - lk) < 0.02 * abs(lp) and median > 0.99
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
