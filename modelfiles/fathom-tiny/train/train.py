"""Trains fathom-tiny. One command starts and resumes:

    python train.py --state STATE_DIR --minutes 60

STATE_DIR/state.pt holds master weights, their moving average, the optimiser and the counters; it is replaced every three minutes and on SIGTERM.
STATE_DIR/log.jsonl gets a line every few steps. See README.md for the phases that the released model went through."""
import argparse
import json
import math
import os
import signal
import sys
import time

# before torch: workers that sleep while they wait (the machine may be shared), and room for all prepared products
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")

import torch
import torch.nn.functional as F

import data
import model
import quantize
import tokenizer

SKILL_NAMES = list(data.WEIGHTS)
MTP_EVERY = 6


def settings():
    ap = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter, description="Train fathom-tiny.")
    A = ap.add_argument
    A("--state", required=True, help="folder of the state and the log; resumes when there is a state")
    A("--minutes", type=float, default=60, help="wall-clock length of this run")
    A("--decay", type=float, default=0, help="minutes at the end in which the learning rates fall linearly to 4 %%")
    A("--warmup", type=int, default=40, help="steps of rising learning rate after the start, and after a resume a quarter of it")
    A("--muon", type=float, default=0.02, help="learning rate of matrices")
    A("--adam", type=float, default=0.003, help="learning rate of everything else")
    A("--step-tokens", type=int, default=4096)
    A("--micro-tokens", type=int, default=1024, help="tokens in memory at once")
    A("--mix", default="", help='instead of data.py\'s curriculum, JSON: [[longest sample, {skill: share of all tokens, ...}], ...]')
    A("--sparse-from", type=int, default=300, help="step from which the indexer's choice is used")
    A("--quantise-from", type=int, default=1_000_000, help="step from which the forward pass sees the released number formats")
    A("--ema", type=float, default=0.99)
    A("--init-from", default="", help="start from a released checkpoint instead of random weights")
    A("--seed", type=int, default=1)
    A("--threads", type=int, default=os.cpu_count() or 1)
    A("--device", default="cpu")
    return ap.parse_args()


def orthogonal(G, steps=5):
    """the nearest (semi-)orthogonal matrix of each matrix of a batch, roughly, by Newton-Schulz iterations"""
    X = G.to(torch.bfloat16)
    flip = X.shape[-2] > X.shape[-1]
    X = X.transpose(-1, -2) if flip else X
    X = X / (X.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).to(X.dtype)
    for a, b, c in [(3.4445, -4.7750, 2.0315)] * steps:
        S = X @ X.transpose(-1, -2)
        X = a * X + (b * S + c * S @ S) @ X
    return (X.transpose(-1, -2) if flip else X).float()


