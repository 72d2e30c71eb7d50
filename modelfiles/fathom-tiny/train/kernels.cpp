// CPU kernels of the training pass, called through ctypes (fast.py builds this file with g++ on first use).
// Activations are BF16, streams and statistics float32, sums float32. Each kernel has a counterpart in plain torch
// in model.py (class Ref); check.py compares the two, forward and backward.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <omp.h>
#include <vector>

typedef uint16_t bf;
static const float NEG = -1e30f;

static inline float b2f(bf x) { uint32_t u = (uint32_t)x << 16; float f; memcpy(&f, &u, 4); return f; }
static inline bf f2b(float f) { uint32_t u; memcpy(&u, &f, 4); u += 0x7fff + ((u >> 16) & 1); return (bf)(u >> 16); }
static inline void ld(const bf* p, float* o, int n) { for (int i = 0; i < n; i++) o[i] = b2f(p[i]); }
static inline void st(bf* p, const float* o, int n) { for (int i = 0; i < n; i++) p[i] = f2b(o[i]); }
static inline float dot(const float* a, const float* b, int n) { float s = 0; for (int i = 0; i < n; i++) s += a[i] * b[i]; return s; }
static inline float sigm(float x) { return 1.f / (1.f + expf(-x)); }

// ---------------------------------------------------------------- hyper-connections

static const int L = 16;                       // tokens a vector lane holds

struct Sink { float P[16][L]; float out[40][16][L]; float inv[40][4][L]; };

// z [16][L] logits -> M; keeps every state for the way back. Step 0 and every odd step divide by column sums.
static void sink_fwd(float (*z)[L], Sink& s, int iters, float eps) {
    for (int a = 0; a < 4; a++) {
        float mx[L], sum[L];
        for (int l = 0; l < L; l++) { mx[l] = std::max(std::max(z[a*4][l], z[a*4+1][l]), std::max(z[a*4+2][l], z[a*4+3][l])); sum[l] = 0; }
        for (int b = 0; b < 4; b++) for (int l = 0; l < L; l++) { s.P[a*4+b][l] = expf(z[a*4+b][l] - mx[l]); sum[l] += s.P[a*4+b][l]; }
        for (int b = 0; b < 4; b++) for (int l = 0; l < L; l++) s.P[a*4+b][l] /= sum[l];
    }
    float cur[16][L];
    for (int i = 0; i < 16; i++) for (int l = 0; l < L; l++) cur[i][l] = s.P[i][l] + eps;
    int steps = 2 * iters - 1;
    for (int k = 0; k < steps; k++) {
        bool col = k % 2 == 0;
        for (int g = 0; g < 4; g++) {
            int i0 = col ? g : g * 4, d = col ? 4 : 1;
            for (int l = 0; l < L; l++) s.inv[k][g][l] = 1.f / (cur[i0][l] + cur[i0+d][l] + cur[i0+2*d][l] + cur[i0+3*d][l] + eps);
            for (int j = 0; j < 4; j++) for (int l = 0; l < L; l++) cur[i0+j*d][l] *= s.inv[k][g][l];
        }
        memcpy(s.out[k], cur, sizeof cur);
    }
}

static void sink_bwd(float (*g)[L], Sink& s, int iters) {     // g: dM in, dz out
    for (int k = 2 * iters - 2; k >= 0; k--) {
        bool col = k % 2 == 0;
        for (int q = 0; q < 4; q++) {
            int i0 = col ? q : q * 4, d = col ? 4 : 1;
            float t[L];
            for (int l = 0; l < L; l++) {
                t[l] = 0;
                for (int j = 0; j < 4; j++) t[l] += g[i0+j*d][l] * s.out[k][i0+j*d][l];
            }
            for (int j = 0; j < 4; j++) for (int l = 0; l < L; l++) g[i0+j*d][l] = (g[i0+j*d][l] - t[l]) * s.inv[k][q][l];
        }
    }
    for (int a = 0; a < 4; a++) {
        float t[L];
        for (int l = 0; l < L; l++) { t[l] = 0; for (int b = 0; b < 4; b++) t[l] += g[a*4+b][l] * s.P[a*4+b][l]; }
        for (int b = 0; b < 4; b++) for (int l = 0; l < L; l++) g[a*4+b][l] = s.P[a*4+b][l] * (g[a*4+b][l] - t[l]);
    }
}

