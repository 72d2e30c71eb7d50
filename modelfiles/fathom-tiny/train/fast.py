"""CPU kernels behind the operations of model.Ref: BF16 activations, float32 streams, own forward and backward passes."""
import ctypes
import hashlib
import os
import subprocess
import sys
import tempfile

import torch
from torch.autograd import Function

from model import Ref

HERE = os.path.dirname(os.path.abspath(__file__))
BLOCK = 16          # queries a tile of the sliding window holds
_lib = None


def library():
    """kernels.cpp compiled for this machine, once for each version of the file"""
    global _lib
    if _lib is None:
        src = os.path.join(HERE, "kernels.cpp")
        tag = hashlib.sha256(open(src, "rb").read()).hexdigest()[:16]
        out = os.path.join(tempfile.gettempdir(), f"fathom-tiny-kernels-{os.getuid()}-{tag}.so")
        if not os.path.exists(out):
            tmp = f"{out}.{os.getpid()}"
            subprocess.run([os.environ.get("CXX", "g++"), "-O3", "-march=native", "-ffast-math", "-fopenmp", "-fPIC", "-c", src, "-o", tmp + ".o"], check=True)
            subprocess.run([os.environ.get("CXX", "g++"), "-shared", "-fopenmp", tmp + ".o", "-o", tmp], check=True)   # torch's OpenMP is loaded already
            os.remove(tmp + ".o")
            os.replace(tmp, out)
        _lib = ctypes.CDLL(out)
        _lib.index_loss.restype = ctypes.c_double
    return _lib


def call(name, *args):
    conv = []
    for a in args:
        if isinstance(a, torch.Tensor):
            assert a.is_contiguous(), (name, a.shape, a.stride())
            conv.append(ctypes.c_void_p(a.data_ptr()))
        elif a is None:
            conv.append(ctypes.c_void_p(0))
        elif isinstance(a, float):
            conv.append(ctypes.c_float(a))
        else:
            conv.append(ctypes.c_long(int(a)))
    return getattr(library(), name)(*conv)


BF = torch.bfloat16


def products_in_f32():
    """Replaces torch's BF16 products by F32 ones, rounded at the end: without BF16 instructions its own are ten times slower than that.
    Returns what must be kept for as long as they are to be used."""
    library = torch.library.Library("aten", "IMPL")
    # with beta 0 the first operand is not read: `addmm` is `mm` under a name that is not replaced
    for name, plain in (("mm", torch.addmm), ("bmm", torch.baddbmm)):
        def product(a, b, plain=plain):
            start = a.new_empty((*a.shape[:-1], b.shape[-1]), dtype=torch.float32)
            return plain(start, a.float(), b.float(), beta=0).to(a.dtype)

        def into(a, b, *, out, product=product):
            return out.copy_(product(a, b))

        library.impl(name, product, "CPU")
        library.impl(name + ".out", into, "CPU")
    return library


if not torch.cpu._is_avx512_bf16_supported():
    PRODUCTS = products_in_f32()


class HcPre(Function):
    @staticmethod
    def forward(ctx, S, fn, base, scale, w, iters, heps, eps):
        N, _, D = S.shape
        m = S.view(N, 4 * D) @ fn.T
        xn, post, comb, pre = S.new_empty(N, D, dtype=BF), S.new_empty(N, 4), S.new_empty(N, 16), S.new_empty(N, 4)
        r, rx = S.new_empty(N), S.new_empty(N)
        call("hc_pre_fwd", S, m, base, scale, w, N, D, iters, heps, eps, xn, post, comb, pre, r, rx)
        ctx.save_for_backward(S, fn, base, scale, w, m, post, pre, r, rx)
        ctx.k = iters, heps, eps
        return xn, post, comb, S.view_as(S)

    @staticmethod
    def backward(ctx, dxn, dpost, dcomb, dS):
        S, fn, base, scale, w, m, post, pre, r, rx = ctx.saved_tensors
        N, _, D = S.shape
        dS = dS.contiguous()
        dm, dbase, dscale, dw = torch.empty_like(m), torch.zeros_like(base), torch.zeros_like(scale), torch.zeros_like(w)
        call("hc_pre_bwd", S, m, base, scale, w, N, D, *ctx.k, post, pre, r, rx, dxn.contiguous(), dpost.contiguous(), dcomb.contiguous(), dS, dm,
             dbase, dscale, dw)
        dS.view(N, 4 * D).addmm_(dm, fn)
        return dS, dm.T @ S.view(N, 4 * D), dbase, dscale, dw, None, None, None


