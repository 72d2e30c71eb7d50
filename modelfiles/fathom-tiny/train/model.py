"""The DeepSeek-V4 architecture in plain torch, small enough to train on a CPU.

`Ref` holds every operation as differentiable torch code (any device, any float type); `fast.Fast` replaces them by the
CPU kernels of kernels.cpp. `Model.forward` is the same for both. Parameters are kept under their released names, the
experts of a layer stacked: `layers.N.ffn.experts.w13` [E, 2I, D] (w1 rows, then w3 rows) and `.w2` [E, D, I].

`check.py` holds this file against transformers' DeepseekV4ForCausalLM and against the kernels.
"""
import math

import torch
import torch.nn.functional as F

HASH_SEED = 7


def config(vocab: int) -> dict:
    """config.json of fathom-tiny, with the fields and values of a release"""
    ratios = [0, 4, 128, 4]
    return {
        "architectures": ["DeepseekV4ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 0,
        "eos_token_id": 1, "expert_dtype": "fp4", "hc_eps": 1e-06, "hc_mult": 4, "hc_sinkhorn_iters": 20, "head_dim": 128,
        "hidden_act": "silu", "hidden_size": 256, "index_head_dim": 64, "index_n_heads": 16, "index_topk": 32,
        "initializer_range": 0.02, "max_position_embeddings": 32768, "model_type": "deepseek_v4", "moe_intermediate_size": 64,
        "n_routed_experts": 32, "n_shared_experts": 1, "norm_topk_prob": True, "num_attention_heads": 4,
        "num_experts_per_tok": 6, "num_hidden_layers": len(ratios), "num_hash_layers": 1, "num_key_value_heads": 1,
        "num_nextn_predict_layers": 1, "o_groups": 2, "o_lora_rank": 64, "q_lora_rank": 64, "qk_rope_head_dim": 32,
        "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "scale_fmt": "ue8m0",
                                "weight_block_size": [128, 128]},
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 16, "original_max_position_embeddings": 2048, "type": "yarn"},
        "rope_theta": 10000, "routed_scaling_factor": 1.5, "scoring_func": "sqrtsoftplus", "sliding_window": 64, "swiglu_limit": 10.0,
        "tie_word_embeddings": False, "topk_method": "noaux_tc", "torch_dtype": "bfloat16", "transformers_version": "4.57.1",
        "use_cache": True, "vocab_size": vocab, "compress_rope_theta": 160000, "compress_ratios": ratios + [0],
    }