extern "C" void hc_pre_fwd(const float* S, const float* m, const float* base, const float* scale, const float* w, long N, long D, long iters,
                           float heps, float eps, bf* xn, float* post, float* comb, float* pre, float* r, float* rx) {
    #pragma omp parallel
    {
        Sink* s = new Sink;
        std::vector<float> x(D);
        #pragma omp for schedule(static)
        for (long n0 = 0; n0 < N; n0 += L) {
            int c = (int)std::min<long>(L, N - n0);
            float z[16][L] = {};
            for (int l = 0; l < c; l++) {
                long n = n0 + l; const float* Sn = S + n * 4 * D; const float* mn = m + n * 24;
                float rr = 1.f / sqrtf(dot(Sn, Sn, 4 * D) / (4 * D) + eps);
                r[n] = rr;
                for (int i = 0; i < 4; i++) { pre[n*4+i] = sigm(mn[i] * rr * scale[0] + base[i]) + heps; post[n*4+i] = 2 * sigm(mn[4+i] * rr * scale[1] + base[4+i]); }
                for (int i = 0; i < 16; i++) z[i][l] = mn[8+i] * rr * scale[2] + base[8+i];
                float p0 = pre[n*4], p1 = pre[n*4+1], p2 = pre[n*4+2], p3 = pre[n*4+3], q = 0;
                for (int i = 0; i < D; i++) { x[i] = p0*Sn[i] + p1*Sn[D+i] + p2*Sn[2*D+i] + p3*Sn[3*D+i]; q += x[i]*x[i]; }
                float rv = 1.f / sqrtf(q / D + eps); rx[n] = rv;
                bf* o = xn + n * D;
                for (int i = 0; i < D; i++) o[i] = f2b(x[i] * rv * w[i]);
            }
            sink_fwd(z, *s, iters, heps);
            for (int l = 0; l < c; l++) for (int i = 0; i < 16; i++) comb[(n0+l)*16+i] = s->out[2*iters-2][i][l];
        }
        delete s;
    }
}

