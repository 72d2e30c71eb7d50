// The specification of expert_ffn: products and sums in double.
//
// With `exact` the activations are what they are; otherwise x and h are rounded as kernels round them for 4- and 8-bit weights
// (blocks of 32 signed bytes). A partner type of ggml's is not imitated.

#include "args.h"
#include "../numbers.h"

#include <math.h>
#include <stdlib.h>

// One row of weights as f32: exact for every type here.
static void expand(const fathom_expert_weights * w, const uint8_t * row, float * out, int32_t n) {
    switch (w->type) {
        case FATHOM_TYPE_F32:
            memcpy(out, row, sizeof(float) * (size_t) n);
            break;
        case FATHOM_TYPE_F16:
        case FATHOM_TYPE_BF16:
            for (int32_t i = 0; i < n; i++) {
                uint16_t bits;
                memcpy(&bits, row + 2 * i, 2);
                out[i] = w->type == FATHOM_TYPE_F16 ? fathom_f32_from_f16(bits) : fathom_f32_from_bf16(bits);
            }
            break;
        case FATHOM_TYPE_Q8_0:
            for (int32_t i = 0; i < n; i++) {
                const uint8_t * block = row + 34 * (i / 32);
                uint16_t        step;
                memcpy(&step, block, 2);
                out[i] = fathom_f32_from_f16(step) * (float) (int8_t) block[2 + i % 32];
            }
            break;
        case FATHOM_TYPE_MXFP4:
            for (int32_t i = 0; i < n; i++) {
                const uint8_t * block = row + 17 * (i / 32);
                const uint8_t   codes = block[1 + i % 16];
                out[i] = fathom_e8m0_half(block[0]) * (float) fathom_e2m1_doubled[(i % 32 < 16 ? codes : codes >> 4) & 15];
            }
            break;
        case FATHOM_TYPE_NVFP4:
            for (int32_t i = 0; i < n; i++) {
                const uint8_t * block = row + 36 * (i / 64);
                const int32_t   group = i % 64 / 16;
                const uint8_t   codes = block[4 + 8 * group + i % 8];
                out[i] = fathom_ue4m3_half(block[group]) * (float) fathom_e2m1_doubled[(i % 16 < 8 ? codes : codes >> 4) & 15];
            }
            break;
        default:
            w->to_float(row, out, n);
    }
}

// Rounds activations as the kernels of this weight type do.
static void as_partner(const fathom_expert_weights * w, double * x, int32_t n) {
    if (w->type == FATHOM_TYPE_Q8_0 || w->type == FATHOM_TYPE_MXFP4 || w->type == FATHOM_TYPE_NVFP4) {
        fathom_round_to_bytes(x, n);
    }
}

static double dot(const fathom_expert_weights * w, int32_t expert, int32_t row, const double * x, float * buffer, int32_t n) {
    expand(w, (const uint8_t *) w->experts[expert] + w->row_bytes * row, buffer, n);
    double sum = 0;
    for (int32_t i = 0; i < n; i++) {
        sum += (double) buffer[i] * x[i];
    }
    return w->scales ? sum * (double) w->scales[expert] : sum;
}

void fathom_expert_ffn_reference(const fathom_expert_ffn_args * a) {
    const size_t n_embd = (size_t) a->n_embd, n_ff = (size_t) a->n_ff;
    double *     x_gate = malloc(sizeof(double) * n_embd);
    double *     x_up   = malloc(sizeof(double) * n_embd);
    double *     h      = malloc(sizeof(double) * n_ff);
    double *     y      = malloc(sizeof(double) * n_embd);
    float *      buffer = malloc(sizeof(float) * (n_embd > n_ff ? n_embd : n_ff));
    for (int32_t t = 0; t < a->n_tokens; t++) {
        for (size_t i = 0; i < n_embd; i++) {
            x_gate[i] = x_up[i] = a->x[(size_t) t * n_embd + i];
            y[i] = 0;
        }
        if (!a->exact) {
            as_partner(&a->gate, x_gate, a->n_embd);
            as_partner(&a->up, x_up, a->n_embd);
        }
        for (int32_t j = 0; j < a->n_used; j++) {
            const int32_t e = a->ids[(size_t) t * (size_t) a->n_used + (size_t) j];
            if (e < 0) {
                continue;
            }
            for (int32_t f = 0; f < a->n_ff; f++) {
                double gate = dot(&a->gate, e, f, x_gate, buffer, a->n_embd);
                double up   = dot(&a->up, e, f, x_up, buffer, a->n_embd);
                // Comparisons, for fmin would lose a NaN.
                gate = gate > a->clamp ? a->clamp : gate;
                up   = up > a->clamp ? a->clamp : up < -a->clamp ? -a->clamp : up;
                h[f] = gate / (1 + exp(-gate)) * up;
            }
            if (!a->exact) {
                as_partner(&a->down, h, a->n_ff);
            }
            for (int32_t i = 0; i < a->n_embd; i++) {
                y[i] += a->weights[(size_t) t * (size_t) a->n_used + (size_t) j] * dot(&a->down, e, i, h, buffer, a->n_ff);
            }
        }
        for (size_t i = 0; i < n_embd; i++) {
            a->y[(size_t) t * n_embd + i] = (float) y[i];
        }
    }
    free(x_gate);
    free(x_up);
    free(h);
    free(y);
    free(buffer);
}
