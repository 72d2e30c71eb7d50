// Tokens are split among the threads in equal stretches. One pass over a token's streams for the mean square, one for x, which then is in
// L1 for its norm; closing is one pass. Bound by bytes: 4 n_embd floats in (twice, the second time from L1) and n_embd out, then 5 n_embd in
// and 4 n_embd out. With one token one thread works: a few µs.
#include "../../simd/rows.h"
#include "args.h"

enum { N = FATHOM_N_STREAMS };

static float sigmoid(float x) {
    return 1.0f / (1.0f + expf(-x));
}

static void normalise_over_sources(float m[N][N], float eps) {
    float sums[N] = {eps, eps, eps, eps};
    for (int a = 0; a < N; a++) {
        for (int b = 0; b < N; b++) {
            sums[b] += m[a][b];
        }
    }
    for (int a = 0; a < N; a++) {
        for (int b = 0; b < N; b++) {
            m[a][b] /= sums[b];
        }
    }
}

static void normalise_over_destinations(float m[N][N], float eps) {
    for (int a = 0; a < N; a++) {
        const float sum = eps + m[a][0] + m[a][1] + m[a][2] + m[a][3];
        for (int b = 0; b < N; b++) {
            m[a][b] /= sum;
        }
    }
}

static void set_mix(const fathom_hyper_step_args * args, const float * m, float * mix) {
    float comb[N][N];
    for (int a = 0; a < N; a++) {
        const float * logits = m + 2 * N + N * a;
        const float largest = fmaxf(fmaxf(logits[0], logits[1]), fmaxf(logits[2], logits[3]));
        float sum = 0.0f;
        for (int b = 0; b < N; b++) {
            comb[a][b] = expf(logits[b] - largest);
            sum += comb[a][b];
        }
        for (int b = 0; b < N; b++) {
            comb[a][b] = comb[a][b] / sum + args->eps;
        }
    }
    normalise_over_sources(comb, args->eps);
    for (int32_t i = 1; i < args->n_iterations; i++) {
        normalise_over_destinations(comb, args->eps);
        normalise_over_sources(comb, args->eps);
    }
    for (int i = 0; i < N; i++) {
        mix[i] = 2.0f * sigmoid(m[N + i]);
    }
    memcpy(mix + N, comb, sizeof comb);
}

void FATHOM_KERNEL(hyper_open)(const fathom_hyper_step_args * args, int32_t ith, int32_t nth) {
    const int32_t d = args->n_embd;
    const int32_t end = (int32_t) ((int64_t) args->n_tokens * (ith + 1) / nth);
    for (int32_t t = (int32_t) ((int64_t) args->n_tokens * ith / nth); t < end; t++) {
        const float * streams = args->streams + (int64_t) t * N * d;
        float * x = args->x + (int64_t) t * d;
        const float factor = 1.0f / sqrtf(vf_squares(streams, N * d) / (float) (N * d) + args->norm_eps);
        float m[FATHOM_N_MIXES];
        float pre[N];
        for (int32_t i = 0; i < args->n_mixes; i++) {
            const float scale = args->scale[i < N ? 0 : i < 2 * N ? 1 : 2];
            m[i] = args->dots[(int64_t) t * args->n_mixes + i] * factor * scale + args->base[i];
        }
        for (int s = 0; s < N; s++) {
            pre[s] = sigmoid(m[s]) + args->eps;
        }
        int32_t c = 0;
        for (; c + VF_LANES <= d; c += VF_LANES) {
            vf sum = vf_mul(vf_set1(pre[0]), vf_load(streams + c));
            for (int s = 1; s < N; s++) {
                sum = vf_fma(vf_set1(pre[s]), vf_load(streams + (int64_t) s * d + c), sum);
            }
            vf_store(x + c, sum);
        }
        for (; c < d; c++) {
            x[c] = 0.0f;
            for (int s = 0; s < N; s++) {
                x[c] += pre[s] * streams[(int64_t) s * d + c];
            }
        }
        vf_scale(x, 1.0f / sqrtf(vf_squares(x, d) / (float) d + args->norm_eps), args->norm, d);
        if (args->n_mixes == FATHOM_N_MIXES) {
            set_mix(args, m, args->mix + (int64_t) t * (N + N * N));
        }
    }
}

// The next value of every stream, one vector of channels. All streams are read before one is written.
static inline void close_vector(const float * mix, int32_t d, const float * y, const float * streams, float * out) {
    const vf block = vf_load(y);
    vf now[N];
    for (int a = 0; a < N; a++) {
        now[a] = vf_load(streams + (int64_t) a * d);
    }
    for (int b = 0; b < N; b++) {
        vf next = vf_mul(vf_set1(mix[b]), block);
        for (int a = 0; a < N; a++) {
            next = vf_fma(vf_set1(mix[N + N * a + b]), now[a], next);
        }
        vf_store(out + (int64_t) b * d, next);
    }
}

void FATHOM_KERNEL(hyper_close)(const fathom_hyper_step_args * args, int32_t ith, int32_t nth) {
    const int32_t d = args->n_embd;
    const int32_t end = (int32_t) ((int64_t) args->n_tokens * (ith + 1) / nth);
    for (int32_t t = (int32_t) ((int64_t) args->n_tokens * ith / nth); t < end; t++) {
        const float * mix = args->mix + (int64_t) t * (N + N * N);
        const float * streams = args->streams + (int64_t) t * N * d;
        const float * y = args->y + (int64_t) t * d;
        float * out = args->out + (int64_t) t * N * d;
        int32_t c = 0;
        for (; c + VF_LANES <= d; c += VF_LANES) {
            close_vector(mix, d, y + c, streams + c, out + c);
        }
        for (; c < d; c++) {
            float next[N];
            for (int b = 0; b < N; b++) {
                next[b] = mix[b] * y[c];
                for (int a = 0; a < N; a++) {
                    next[b] += mix[N + N * a + b] * streams[(int64_t) a * d + c];
                }
            }
            for (int b = 0; b < N; b++) {
                out[(int64_t) b * d + c] = next[b];
            }
        }
    }
}