// dS holds the gradient that came through the residual path and is added to
extern "C" void hc_pre_bwd(const float* S, const float* m, const float* base, const float* scale, const float* w, long N, long D, long iters,
                           float heps, float eps, const float* post, const float* pre, const float* r, const float* rx,
                           const bf* dxn, const float* dpost, const float* dcomb, float* dS, float* dm, float* dbase, float* dscale, float* dw) {
    #pragma omp parallel
    {
        Sink* s = new Sink;
        std::vector<float> x(D), g(D), aw(D, 0.f);
        float ab[24] = {}, as[3] = {};
        #pragma omp for schedule(static)
        for (long n0 = 0; n0 < N; n0 += L) {
            int c = (int)std::min<long>(L, N - n0);
            float z[16][L] = {}, gz[16][L] = {};
            for (int l = 0; l < c; l++) for (int i = 0; i < 16; i++) {
                z[i][l] = m[(n0+l)*24+8+i] * r[n0+l] * scale[2] + base[8+i]; gz[i][l] = dcomb[(n0+l)*16+i];
            }
            sink_fwd(z, *s, iters, heps); sink_bwd(gz, *s, iters);
            for (int l = 0; l < c; l++) {
                long n = n0 + l; const float* Sn = S + n * 4 * D; const float* mn = m + n * 24; float* dSn = dS + n * 4 * D;
                float p0 = pre[n*4], p1 = pre[n*4+1], p2 = pre[n*4+2], p3 = pre[n*4+3], rv = rx[n], rr = r[n], gx = 0;
                const bf* d = dxn + n * D;
                for (int i = 0; i < D; i++) {
                    x[i] = p0*Sn[i] + p1*Sn[D+i] + p2*Sn[2*D+i] + p3*Sn[3*D+i];
                    float di = b2f(d[i]); aw[i] += di * x[i] * rv; g[i] = di * w[i]; gx += g[i] * x[i];
                }
                float k = rv * rv * gx / D;
                for (int i = 0; i < D; i++) g[i] = rv * (g[i] - x[i] * k);
                float dz[24], dp[4];
                for (int a = 0; a < 4; a++) dp[a] = dot(g.data(), Sn + a * D, D);
                for (int i = 0; i < 4; i++) {
                    float sg = pre[n*4+i] - heps; dz[i] = dp[i] * sg * (1 - sg);
                    float s2 = post[n*4+i] * .5f; dz[4+i] = dpost[n*4+i] * 2 * s2 * (1 - s2);
                }
                for (int i = 0; i < 16; i++) dz[8+i] = gz[i][l];
                float dr = 0;
                for (int i = 0; i < 24; i++) {
                    int q = i < 4 ? 0 : i < 8 ? 1 : 2;
                    ab[i] += dz[i]; as[q] += dz[i] * mn[i] * rr;
                    float t = dz[i] * scale[q]; dr += t * mn[i]; dm[n*24+i] = t * rr;
                }
                float kk = -dr * rr * rr * rr / (4 * D);
                for (int i = 0; i < D; i++) {
                    dSn[i] += p0*g[i] + kk*Sn[i]; dSn[D+i] += p1*g[i] + kk*Sn[D+i];
                    dSn[2*D+i] += p2*g[i] + kk*Sn[2*D+i]; dSn[3*D+i] += p3*g[i] + kk*Sn[3*D+i];
                }
            }
        }
        #pragma omp critical
        { for (int i = 0; i < 24; i++) dbase[i] += ab[i]; for (int i = 0; i < 3; i++) dscale[i] += as[i]; for (int i = 0; i < D; i++) dw[i] += aw[i]; }
        delete s;
    }
}

extern "C" void hc_post_fwd(const bf* y, const float* S, const float* post, const float* comb, long N, long D, float* o) {
    #pragma omp parallel for schedule(static)
    for (long n = 0; n < N; n++) {
        const float* s = S + n*4*D; const float* M = comb + n*16; const bf* yn = y + n*D; float* on = o + n*4*D;
        for (int b = 0; b < 4; b++) {
            float p = post[n*4+b], m0 = M[b], m1 = M[4+b], m2 = M[8+b], m3 = M[12+b];
            for (int i = 0; i < D; i++) on[b*D+i] = p*b2f(yn[i]) + m0*s[i] + m1*s[D+i] + m2*s[2*D+i] + m3*s[3*D+i];
        }
    }
}

extern "C" void hc_post_bwd(const bf* y, const float* S, const float* post, const float* comb, const float* go, long N, long D,
                            bf* dy, float* dS, float* dpost, float* dcomb) {
    #pragma omp parallel for schedule(static)
    for (long n = 0; n < N; n++) {
        const float* s = S + n*4*D; const float* M = comb + n*16; const bf* yn = y + n*D; const float* g = go + n*4*D; float* d = dS + n*4*D;
        const float* p = post + n*4;
        float acc[16] = {}, pp[4] = {};
        for (int i = 0; i < D; i++) {
            float g0 = g[i], g1 = g[D+i], g2 = g[2*D+i], g3 = g[3*D+i], yi = b2f(yn[i]);
            dy[n*D+i] = f2b(p[0]*g0 + p[1]*g1 + p[2]*g2 + p[3]*g3);
            pp[0] += g0*yi; pp[1] += g1*yi; pp[2] += g2*yi; pp[3] += g3*yi;
            for (int a = 0; a < 4; a++) {
                float sa = s[a*D+i];
                d[a*D+i] = M[a*4]*g0 + M[a*4+1]*g1 + M[a*4+2]*g2 + M[a*4+3]*g3;
                acc[a*4] += sa*g0; acc[a*4+1] += sa*g1; acc[a*4+2] += sa*g2; acc[a*4+3] += sa*g3;
            }
        }
        memcpy(dcomb + n*16, acc, sizeof acc); memcpy(dpost + n*4, pp, sizeof pp);
    }
}