class Optimiser:
    """Muon for the matrices inside blocks (each expert's, and w1 and w3 apart), Adam for the rest"""

    def __init__(self, P, forms):
        self.muon, self.adam = [], []
        for name, (shape, form, _, _) in forms.items():
            if name.endswith("gate.bias"):
                continue
            inner = form in ("fp8", "fp4") or name.endswith(("compressor.wkv.weight", "compressor.wgate.weight"))
            (self.muon if inner else self.adam).append(name)
        self.state = {n: [torch.zeros_like(P[n])] for n in self.muon} | {n: [torch.zeros_like(P[n]), torch.zeros_like(P[n])] for n in self.adam}
        self.count = 0

    def step(self, P, grads, muon, adam):
        self.count += 1
        b1, b2 = 0.9, 0.98
        norm = torch.stack([grads[n].norm() for n in self.adam if n in grads]).norm()
        clip = min(1.0, 1.0 / (norm.item() + 1e-6))
        for n in self.adam:
            if n not in grads:
                continue
            m, v = self.state[n]
            g = grads[n] * clip
            m.lerp_(g, 1 - b1), v.lerp_(g.square(), 1 - b2)
            scale = 0.3 if "hc_" in n else 1.0
            P[n].addcdiv_(m, (v / (1 - b2**self.count)).sqrt().add_(1e-8), value=-adam * scale / (1 - b1**self.count))
        for n in self.muon:
            if n not in grads:
                continue
            m, = self.state[n]
            g = grads[n]
            m.lerp_(g, 0.05)
            u = g.lerp(m, 0.95)
            if n.endswith("w13"):
                u = u.view(*u.shape[:-2], 2, u.shape[-2] // 2, u.shape[-1])
            elif n.endswith("wo_a.weight"):
                u = u.view(2, -1, u.shape[-1])
            r, c = u.shape[-2:]
            P[n].add_(orthogonal(u).view_as(P[n]), alpha=-muon * max(1, r / c) ** 0.5)
            P[n].mul_(1 - muon * 0.1)
        return norm.item()


def mixed(mix, seed, vocabulary):
    """samples of several streams with lengths and weights of their own, by their shares of the tokens"""
    streams = [data.samples("train", seed + i, vocabulary, weights, longest) for i, (longest, weights) in enumerate(mix)]
    shares, made = [sum(weights.values()) for _, weights in mix], [0] * len(mix)
    while True:
        i = min(range(len(mix)), key=lambda i: made[i] / shares[i])
        s = next(streams[i])
        made[i] += len(s.tokens)
        yield s


def batches(stream, step_tokens, micro_tokens, pad):
    """Lists of rectangles (ids, loss, skill), each [B, T], together at least `step_tokens` tokens, and their number of tokens.

    Samples wait in a queue for each width until they fill a rectangle: all rectangles of a width have one shape, for which
    the libraries have prepared their products already."""
    widths = [32, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 448, 512, 640, 768, 1024, 1536, 2048, 3072, 4096]
    queues = {w: [] for w in widths}
    out, n = [], 0
    while True:
        s = next(stream)
        T = next(w for w in widths if w >= len(s.tokens))
        rows = queues[T]
        rows.append(s)
        if len(rows) < max(1, micro_tokens // T):
            continue
        ids, loss = torch.full((len(rows), T), pad), torch.zeros(len(rows), T)
        for i, r in enumerate(rows):
            ids[i, :len(r.tokens)] = torch.tensor(r.tokens)
            loss[i, :len(r.loss)] = torch.tensor(r.loss, dtype=torch.float32)
        out.append((ids, loss, torch.tensor([SKILL_NAMES.index(r.skill) for r in rows])))
        n += sum(len(r.tokens) for r in rows)
        queues[T] = []
        if n >= step_tokens:
            yield out, n
            out, n = [], 0


def loss_of(m, W, ids, mask, skill, with_mtp, stats):
    """sum over the targets of a rectangle: (language loss, its MTP loss or None, indexer loss per query)"""
    B, T = ids.shape
    idx = []
    m.valid = (ids != data_pad).flatten()
    S = m.streams(W, ids, idx)
    keep = F.pad(mask[:, 1:], (0, 1)).flatten().nonzero()[:, 0]
    nxt = torch.cat([ids[:, 1:], ids[:, :1]], 1)
    ce = F.cross_entropy(m.head(S[keep], W), nxt.flatten()[keep], reduction="none")
    with torch.no_grad():
        who = skill[keep // T]
        stats["loss"].index_add_(0, who, ce.detach().cpu()), stats["n"].index_add_(0, who, torch.ones(len(who)))
    mtp = None
    if with_mtp:
        X = m.mtp(S, W, nxt)
        k2 = F.pad(mask[:, 2:], (0, 2)).flatten().nonzero()[:, 0]
        t2 = torch.cat([ids[:, 2:], ids[:, :2]], 1).flatten()[k2]
        lg = m.head(X[k2], W, "mtp.0.")
        mtp = F.cross_entropy(lg, t2, reduction="sum")
        stats["mtp"] += torch.tensor([mtp.item(), (lg.argmax(-1) == t2).sum().item(), len(k2)])
    return ce.sum(), mtp, sum(idx) if idx else None


data_pad = 2


def main():
    a = settings()
    torch.set_num_threads(a.threads)
    os.makedirs(a.state, exist_ok=True)
    path = os.path.join(a.state, "state.pt")
    vocabulary = tokenizer.load(data.VOCABULARY)
    c = model.config(vocabulary.vocabulary)
    forms = model.spec(c)
    st = {"step": 0, "tokens": 0, "seconds": 0.0}
    if os.path.exists(path):
        saved = torch.load(path, map_location=a.device, weights_only=True)
        P, ema, st = saved["P"], saved["ema"], saved["counters"]
        opt = Optimiser(P, forms)
        opt.state, opt.count = saved["opt"], saved["opt_count"]
    else:
        if a.init_from:
            import export
            P = export.read(a.init_from, c)
        else:
            freq = torch.zeros(c["vocab_size"])
            for s, _ in zip(data.samples("train", a.seed + 1000, vocabulary, None, 512), range(4000)):
                freq += torch.bincount(torch.tensor(s.tokens), minlength=c["vocab_size"])
            P = model.init(c, a.seed, freq)
        P = {k: v.to(a.device) for k, v in P.items()}
        ema, opt = {k: v.clone() for k, v in P.items()}, Optimiser(P, forms)
    kernels = a.device == "cpu"
    if kernels:
        import fast
        ops = fast.Fast(c)
        torch.set_flush_denormal(True)
    else:
        ops = model.Ref(c)
        ops.dtype = torch.bfloat16
    m = model.Model(c, ops, a.device)
    seed = a.seed * 1_000_000_000 + st["step"]
    stream = mixed(json.loads(a.mix), seed, vocabulary) if a.mix else data.curriculum(seed, vocabulary, st["tokens"])
    stop = []
    for sig in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sig, lambda *_: stop.append(1))

    def save():
        torch.save({"P": P, "ema": ema, "opt": opt.state, "opt_count": opt.count, "counters": st, "config": c}, path + ".part")
        os.replace(path + ".part", path)

    log = open(os.path.join(a.state, "log.jsonl"), "a")
    log.write(json.dumps({"schema": 1, "start": vars(a), "step": st["step"]}) + "\n")
    begin = last_save = last_log = time.time()
    first = st["step"]
    stats = lambda: {"loss": torch.zeros(len(SKILL_NAMES)), "n": torch.zeros(len(SKILL_NAMES)), "mtp": torch.zeros(3), "idx": [0.0, 0], "norm": 0.0, "tok": 0}
    acc, micro_count = stats(), 0
    for out, n in batches(stream, a.step_tokens, a.micro_tokens, data_pad):
        quantised = st["step"] >= a.quantise_from
        m.sparse = st["step"] >= a.sparse_from
        W = quantize.release(P, forms, quantised, ops.dtype, kernels)
        m.load = {}
        targets = sum(x[1][:, 1:].sum().item() for x in out)
        for ids, mask, skill in out:
            micro_count += 1
            ids, mask = ids.to(a.device), mask.to(a.device)
            ce, mtp, idx = loss_of(m, W, ids, mask, skill, micro_count % MTP_EVERY == 0, acc)
            loss = ce / targets
            if mtp is not None:
                loss = loss + 0.3 * mtp / targets
            if idx is not None:
                loss = loss + idx / n
                acc["idx"][0] += idx.item()
                acc["idx"][1] += ids.numel()
            loss.backward()
        done = (time.time() - begin) / 60
        lr = min(1.0, (st["step"] - first + 1) / (a.warmup if first == 0 else max(1, a.warmup // 4)))
        if a.decay:
            lr *= max(0.04, min(1.0, (a.minutes - done) / a.decay))
        grads = {k: v.grad.float() for k, v in W.items() if v.requires_grad and v.grad is not None}
        if all(torch.isfinite(g).all() for g in grads.values()):
            with torch.no_grad():
                acc["norm"] = opt.step(P, grads, a.muon * lr, a.adam * lr)
                for p, cnt in m.load.items():
                    if p + "gate.bias" in P:
                        b = P[p + "gate.bias"]
                        b += 0.003 * lr * torch.sign(cnt.float().mean() - cnt.float())
                        b -= b.mean()
                for k in P:
                    if P[k].is_floating_point():
                        ema[k].lerp_(P[k], 1 - min(a.ema, (st["step"] + 1) / (st["step"] + 10)))
        else:
            print("a gradient is not finite: step skipped", file=sys.stderr, flush=True)
        now = time.time()
        st["step"] += 1
        st["tokens"] += n
        acc["tok"] += n
        if st["step"] % 10 == 0 or stop:
            dt, last_log = now - last_log, now
            st["seconds"] += dt
            line = {"step": st["step"], "tokens": st["tokens"], "seconds": round(st["seconds"]), "loss": round((acc["loss"].sum() / acc["n"].sum()).item(), 4),
                    "skills": {k: round((l / k_n).item(), 4) for k, l, k_n in zip(SKILL_NAMES, acc["loss"], acc["n"]) if k_n},
                    "mtp": {"loss": round((acc["mtp"][0] / acc["mtp"][2].clamp_min(1)).item(), 4), "accuracy": round((acc["mtp"][1] / acc["mtp"][2].clamp_min(1)).item(), 4)},
                    "index_loss": round(acc["idx"][0] / max(1, acc["idx"][1]), 4), "grad_norm": round(acc["norm"], 3), "lr": round(lr, 3),
                    "quantised": quantised, "sparse": m.sparse, "tokens_per_second": round(acc["tok"] / dt),
                    "balance": {p.removesuffix(".ffn."): round((n.max() / n.float().mean().clamp_min(1)).item(), 2) for p, n in m.load.items()}}
            log.write(json.dumps(line) + "\n")
            log.flush()
            print(json.dumps(line), flush=True)
            acc = stats()
        if now - last_save > 180 or stop or done >= a.minutes:
            save()
            last_save = now
        if stop or done >= a.minutes:
            break


if __name__ == "__main__":
    main()