class HcPost(Function):
    @staticmethod
    def forward(ctx, y, S, post, comb):
        N, _, D = S.shape
        o = torch.empty_like(S)
        call("hc_post_fwd", y, S, post, comb, N, D, o)
        ctx.save_for_backward(y, S, post, comb)
        return o

    @staticmethod
    def backward(ctx, g):
        y, S, post, comb = ctx.saved_tensors
        N, _, D = S.shape
        dy, dS, dp, dc = torch.empty_like(y), torch.empty_like(S), torch.empty_like(post), torch.empty_like(comb)
        call("hc_post_bwd", y, S, post, comb, g.contiguous(), N, D, dy, dS, dp, dc)
        return dy, dS, dp, dc


class NormRope(Function):
    @staticmethod
    def forward(ctx, x, w, co, si, T, norm, sign, eps):
        x = x.contiguous()
        d, H = x.shape[-1], x.shape[-2] if x.dim() == 4 else 1
        R, rd = x.numel() // d, 0 if co is None else 2 * co.shape[-1]
        y, r = torch.empty_like(x), torch.empty(R)
        ctx.k = R, d, H, T, rd, int(norm), float(sign)
        call("norm_rope_fwd", x, w, co, si, *ctx.k, eps, y, r)
        ctx.save_for_backward(x if norm else None, w, co, si, r)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, w, co, si, r = ctx.saved_tensors
        dy = dy.contiguous()
        dx, dw = torch.empty_like(dy), None if w is None else torch.zeros_like(w)
        call("norm_rope_bwd", dy if x is None else x, w, co, si, *ctx.k, dy, r, dx, dw)
        return dx, dw, None, None, None, None, None, None