// ---------------------------------------------------------------- RMS norm + rope of rows of d channels

// row -> position (row / H) % T of the tables co, si [T, rd/2]; w may be null; norm 0: rotate only; sign -1: rotate back
extern "C" void norm_rope_fwd(const bf* x, const float* w, const float* co, const float* si, long R, long d, long H, long T, long rd, long norm,
                              float sign, float eps, bf* y, float* rinv) {
    #pragma omp parallel for schedule(static)
    for (long n = 0; n < R; n++) {
        float v[1024]; ld(x + n*d, v, d);
        if (norm) { float r = 1.f / sqrtf(dot(v, v, d) / d + eps); rinv[n] = r; for (int i = 0; i < d; i++) v[i] *= r; if (w) for (int i = 0; i < d; i++) v[i] *= w[i]; }
        if (rd) {
            long p = (n / H) % T; const float *c = co + p*rd/2, *s = si + p*rd/2; float* q = v + d - rd;
            for (int i = 0; i < rd / 2; i++) { float a = q[2*i], b = q[2*i+1], ss = sign*s[i]; q[2*i] = a*c[i] - b*ss; q[2*i+1] = a*ss + b*c[i]; }
        }
        st(y + n*d, v, d);
    }
}

extern "C" void norm_rope_bwd(const bf* x, const float* w, const float* co, const float* si, long R, long d, long H, long T, long rd, long norm,
                              float sign, const bf* dy, const float* rinv, bf* dx, float* dw) {
    #pragma omp parallel
    {
        std::vector<float> aw(d, 0.f), v(d), xx(d);
        #pragma omp for schedule(static)
        for (long n = 0; n < R; n++) {
            ld(dy + n*d, v.data(), d);
            if (rd) {
                long p = (n / H) % T; const float *c = co + p*rd/2, *s = si + p*rd/2; float* q = v.data() + d - rd;
                for (int i = 0; i < rd / 2; i++) { float a = q[2*i], b = q[2*i+1], ss = -sign*s[i]; q[2*i] = a*c[i] - b*ss; q[2*i+1] = a*ss + b*c[i]; }
            }
            if (norm) {
                float r = rinv[n]; ld(x + n*d, xx.data(), d);
                if (w) for (int i = 0; i < d; i++) { aw[i] += v[i]*xx[i]*r; v[i] *= w[i]; }
                float k = r*r*dot(v.data(), xx.data(), d)/d;
                for (int i = 0; i < d; i++) v[i] = r*(v[i] - xx[i]*k);
            }
            st(dx + n*d, v.data(), d);
        }
        if (w) {
            #pragma omp critical
            for (int i = 0; i < d; i++) dw[i] += aw[i];
        }
    }
}

// ---------------------------------------------------------------- attention softmax

