"""The number formats of a release: FP8 in 128x128 blocks, FP4 in groups of 32, both with power-of-two scales (E8M0).

`pack_*` give the bytes on disk, `values` the numbers an engine computes with. `release` is what training uses in its
last phase: the forward pass sees the released values, the gradient goes straight through to the float32 master.
"""
import torch
import torch.nn.functional as F

FP4 = torch.tensor([0, .5, 1, 1.5, 2, 3, 4, 6])


def pow2_scale(amax, top):
    """smallest power of two s with amax / s <= top: (s, biased exponent byte)"""
    e = torch.ceil(torch.log2(amax.clamp_min(1e-30) / top))
    e = torch.where(amax > top * torch.exp2(e), e + 1, e)
    e = torch.where(amax <= top * torch.exp2(e - 1), e - 1, e)
    e = torch.where(amax >= 1e-30, e, torch.zeros_like(e)).clamp(-120, 120)
    return torch.exp2(e), (e + 127).to(torch.uint8)


def pack_fp8(w, block=128):
    """[out, in] float32 -> (float8_e4m3fn codes, E8M0 bytes [ceil(out/128), ceil(in/128)], values)"""
    o, i = w.shape
    bo, bi = -(-o // block), -(-i // block)
    p = F.pad(w, (0, bi * block - i, 0, bo * block - o)).view(bo, block, bi, block)
    s, byte = pow2_scale(p.abs().amax(dim=(1, 3)), 448.0)
    sf = s.repeat_interleave(block, 0)[:o].repeat_interleave(block, 1)[:, :i]
    q = (w / sf).to(torch.float8_e4m3fn)
    return q.contiguous(), byte.view(torch.float8_e8m0fnu), q.float() * sf


def pack_fp4(w, group=32):
    """[out, in] float32 -> (packed codes int8 [out, in/2], E8M0 bytes [out, in/32], values);
    byte j of a row holds value 2j in its low nibble and value 2j+1 in its high nibble"""
    o, i = w.shape
    s, byte = pow2_scale(w.view(o, i // group, group).abs().amax(-1), 6.0)
    sf = s.repeat_interleave(group, 1)
    x = w / sf
    mag = FP4.to(w.device)
    code = torch.bucketize(x.abs(), (mag[1:] + mag[:-1]) / 2)          # halfway goes to the smaller magnitude
    val = torch.where(x < 0, -mag[code], mag[code]) * sf
    c = torch.where((x < 0) & (code > 0), code + 8, code).to(torch.uint8).view(o, i // 2, 2)
    return (c[..., 0] | (c[..., 1] << 4)).view(torch.int8).contiguous(), byte.view(torch.float8_e8m0fnu), val


def values(w, form):
    """float32 values of one tensor in its stored form"""
    if form == "fp8":
        return pack_fp8(w)[2]
    if form == "fp4":
        return pack_fp4(w.reshape(-1, w.shape[-1]))[2].view_as(w)
    return w.to(torch.bfloat16).float() if form == "bf16" else w


def release(P, forms, quantised, dtype, kernels=False):
    """weights of a forward pass from the master `P`: leaves in the type the pass computes with.
    Matrices in `dtype`; norms, routers' float32 use and everything stored as F32 stay float32."""
    W = {}
    for name, t in P.items():
        if name not in forms:
            W[name] = t
            continue
        form = forms[name][1]
        t = t.detach()
        if form in ("fp8", "fp4"):
            if quantised and kernels:
                from fast import call
                v = torch.empty(t.shape, dtype=torch.bfloat16)
                call("fake_" + form, t.contiguous(), t.numel() // t.shape[-1], t.shape[-1], v)
            else:
                v = (values(t, form) if quantised else t).to(dtype)
        elif form == "bf16":
            v = t.to(torch.bfloat16).float() if quantised else t.clone()
            if t.dim() > 1 and not name.endswith("gate.weight") or name.endswith("wgate.weight"):
                v = v.to(dtype)
        else:
            v = t.clone()
        W[name] = v.requires_grad_(not name.endswith("gate.bias"))
    return W