class Compress(Function):
    @staticmethod
    def forward(ctx, kv, z, ape, ratio):
        B, T, fd = kv.shape
        over = ratio == 4
        d = fd // 2 if over else fd
        e = kv.new_empty(B, T // ratio, d)
        call("compress_fwd", kv, z, ape, B, T, ratio, d, over, e)
        ctx.save_for_backward(kv, z, ape, e)
        ctx.k = B, T, ratio, d, over
        return e

    @staticmethod
    def backward(ctx, de):
        kv, z, ape, e = ctx.saved_tensors
        dkv, dz, da = torch.zeros_like(kv), torch.zeros_like(z), torch.zeros_like(ape)
        call("compress_bwd", kv, z, ape, e, de.contiguous(), *ctx.k, dkv, dz, da)
        return dkv, dz, da, None


class IndexScores(Function):
    @staticmethod
    def forward(ctx, q, k, u):
        B, T, H, d = q.shape
        C = k.shape[1]
        dots = torch.bmm(q.view(B, T * H, d), k.transpose(1, 2))
        s = torch.empty(B, T, C)
        ctx.f = (H * d) ** -0.5
        call("index_fwd", dots, u, B * T, H, C, ctx.f, s)
        ctx.save_for_backward(q, k, u, dots)
        return s

    @staticmethod
    def backward(ctx, ds):
        q, k, u, dots = ctx.saved_tensors
        B, T, H, d = q.shape
        du = torch.empty_like(u)
        call("index_bwd", dots, u, ds.contiguous(), B * T, H, k.shape[1], ctx.f, du)
        return torch.bmm(dots, k).view(B, T, H, d), torch.bmm(dots.transpose(1, 2), q.view(B, T * H, d)), du


class IndexLoss(Function):
    @staticmethod
    def forward(ctx, s, target, ratio):
        ds = torch.empty_like(s)
        total = call("index_loss", s, target, *s.shape, ratio, ds)
        ctx.save_for_backward(ds)
        return torch.tensor(total)

    @staticmethod
    def backward(ctx, g):
        return ctx.saved_tensors[0] * g, None, None


class Attention(Function):
    @staticmethod
    def forward(ctx, q, kv, ck, sel, sink, ratio, window, want):
        B, T, H, d = q.shape
        nb, win = T // BLOCK, BLOCK + window
        keys = torch.cat([kv.new_zeros(B, window, d), kv], 1).unfold(1, win, BLOCK).transpose(2, 3).reshape(B * nb, win, d)
        q1 = q.view(B * nb, BLOCK * H, d)
        p1 = torch.bmm(q1, keys.transpose(1, 2))
        C = 0 if ck is None else ck.shape[1]
        p2 = torch.bmm(q.view(B, T * H, d), ck.transpose(1, 2)) if C else None
        target = torch.empty(B, T, C) if want and C else None
        scale = d ** -0.5
        call("attn_softmax_fwd", p1, p2, sel, sink, B, T, H, BLOCK, window, C, max(ratio, 1), scale, target)
        o = torch.bmm(p1, keys).view(B, T * H, d)
        if C:
            o += torch.bmm(p2, ck)
        ctx.save_for_backward(q, keys, ck, p1, p2)
        ctx.k = B, T, H, BLOCK, window, C, scale
        ctx.mark_non_differentiable(*([target] if target is not None else []))
        return o.view(B, T, H, d), target

    @staticmethod
    def backward(ctx, do, _):
        q, keys, ck, p1, p2 = ctx.saved_tensors
        B, T, H, blk, window, C, scale = ctx.k
        d, nb, win = q.shape[-1], T // blk, blk + window
        do = do.contiguous()
        q1, do1 = q.view(B * nb, blk * H, d), do.view(B * nb, blk * H, d)
        d1 = torch.bmm(do1, keys.transpose(1, 2))
        dk = torch.bmm(p1.transpose(1, 2), do1)
        dck = d2 = None
        if C:
            do2 = do.view(B, T * H, d)
            d2 = torch.bmm(do2, ck.transpose(1, 2))
            dck = torch.bmm(p2.transpose(1, 2), do2)
        dsink = torch.zeros(H)
        call("attn_softmax_bwd", p1, p2, d1, d2, B, T, H, blk, window, C, scale, dsink)
        dq = torch.bmm(d1, keys).view(B, T * H, d)
        dk += torch.bmm(d1.transpose(1, 2), q1)
        if C:
            dq += torch.bmm(d2, ck)
            dck += torch.bmm(d2.transpose(1, 2), q.view(B, T * H, d))
        dkv = torch.zeros(B, T + window, d, dtype=torch.float32)
        dk = dk.view(B, nb, win, d)
        for j in range(0, win, blk):
            dkv[:, j:j + T] += dk[:, :, j:j + blk].reshape(B, T, d)
        return dq.view(B, T, H, d), dkv[:, window:].to(BF), dck, None, dsink, None, None, None


class SwiGlu(Function):
    @staticmethod
    def forward(ctx, h, lim):
        a = h.new_empty(h.shape[0], h.shape[1] // 2)
        call("swiglu_fwd", h, None, *a.shape, lim, a)
        ctx.save_for_backward(h)
        ctx.lim = lim
        return a

    @staticmethod
    def backward(ctx, da):
        h, = ctx.saved_tensors
        dh = torch.empty_like(h)
        call("swiglu_bwd", h, None, da.contiguous(), *da.shape, ctx.lim, dh, None)
        return dh, None


class Moe(Function):
    @staticmethod
    def forward(ctx, x, w13, w2, wt, idx, shared, lim):
        N, k = idx.shape
        E, I2, D = w13.shape
        M = N * k
        tok, ws, inv = torch.zeros(M + 16 * E, dtype=torch.int64), torch.zeros(M + 16 * E), torch.empty(M, dtype=torch.int32)
        start = torch.empty(E + 1, dtype=torch.int64)
        call("moe_sort", idx.contiguous(), wt.contiguous(), M, E, k, tok, ws, inv, start)
        cut = start.tolist()
        M = cut[-1]
        tok, ws = tok[:M], ws[:M]
        xs = x[tok]
        h, a, ys = xs.new_empty(M, I2), xs.new_empty(M, I2 // 2), xs.new_empty(M, D)
        for e in range(E):
            if cut[e + 1] > cut[e]:
                torch.mm(xs[cut[e]:cut[e + 1]], w13[e].T, out=h[cut[e]:cut[e + 1]])
        call("swiglu_fwd", h, ws, M, I2 // 2, lim, a)
        for e in range(E):
            if cut[e + 1] > cut[e]:
                torch.mm(a[cut[e]:cut[e + 1]], w2[e].T, out=ys[cut[e]:cut[e + 1]])
        out = torch.empty_like(x)
        call("combine", ys, inv, shared.contiguous(), N, k, D, out)
        ctx.save_for_backward(w13, w2, tok, inv, ws, xs, h, a)
        ctx.k = cut, lim, N, k
        return out

    @staticmethod
    def backward(ctx, dout):
        w13, w2, tok, inv, ws, xs, h, a = ctx.saved_tensors
        cut, lim, N, k = ctx.k
        E, I2, D = w13.shape
        M = len(tok)
        dout = dout.contiguous()
        dys = dout[tok]
        da, dxs = torch.empty_like(a), torch.empty_like(xs)
        dw13, dw2, dh = torch.zeros_like(w13), torch.zeros_like(w2), torch.empty_like(h)
        span = [(e, slice(cut[e], cut[e + 1])) for e in range(E) if cut[e + 1] > cut[e]]
        for e, s in span:
            torch.mm(dys[s], w2[e], out=da[s])
            torch.mm(dys[s].T, a[s], out=dw2[e])
        dws = torch.empty(M)
        call("swiglu_bwd", h, ws, da, M, I2 // 2, lim, dh, dws)
        for e, s in span:
            torch.mm(dh[s], w13[e], out=dxs[s])
            torch.mm(dh[s].T, xs[s], out=dw13[e])
        dx = torch.empty_like(dout)
        call("combine", dxs, inv, None, N, k, D, dx)
        return dx, dw13, dw2, dws[inv].view(N, k), None, dout, None


class Fast(Ref):
    dtype = BF

    def hc_pre(self, S, fn, base, scale, w):
        c = self.c
        return HcPre.apply(S, fn, base, scale, w, c["hc_sinkhorn_iters"], c["hc_eps"], c["rms_norm_eps"])

    def hc_post(self, y, S, post, M):
        return HcPost.apply(y.contiguous(), S, post, M)

    def norm_rope(self, x, w, tab, T, norm=True, sign=1.0):
        co, si = tab if tab is not None else (None, None)
        return NormRope.apply(x, w, co, si, T, norm, sign, self.c["rms_norm_eps"])

    def compress(self, kv, z, ape, ratio):
        return Compress.apply(kv, z, ape, ratio)

    def index_scores(self, q, k, u):
        return IndexScores.apply(q, k, u)

    def index_select(self, s, ratio):
        sel = torch.empty(s.shape, dtype=torch.uint8)
        call("index_select", s, *s.shape, ratio, self.c["index_topk"], sel)
        return sel

    def index_loss(self, s, target, ratio):
        return IndexLoss.apply(s, target, ratio)

    def attention(self, q, kv, ck, sel, sink, ratio, want_target):
        return Attention.apply(q, kv, ck, sel, sink, ratio, self.c["sliding_window"], want_target)

    def swiglu(self, h):
        return SwiGlu.apply(h, self.c["swiglu_limit"])

    def moe(self, x, w13, w2, wt, idx, shared):
        return Moe.apply(x, w13, w2, wt, idx, shared, self.c["swiglu_limit"])