// s1 [B*nb, blk*H, win] raw scores against the last `win` = blk + window keys (key j of block i is position (i-?)...):
// block i holds queries i*blk.., its keys are positions i*blk - window .. i*blk + blk - 1. s2 [B, T, H, C] scores against
// compressed entries. sel [B,T,C] 1 = may be used, or null = every visible one. Scores become probabilities in place.
// target [B,T,C], when given: mean over heads of the mass a query would put on each visible entry without selection.
extern "C" void attn_softmax_fwd(bf* s1, bf* s2, const uint8_t* sel, const float* sink, long B, long T, long H, long blk, long window, long C, long ratio,
                                 float scale, float* target) {
    long win = blk + window, nb = T / blk;
    #pragma omp parallel
    {
        std::vector<float> e(win), f(C + 1);
        #pragma omp for schedule(static) collapse(2)
        for (long b = 0; b < B; b++) for (long t = 0; t < T; t++) {
            long i = t / blk, tl = t % blk;
            int lo = (int)std::max<long>(tl + 1, window - i * blk), hi = (int)(tl + window);     // inclusive range of keys in the block's row
            int vis = C ? (int)std::min<long>(C, (t + 1) / ratio) : 0;
            const uint8_t* sl = sel ? sel + (b*T + t)*C : nullptr;
            float* tg = target ? target + (b*T + t)*C : nullptr;
            if (tg) for (int c = 0; c < C; c++) tg[c] = 0;
            for (long h = 0; h < H; h++) {
                bf* p1 = s1 + ((b*nb + i)*blk*H + tl*H + h)*win;
                bf* p2 = C ? s2 + ((b*T + t)*H + h)*C : nullptr;
                float mx = sink[h];
                for (int j = lo; j <= hi; j++) { e[j] = b2f(p1[j])*scale; mx = std::max(mx, e[j]); }
                for (int c = 0; c < vis; c++) { f[c] = b2f(p2[c])*scale; mx = std::max(mx, f[c]); }
                float z = expf(sink[h] - mx), zd = 0;
                for (int j = lo; j <= hi; j++) { e[j] = expf(e[j] - mx); z += e[j]; }
                for (int c = 0; c < vis; c++) { f[c] = expf(f[c] - mx); zd += f[c]; }
                if (tg) { float k = 1.f / ((z + zd)*H); for (int c = 0; c < vis; c++) tg[c] += f[c]*k; }
                if (sl) { zd = 0; for (int c = 0; c < vis; c++) { f[c] *= sl[c]; zd += f[c]; } }
                float k = 1.f / (z + zd);
                for (int j = 0; j < lo; j++) p1[j] = 0;
                for (int j = lo; j <= hi; j++) p1[j] = f2b(e[j]*k);
                for (int j = hi + 1; j < win; j++) p1[j] = 0;
                for (int c = 0; c < vis; c++) p2[c] = f2b(f[c]*k);
                for (int c = vis; c < C; c++) p2[c] = 0;
            }
        }
    }
}

// d1, d2: gradients of the probabilities, become gradients of the raw scores in place
extern "C" void attn_softmax_bwd(const bf* p1_, const bf* p2_, bf* d1_, bf* d2_, long B, long T, long H, long blk, long window, long C, float scale, float* dsink) {
    long win = blk + window, nb = T / blk;
    #pragma omp parallel
    {
        std::vector<float> as(H, 0.f);
        #pragma omp for schedule(static) collapse(2)
        for (long b = 0; b < B; b++) for (long t = 0; t < T; t++) {
            long i = t / blk, tl = t % blk;
            for (long h = 0; h < H; h++) {
                long o1 = ((b*nb + i)*blk*H + tl*H + h)*win, o2 = ((b*T + t)*H + h)*C;
                const bf *p1 = p1_ + o1, *p2 = p2_ + o2; bf *d1 = d1_ + o1, *d2 = d2_ + o2;
                float D = 0, m = 0;
                for (int j = 0; j < win; j++) { float p = b2f(p1[j]); D += p*b2f(d1[j]); m += p; }
                for (int c = 0; c < C; c++) { float p = b2f(p2[c]); D += p*b2f(d2[c]); m += p; }
                as[h] -= std::max(0.f, 1.f - m)*D;
                for (int j = 0; j < win; j++) d1[j] = f2b(b2f(p1[j])*(b2f(d1[j]) - D)*scale);
                for (int c = 0; c < C; c++) d2[c] = f2b(b2f(p2[c])*(b2f(d2[c]) - D)*scale);
            }
        }
        #pragma omp critical
        for (int h = 0; h < H; h++) dsink[h] += as[h];
    }
}

// ---------------------------------------------------------------- compressor