def spec(c: dict) -> dict[str, tuple[tuple[int, ...], str, float, float]]:
    """name -> (shape, stored form, mean, standard deviation at the start)"""
    D, H, hd, ql, V = c["hidden_size"], c["num_attention_heads"], c["head_dim"], c["q_lora_rank"], c["vocab_size"]
    og, ol, E, I = c["o_groups"], c["o_lora_rank"], c["n_routed_experts"], c["moe_intermediate_size"]
    ih, idim = c["index_n_heads"], c["index_head_dim"]
    out = {}

    def add(name, shape, form, mean=0.0, std=None):
        out[name] = (shape, form, mean, 1 / math.sqrt(shape[-1]) if std is None else std)

    def norm(name, n):
        add(name, (n,), "bf16", 1.0, 0.0)

    def hc(p):
        add(p + "_fn", (24, 4 * D), "f32", 0.0, 0.3 / math.sqrt(4 * D))
        add(p + "_base", (24,), "f32", 0.0, 0.0)
        add(p + "_scale", (3,), "f32", 1.0, 0.0)

    def block(p, ratio, hashed):
        norm(p + "attn_norm.weight", D), norm(p + "ffn_norm.weight", D)
        hc(p + "hc_attn"), hc(p + "hc_ffn")
        a = p + "attn."
        add(a + "attn_sink", (H,), "f32", 0.0, 0.0)
        add(a + "wq_a.weight", (ql, D), "fp8"), norm(a + "q_norm.weight", ql), add(a + "wq_b.weight", (H * hd, ql), "fp8")
        add(a + "wkv.weight", (hd, D), "fp8"), norm(a + "kv_norm.weight", hd)
        add(a + "wo_a.weight", (og * ol, H * hd // og), "fp8"), add(a + "wo_b.weight", (D, og * ol), "fp8", 0.0, 0.3 / math.sqrt(og * ol))

        def compressor(q, ratio, d):
            f = 2 if ratio == 4 else 1
            add(q + "ape", (ratio, f * d), "f32", 0.0, 0.02)
            add(q + "wkv.weight", (f * d, D), "bf16"), add(q + "wgate.weight", (f * d, D), "bf16"), norm(q + "norm.weight", d)
        if ratio:
            compressor(a + "compressor.", ratio, hd)
        if ratio == 4:
            add(a + "indexer.wq_b.weight", (ih * idim, ql), "fp8"), add(a + "indexer.weights_proj.weight", (ih, D), "bf16")
            compressor(a + "indexer.compressor.", 4, idim)
        f = p + "ffn."
        add(f + "gate.weight", (E, D), "bf16")
        if not hashed:
            add(f + "gate.bias", (E,), "f32", 0.0, 0.0)
        add(f + "experts.w13", (E, 2 * I, D), "fp4"), add(f + "experts.w2", (E, D, I), "fp4", 0.0, 0.5 / math.sqrt(I))
        add(f + "shared_experts.w13", (2 * I, D), "fp8"), add(f + "shared_experts.w2", (D, I), "fp8", 0.0, 0.5 / math.sqrt(I))

    def head(p):
        add(p + "hc_head_fn", (4, 4 * D), "f32", 0.0, 0.3 / math.sqrt(4 * D))
        add(p + "hc_head_base", (4,), "f32", 0.0, 0.0), add(p + "hc_head_scale", (1,), "f32", 1.0, 0.0)
        norm(p + "norm.weight", D)

    add("embed.weight", (V, D), "bf16", 0.0, 0.5), add("head.weight", (V, D), "bf16", 0.0, 0.5 / math.sqrt(D)), head("")
    for l in range(c["num_hidden_layers"]):
        block(f"layers.{l}.", c["compress_ratios"][l], l < c["num_hash_layers"])
    block("mtp.0.", 0, False), head("mtp.0.")
    for x in ("e_proj", "h_proj"):
        add(f"mtp.0.{x}.weight", (D, D), "fp8")
    norm("mtp.0.enorm.weight", D), norm("mtp.0.hnorm.weight", D)
    return out


def hash_table(c: dict, freq: torch.Tensor) -> torch.Tensor:
    """tid2eid [V, k]: tokens, most frequent first, each to the k experts with the least load so far (ties at random)"""
    V, E, k = c["vocab_size"], c["n_routed_experts"], c["num_experts_per_tok"]
    g = torch.Generator().manual_seed(HASH_SEED)
    load, table = torch.zeros(E, dtype=torch.float64), torch.zeros(V, k, dtype=torch.int64)
    freq = freq.double() / freq.sum().clamp_min(1) + 1e-6
    for t in freq.argsort(descending=True, stable=True).tolist():
        e = (load + 1e-9 * torch.rand(E, generator=g, dtype=torch.float64)).topk(k, largest=False).indices
        table[t] = e
        load[e] += freq[t]
    return table


def init(c: dict, seed: int, freq: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    P = {}
    for name, (shape, _, mean, std) in spec(c).items():
        P[name] = torch.randn(shape, generator=g) * std + mean
        if name.endswith("_base") and shape == (24,):       # streams start nearly apart: M close to the identity
            P[name][:4] = torch.tensor([-1.1, -1.1, -1.1, -1.1])
            P[name][8:] = 3.0 * torch.eye(4).flatten()
        if name.endswith("hc_head_base"):
            P[name][:] = -1.1
    for l in range(c["num_hash_layers"]):
        P[f"layers.{l}.ffn.gate.tid2eid"] = hash_table(c, torch.ones(c["vocab_size"]) if freq is None else freq)
    return P


def inv_freq(c: dict, compressed: bool) -> torch.Tensor:
    d = c["qk_rope_head_dim"]
    base = float(c["compress_rope_theta"] if compressed else c["rope_theta"])
    f = 1.0 / base ** (torch.arange(0, d, 2, dtype=torch.float64) / d)
    if not compressed:
        return f.float()
    rs = c["rope_scaling"]

    def where(rot):
        return d * math.log(rs["original_max_position_embeddings"] / (rot * 2 * math.pi)) / (2 * math.log(base))
    lo, hi = max(math.floor(where(rs["beta_fast"])), 0), min(math.ceil(where(rs["beta_slow"])), d - 1)
    ramp = ((torch.arange(d // 2, dtype=torch.float64) - lo) / ((hi - lo) or 0.001)).clamp(0, 1)
    return (f * (1 - ramp) + f / rs["factor"] * ramp).float()


class Ref:
    """every operation of the pass, as plain differentiable torch code"""
    dtype = torch.float32

    def __init__(self, c):
        self.c = c

    def hc_pre(self, S, fn, base, scale, w):
        c, eps = self.c, self.c["hc_eps"]
        flat = S.flatten(1)
        m = (flat @ fn.T) * torch.rsqrt(flat.square().mean(-1, keepdim=True) + c["rms_norm_eps"])
        pre = torch.sigmoid(m[:, :4] * scale[0] + base[:4]) + eps
        post = 2 * torch.sigmoid(m[:, 4:8] * scale[1] + base[4:8])
        M = (m[:, 8:] * scale[2] + base[8:]).view(-1, 4, 4).softmax(-1) + eps
        M = M / (M.sum(1, keepdim=True) + eps)
        for _ in range(c["hc_sinkhorn_iters"] - 1):
            M = M / (M.sum(2, keepdim=True) + eps)
            M = M / (M.sum(1, keepdim=True) + eps)
        return self.rms((pre[..., None] * S).sum(1), w).to(self.dtype), post, M, S

    def hc_post(self, y, S, post, M):
        return post[..., None] * y.to(S.dtype)[:, None] + torch.einsum("tsd,tse->tde", M, S)

    def rms(self, x, w=None):
        y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.c["rms_norm_eps"])
        return y if w is None else y * w

    def norm_rope(self, x, w, tab, T, norm=True, sign=1.0):
        """x [..., T, (H), d]: RMS norm (weight may be None), then rotation of the last channels by the tables"""
        y = x.float()
        if norm:
            y = self.rms(y, w)
        if tab is not None:
            co, si = tab[0][:T], tab[1][:T] * sign
            rd = 2 * co.shape[-1]
            if y.dim() == 4:
                co, si = co.unsqueeze(1), si.unsqueeze(1)
            a, b = y[..., -rd::2], y[..., -rd + 1::2]
            y = torch.cat([y[..., :-rd], torch.stack([a * co - b * si, a * si + b * co], -1).flatten(-2)], -1)
        return y.to(self.dtype)

    def compress(self, kv, z, ape, ratio):
        """kv, z [B, T, f*d] -> [B, T // ratio, d]"""
        B, T, fd = kv.shape
        n, d = T // ratio, fd // 2 if ratio == 4 else fd
        kv = kv[:, :n * ratio].float().view(B, n, ratio, fd)
        z = z[:, :n * ratio].float().view(B, n, ratio, fd) + ape
        if ratio == 4:
            pk = torch.cat([torch.zeros_like(kv[:, :1, :, :d]), kv[:, :-1, :, :d]], 1)
            pz = torch.cat([torch.full_like(z[:, :1, :, :d], -1e30), z[:, :-1, :, :d]], 1)
            kv, z = torch.cat([pk, kv[..., d:]], 2), torch.cat([pz, z[..., d:]], 2)
        return (kv * z.softmax(2)).sum(2).to(self.dtype)

    def index_scores(self, q, k, u):
        """q [B,T,H,d], k [B,C,d], u [B,T,H] float32 -> [B,T,C] float32"""
        ih, idim = q.shape[-2:]
        dots = torch.einsum("bthd,bcd->bthc", q, k).float().relu()
        return torch.einsum("bthc,bth->btc", dots, u) * (ih * idim) ** -0.5

    def visible(self, T, C, ratio, device):
        return torch.arange(C, device=device)[None] < ((torch.arange(T, device=device) + 1) // ratio)[:, None]

    def index_select(self, s, ratio):
        B, T, C = s.shape
        vis = self.visible(T, C, ratio, s.device)
        idx = s.masked_fill(~vis, -math.inf).topk(min(self.c["index_topk"], C), -1).indices
        return torch.zeros_like(s, dtype=torch.bool).scatter(2, idx, True) & vis

    def index_loss(self, s, target, ratio):
        T, C = s.shape[1:]
        vis = self.visible(T, C, ratio, s.device)
        some = vis.sum(-1) >= 2
        lq = s.masked_fill(~vis, -1e30).log_softmax(-1)
        return -(target * lq.masked_fill(~vis, 0))[:, some].sum()

    def attention(self, q, kv, ck, sel, sink, ratio, want_target):
        """q [B,T,H,d], kv [B,T,d], ck [B,C,d] or None -> o [B,T,H,d], mass on compressed entries [B,T,C] or None"""
        B, T, H, d = q.shape
        pos = torch.arange(T, device=q.device)
        dist = pos[:, None] - pos[None]
        ok = ((dist >= 0) & (dist < self.c["sliding_window"]))[None]
        keys, dense, C = kv, None, 0
        if ck is not None:
            C = ck.shape[1]
            vis = self.visible(T, C, ratio, q.device)[None]
            keys = torch.cat([kv, ck], 1)
            dense = torch.cat([ok, vis], 2)
            use = vis if sel is None else sel & vis
            ok = torch.cat([ok.expand(use.shape[0], T, T), use], 2)
        s = torch.einsum("bthd,bnd->bhtn", q, keys).float() * d ** -0.5
        sk = sink.view(1, H, 1, 1).expand(B, H, T, 1)
        a = torch.cat([s.masked_fill(~ok[:, None], -1e30), sk], -1).softmax(-1)[..., :-1]
        target = None
        if want_target:
            with torch.no_grad():
                target = torch.cat([s.masked_fill(~dense[:, None], -1e30), sk], -1).softmax(-1)[..., T:T + C].mean(1)
        return torch.einsum("bhtn,bnd->bthd", a.to(self.dtype), keys), target

    def swiglu(self, h):
        L, I = self.c["swiglu_limit"], h.shape[-1] // 2
        return F.silu(h[..., :I].clamp(max=L)) * h[..., I:].clamp(-L, L)

    def moe(self, x, w13, w2, wt, idx, shared):
        y = shared.float()
        for e in range(w13.shape[0]):
            t, j = torch.where(idx == e)
            if len(t):
                y = y.index_add(0, t, ((self.swiglu(x[t] @ w13[e].T) * wt[t, j, None].to(x.dtype)) @ w2[e].T).float())
        return y.to(self.dtype)


class Model:
    """forward pass over a dict of weights `W` (released names, values as the release form gives them)"""

    def __init__(self, c: dict, ops: Ref, device="cpu", length=2048):
        self.c, self.ops, self.device = c, ops, device
        self.tables(length)
        self.sparse = True          # False: attention sees every compressed entry (while the indexer warms up)
        self.load = {}              # layer prefix -> tokens an expert got since reset
        self.valid = None           # [B*T] bool: tokens that are no padding, for `load`
        self.probe = None           # a dict to fill with margins

    def tables(self, length):
        self.tab = {}
        for comp in (False, True):
            ang = torch.arange(length, device=self.device).float()[:, None] * inv_freq(self.c, comp).to(self.device)
            self.tab[comp] = (ang.cos().contiguous(), ang.sin().contiguous())
        self.tab4 = {r: tuple(t[::r].contiguous() for t in self.tab[True]) for r in (4, 128)}
        self.length = length

    def attention(self, x, W, p, ratio, B, T, idx_loss):
        c, ops = self.c, self.ops
        H, hd = c["num_attention_heads"], c["head_dim"]
        tab = self.tab[ratio > 0]
        qr = ops.norm_rope(F.linear(x, W[p + "wq_a.weight"]).view(B, T, -1), W[p + "q_norm.weight"], None, T)
        q = ops.norm_rope(F.linear(qr, W[p + "wq_b.weight"]).view(B, T, H, hd), None, tab, T)
        kv = ops.norm_rope(F.linear(x, W[p + "wkv.weight"]).view(B, T, hd), W[p + "kv_norm.weight"], tab, T)
        ck = sel = scores = None
        if ratio and T >= ratio:
            ck = self.compressor(x, W, p + "compressor.", ratio, B, T)
        if ratio == 4:
            ih, idim = c["index_n_heads"], c["index_head_dim"]
            xd, qd = x.detach(), qr.detach()
            iq = ops.norm_rope(F.linear(qd, W[p + "indexer.wq_b.weight"]).view(B, T, ih, idim), None, tab, T, norm=False)
            ik = self.compressor(xd, W, p + "indexer.compressor.", 4, B, T)
            u = F.linear(xd, W[p + "indexer.weights_proj.weight"]).float().view(B, T, ih)
            scores = ops.index_scores(iq, ik, u)
            if self.sparse:
                sel = ops.index_select(scores.detach(), 4)
                self.margin(p + "index", scores, c["index_topk"], ratio)
        o, target = ops.attention(q, kv, ck, sel, W[p + "attn_sink"], ratio, scores is not None and idx_loss is not None)
        if target is not None:
            idx_loss.append(ops.index_loss(scores, target, 4))
        o = ops.norm_rope(o, None, tab, T, norm=False, sign=-1.0)
        g, r = c["o_groups"], c["o_lora_rank"]
        z = torch.bmm(o.reshape(B * T, g, -1).transpose(0, 1), W[p + "wo_a.weight"].view(g, r, -1).transpose(1, 2))
        return F.linear(z.transpose(0, 1).reshape(B * T, g * r), W[p + "wo_b.weight"])

    def compressor(self, x, W, p, ratio, B, T):
        kv, z = F.linear(x, W[p + "wkv.weight"]).view(B, T, -1), F.linear(x, W[p + "wgate.weight"]).view(B, T, -1)
        e = self.ops.compress(kv, z, W[p + "ape"], ratio)
        return self.ops.norm_rope(e, W[p + "norm.weight"], self.tab4[ratio], T // ratio)

    def margin(self, key, s, k, ratio):
        if self.probe is None:
            return
        s = s.detach()
        if ratio:
            s = s.masked_fill(~Ref.visible(None, *s.shape[1:], ratio, s.device), -math.inf)
        if s.shape[-1] > k:
            v = s.topk(k + 1, -1).values
            self.probe[key] = torch.where(v[..., k].isinf(), math.inf, v[..., k - 1] - v[..., k]).flatten()

    def moe(self, x, W, p, ids, hashed):
        c, ops, k = self.c, self.ops, self.c["num_experts_per_tok"]
        s = F.softplus(F.linear(x.float(), W[p + "gate.weight"].float())).sqrt()
        if hashed:
            idx = W[p + "gate.tid2eid"][ids]
        else:
            sb = s.detach() + W[p + "gate.bias"].detach()
            idx = sb.topk(k, -1).indices
            self.margin(p + "router", sb, k, 0)
        with torch.no_grad():
            n = torch.bincount((idx if self.valid is None else idx[self.valid]).flatten(), minlength=c["n_routed_experts"])
            self.load[p] = self.load[p] + n if p in self.load else n
        wt = s.gather(1, idx)
        wt = wt / wt.sum(-1, keepdim=True) * c["routed_scaling_factor"]
        sh = F.linear(ops.swiglu(F.linear(x, W[p + "shared_experts.w13"])), W[p + "shared_experts.w2"])
        return ops.moe(x, W[p + "experts.w13"], W[p + "experts.w2"], wt, idx, sh)

    def block(self, S, W, p, ratio, ids, hashed, B, T, idx_loss=None):
        ops = self.ops
        hc = lambda q, n: (W[p + q + "_fn"], W[p + q + "_base"], W[p + q + "_scale"], W[p + n])
        x, post, M, S = ops.hc_pre(S, *hc("hc_attn", "attn_norm.weight"))
        S = ops.hc_post(self.attention(x, W, p + "attn.", ratio, B, T, idx_loss), S, post, M)
        x, post, M, S = ops.hc_pre(S, *hc("hc_ffn", "ffn_norm.weight"))
        return ops.hc_post(self.moe(x, W, p + "ffn.", ids, hashed), S, post, M)

    def streams(self, W, ids, idx_loss=None):
        """ids [B, T] (T a multiple of 16 for the kernels) -> residual streams [B*T, 4, D]"""
        c = self.c
        B, T = ids.shape
        if T > self.length:
            self.tables(T)
        flat = ids.reshape(-1)
        S = F.embedding(flat, W["embed.weight"]).float()[:, None].expand(-1, 4, -1).contiguous()
        for l in range(c["num_hidden_layers"]):
            S = self.block(S, W, f"layers.{l}.", c["compress_ratios"][l], flat, l < c["num_hash_layers"], B, T, idx_loss)
        return S

    def head(self, S, W, p=""):
        """streams [n, 4, D] -> logits [n, V] float32"""
        c = self.c
        flat = S.flatten(1)
        m = (flat @ W[p + "hc_head_fn"].T) * torch.rsqrt(flat.square().mean(-1, keepdim=True) + c["rms_norm_eps"])
        pre = torch.sigmoid(m * W[p + "hc_head_scale"] + W[p + "hc_head_base"]) + c["hc_eps"]
        x = Ref.rms(self.ops, (pre[..., None] * S).sum(1), W[p + "norm.weight"])
        return F.linear(x.to(self.ops.dtype), W["head.weight"]).float()

    def mtp(self, S, W, nxt):
        """streams [B*T, 4, D] at positions t and tokens t+1 [B, T] -> streams whose head gives tokens t+2"""
        B, T = nxt.shape
        dt = self.ops.dtype
        e = F.linear(Ref.rms(self.ops, F.embedding(nxt.reshape(-1), W["embed.weight"]).float(), W["mtp.0.enorm.weight"]).to(dt), W["mtp.0.e_proj.weight"])
        h = F.linear(Ref.rms(self.ops, S, W["mtp.0.hnorm.weight"]).to(dt), W["mtp.0.h_proj.weight"])
        X = (e.float()[:, None] + h.float()).contiguous()
        return self.block(X, W, "mtp.0.", 0, nxt.reshape(-1), False, B, T)