// kv, z [B,T,f*d] (f = 2 when overlapping), ape [R, f*d] -> e [B,n,d], n = T/R
extern "C" void compress_fwd(const bf* kv, const bf* z, const float* ape, long B, long T, long R, long d, long over, bf* e) {
    long f = over ? 2 : 1, n = T / R, fd = f*d;
    #pragma omp parallel for schedule(static) collapse(2)
    for (long b = 0; b < B; b++) for (long w = 0; w < n; w++) {
        float mx[256], sum[256], acc[256], x[256];
        for (int i = 0; i < d; i++) { mx[i] = NEG; sum[i] = 0; acc[i] = 0; }
        for (int pass = 0; pass < 2; pass++)
            for (int half = over ? 0 : 1; half < 2; half++) {
                long win = half ? w : w - 1, off = over ? half*d : 0;
                if (win < 0) continue;
                for (int j = 0; j < R; j++) {
                    const bf* zz = z + ((b*T + win*R + j)*fd + off); const bf* kk = kv + ((b*T + win*R + j)*fd + off); const float* ap = ape + j*fd + off;
                    if (!pass) for (int i = 0; i < d; i++) mx[i] = std::max(mx[i], b2f(zz[i]) + ap[i]);
                    else for (int i = 0; i < d; i++) { x[i] = expf(b2f(zz[i]) + ap[i] - mx[i]); sum[i] += x[i]; acc[i] += x[i]*b2f(kk[i]); }
                }
            }
        for (int i = 0; i < d; i++) acc[i] /= sum[i];
        st(e + (b*n + w)*d, acc, d);
    }
}

// dkv, dz zeroed by the caller
extern "C" void compress_bwd(const bf* kv, const bf* z, const float* ape, const bf* e, const bf* de, long B, long T, long R, long d, long over,
                             bf* dkv, bf* dz, float* dape) {
    long f = over ? 2 : 1, n = T / R, fd = f*d;
    #pragma omp parallel
    {
        std::vector<float> aa(R*fd, 0.f);
        #pragma omp for schedule(static) collapse(2)
        for (long b = 0; b < B; b++) for (long w = 0; w < n; w++) {
            float mx[256], sum[256], ev[256], g[256];
            ld(e + (b*n + w)*d, ev, d); ld(de + (b*n + w)*d, g, d);
            for (int i = 0; i < d; i++) { mx[i] = NEG; sum[i] = 0; }
            for (int pass = 0; pass < 3; pass++)
                for (int half = over ? 0 : 1; half < 2; half++) {
                    long win = half ? w : w - 1, off = over ? half*d : 0;
                    if (win < 0) continue;
                    for (int j = 0; j < R; j++) {
                        long o = (b*T + win*R + j)*fd + off; const float* ap = ape + j*fd + off; float* ad = aa.data() + j*fd + off;
                        if (pass == 0) for (int i = 0; i < d; i++) mx[i] = std::max(mx[i], b2f(z[o+i]) + ap[i]);
                        else if (pass == 1) for (int i = 0; i < d; i++) sum[i] += expf(b2f(z[o+i]) + ap[i] - mx[i]);
                        else for (int i = 0; i < d; i++) {
                            float p = expf(b2f(z[o+i]) + ap[i] - mx[i])/sum[i]*g[i], q = p*(b2f(kv[o+i]) - ev[i]);
                            dkv[o+i] = f2b(p); dz[o+i] = f2b(q); ad[i] += q;
                        }
                    }
                }
        }
        #pragma omp critical
        for (int i = 0; i < R*fd; i++) dape[i] += aa[i];
    }
}

// ---------------------------------------------------------------- indexer

// dots [B,T,H,C] -> s [B,T,C] = k * sum_h u_h relu(dot)
extern "C" void index_fwd(const bf* dots, const float* u, long BT, long H, long C, float k, float* s) {
    #pragma omp parallel for schedule(static)
    for (long t = 0; t < BT; t++) {
        float* o = s + t*C;
        for (int c = 0; c < C; c++) o[c] = 0;
        for (int h = 0; h < H; h++) { const bf* p = dots + (t*H + h)*C; float w = u[t*H+h]*k; for (int c = 0; c < C; c++) o[c] += w*std::max(0.f, b2f(p[c])); }
    }
}
extern "C" void index_bwd(bf* dots, const float* u, const float* ds, long BT, long H, long C, float k, float* du) {   // dots -> gradient, in place
    #pragma omp parallel for schedule(static)
    for (long t = 0; t < BT; t++) {
        const float* g = ds + t*C;
        for (int h = 0; h < H; h++) {
            bf* p = dots + (t*H + h)*C; float w = u[t*H+h]*k, a = 0;
            for (int c = 0; c < C; c++) { float v = b2f(p[c]); a += std::max(0.f, v)*g[c]; p[c] = v > 0 ? f2b(w*g[c]) : 0; }
            du[t*H+h] = a*k;
        }
    }
}
// the k best of the visible entries (ties: the earlier one) -> sel 0/1
extern "C" void index_select(const float* s, long B, long T, long C, long ratio, long k, uint8_t* sel) {
    #pragma omp parallel
    {
        std::vector<float> v(C);
        #pragma omp for schedule(static) collapse(2)
        for (long b = 0; b < B; b++) for (long t = 0; t < T; t++) {
            const float* p = s + (b*T + t)*C; uint8_t* o = sel + (b*T + t)*C;
            int vis = (int)std::min<long>(C, (t + 1)/ratio);
            if (vis <= k) { for (int c = 0; c < C; c++) o[c] = c < vis; continue; }
            std::copy(p, p + vis, v.begin());
            std::nth_element(v.begin(), v.begin() + k - 1, v.begin() + vis, std::greater<float>());
            float th = v[k-1]; int n = 0;
            for (int c = 0; c < C; c++) { o[c] = c < vis && p[c] > th; n += o[c]; }
            for (int c = 0; c < vis && n < k; c++) if (p[c] == th) { o[c] = 1; n++; }
        }
    }
}
// cross entropy of softmax(s over visible) against target (unnormalised mass); ds its gradient; returns the sum over rows
extern "C" double index_loss(const float* s, const float* target, long B, long T, long C, long ratio, float* ds) {
    double total = 0;
    #pragma omp parallel for schedule(static) collapse(2) reduction(+ : total)
    for (long b = 0; b < B; b++) for (long t = 0; t < T; t++) {
        const float *p = s + (b*T + t)*C, *g = target + (b*T + t)*C; float* d = ds + (b*T + t)*C;
        int vis = (int)std::min<long>(C, (t + 1)/ratio);
        for (int c = vis; c < C; c++) d[c] = 0;
        if (vis < 2) { for (int c = 0; c < vis; c++) d[c] = 0; continue; }
        float mx = NEG, z = 0, m = 0, ce = 0;
        for (int c = 0; c < vis; c++) { mx = std::max(mx, p[c]); m += g[c]; }
        for (int c = 0; c < vis; c++) z += expf(p[c] - mx);
        float lz = logf(z) + mx;
        for (int c = 0; c < vis; c++) { ce += g[c]*(lz - p[c]); d[c] = m*expf(p[c] - lz) - g[c]; }
        total += ce;
    }
    return total;
}

// ---------------------------------------------------------------- experts

// Assignments idx [M] (M = tokens * k) sorted by expert, each expert's rows filled up to a multiple of 16: matrix products of few different
// sizes. tok: token of a row, w: its weight (0 in the rows that fill up), inv [M]: row of an assignment, start [E+1]. tok and w start as 0.
extern "C" void moe_sort(const int64_t* idx, const float* wt, long M, long E, long k, int64_t* tok, float* w, int32_t* inv, int64_t* start) {
    std::vector<int64_t> n(E, 0), at(E);
    for (long i = 0; i < M; i++) n[idx[i]]++;
    start[0] = 0;
    for (long e = 0; e < E; e++) { at[e] = start[e]; start[e+1] = start[e] + (n[e] + 15)/16*16; }
    for (long i = 0; i < M; i++) { long p = at[idx[i]]++; tok[p] = i / k; w[p] = wt[i]; inv[i] = (int32_t)p; }
}
// h [M,2I] (gate | up) -> a [M,I] = wt * silu(min(g, lim)) * clamp(u, +-lim); wt may be null
extern "C" void swiglu_fwd(const bf* h, const float* wt, long M, long I, float lim, bf* a) {
    #pragma omp parallel for schedule(static)
    for (long m = 0; m < M; m++) {
        const bf* p = h + m*2*I; float w = wt ? wt[m] : 1.f;
        for (int i = 0; i < I; i++) {
            float g = std::min(b2f(p[i]), lim), u = std::min(std::max(b2f(p[I+i]), -lim), lim);
            a[m*I+i] = f2b(w*g/(1.f + expf(-g))*u);
        }
    }
}
extern "C" void swiglu_bwd(const bf* h, const float* wt, const bf* da, long M, long I, float lim, bf* dh, float* dwt) {
    #pragma omp parallel for schedule(static)
    for (long m = 0; m < M; m++) {
        const bf* p = h + m*2*I; float w = wt ? wt[m] : 1.f, acc = 0; bf* o = dh + m*2*I;
        for (int i = 0; i < I; i++) {
            float g0 = b2f(p[i]), u0 = b2f(p[I+i]), g = std::min(g0, lim), u = std::min(std::max(u0, -lim), lim), d = b2f(da[m*I+i]);
            float sg = 1.f/(1.f + expf(-g)), si = g*sg;
            acc += d*si*u;
            o[i] = g0 < lim ? f2b(d*w*u*sg*(1 + g*(1 - sg))) : 0;
            o[I+i] = u0 < lim && u0 > -lim ? f2b(d*w*si) : 0;
        }
        if (dwt) dwt[m] = acc;
    }
}
// out[t] = sum_j ys[inv[t*k+j]] (+ add[t])
extern "C" void combine(const bf* ys, const int32_t* inv, const bf* add, long N, long k, long D, bf* out) {
    #pragma omp parallel for schedule(static)
    for (long t = 0; t < N; t++) {
        float v[1024];
        if (add) ld(add + t*D, v, D); else for (int i = 0; i < D; i++) v[i] = 0;
        for (int j = 0; j < k; j++) { const bf* p = ys + (long)inv[t*k+j]*D; for (int i = 0; i < D; i++) v[i] += b2f(p[i]); }
        st(out + t*D, v, D);
    }
}

// ---------------------------------------------------------------- number formats (values after a round trip)

static inline float pow2_at_least(float amax, float top) {     // smallest power of two s with amax / s <= top
    if (amax < 1e-30f) return 1.f;
    float s = exp2f(ceilf(log2f(amax/top)));
    if (amax > top*s) s *= 2;
    if (amax <= top*s*.5f) s *= .5f;
    return s;
}
extern "C" void fake_fp4(const float* w, long rows, long cols, bf* out) {
    #pragma omp parallel for schedule(static)
    for (long r = 0; r < rows; r++) for (long g = 0; g < cols; g += 32) {
        const float* p = w + r*cols + g; float am = 0;
        for (int i = 0; i < 32; i++) am = std::max(am, fabsf(p[i]));
        float s = pow2_at_least(am, 6.f), k = 1.f/s;
        for (int i = 0; i < 32; i++) {
            float a = fabsf(p[i])*k;
            float q = .5f*((a > .25f) + (a > .75f) + (a > 1.25f) + (a > 1.75f)) + (a > 2.5f) + (a > 3.5f) + 2.f*(a > 5.f);
            out[r*cols+g+i] = f2b(copysignf(q*s, p[i]));
        }
    }
}
static inline float e4m3(float x) {
    float a = fabsf(x);
    if (a < 0.015625f) return copysignf(rintf(a*512.f)/512.f, x);
    uint32_t u; memcpy(&u, &a, 4); u += 0x7ffff + ((u >> 20) & 1); u &= 0xfff00000u; memcpy(&a, &u, 4);
    return copysignf(std::min(a, 448.f), x);
}
extern "C" void fake_fp8(const float* w, long rows, long cols, bf* out) {
    #pragma omp parallel for schedule(dynamic) collapse(2)
    for (long r0 = 0; r0 < rows; r0 += 128) for (long c0 = 0; c0 < cols; c0 += 128) {
        long r1 = std::min(rows, r0 + 128), c1 = std::min(cols, c0 + 128); float am = 0;
        for (long r = r0; r < r1; r++) for (long c = c0; c < c1; c++) am = std::max(am, fabsf(w[r*cols+c]));
        float s = pow2_at_least(am, 448.f), k = 1.f/s;
        for (long r = r0; r < r1; r++) for (long c = c0; c < c1; c++) out[r*cols+c] = f2b(e4m3(w[r*cols+c]*k)*s);
    }
}
