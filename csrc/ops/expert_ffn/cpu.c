// First version: f32 activations, one row at a time.

#include "../../simd/isa.h"
#include "args.h"
#include "../numbers.h"

#include <math.h>

// h of one (token, slot): scratch holds f32 [n_ff, n_used, n_tokens].
static float * h_of(const fathom_expert_ffn_args * a, int64_t token, int64_t slot) {
    return (float *) a->scratch + (token * a->n_used + slot) * a->n_ff;
}

static float weight_at(const fathom_expert_weights * w, const uint8_t * row, int32_t i) {
    uint16_t half;
    switch (w->type) {
        case FATHOM_TYPE_F32:
            return ((const float *) (const void *) row)[i];
        case FATHOM_TYPE_F16:
            memcpy(&half, row + 2 * i, 2);
            return fathom_f32_from_f16(half);
        case FATHOM_TYPE_BF16:
            memcpy(&half, row + 2 * i, 2);
            return fathom_f32_from_bf16(half);
        case FATHOM_TYPE_Q8_0:
            memcpy(&half, row + 34 * (i / 32), 2);
            return fathom_f32_from_f16(half) * (float) (int8_t) row[34 * (i / 32) + 2 + i % 32];
        case FATHOM_TYPE_MXFP4: {
            const uint8_t * block = row + 17 * (i / 32);
            const uint8_t   codes = block[1 + i % 16];
            return fathom_e8m0_half(block[0]) * (float) fathom_e2m1_doubled[i % 32 < 16 ? codes & 15 : codes >> 4];
        }
        default: {
            const uint8_t * block = row + 36 * (i / 64);
            const int32_t   group = i % 64 / 16;
            const uint8_t   codes = block[4 + 8 * group + i % 8];
            return fathom_ue4m3_half(block[group]) * (float) fathom_e2m1_doubled[i % 16 < 8 ? codes & 15 : codes >> 4];
        }
    }
}

static float dot(const fathom_expert_weights * w, int32_t expert, int64_t row, const float * x, int32_t n) {
    const uint8_t * bytes = (const uint8_t *) w->experts[expert] + w->row_bytes * row;
    float sum = 0.0f;
    for (int32_t i = 0; i < n; i++) {
        sum += weight_at(w, bytes, i) * x[i];
    }
    return w->scales ? sum * w->scales[expert] : sum;
}

size_t FATHOM_KERNEL(expert_ffn_scratch_bytes)(const fathom_expert_ffn_args * a, int32_t nth) {
    (void) nth;
    return sizeof(float) * (size_t) a->n_ff * (size_t) a->n_used * (size_t) a->n_tokens;
}

void FATHOM_KERNEL(expert_ffn_prepare)(const fathom_expert_ffn_args * a, int32_t ith, int32_t nth) {
    (void) a, (void) ith, (void) nth;
}

void FATHOM_KERNEL(expert_ffn_gate_up)(const fathom_expert_ffn_args * a, int32_t ith, int32_t nth) {
    for (int64_t t = 0; t < a->n_tokens; t++) {
        for (int64_t j = 0; j < a->n_used; j++) {
            const int32_t e = a->ids[t * a->n_used + j];
            if (e < 0) {
                continue;
            }
            for (int64_t f = ith; f < a->n_ff; f += nth) {
                const float gate = fminf(dot(&a->gate, e, f, a->x + t * a->n_embd, a->n_embd), a->clamp);
                const float up   = fmaxf(fminf(dot(&a->up, e, f, a->x + t * a->n_embd, a->n_embd), a->clamp), -a->clamp);
                h_of(a, t, j)[f] = gate / (1.0f + expf(-gate)) * up;
            }
        }
    }
}

void FATHOM_KERNEL(expert_ffn_regroup)(const fathom_expert_ffn_args * a, int32_t ith, int32_t nth) {
    (void) a, (void) ith, (void) nth;
}

void FATHOM_KERNEL(expert_ffn_down)(const fathom_expert_ffn_args * a, int32_t ith, int32_t nth) {
    for (int64_t t = 0; t < a->n_tokens; t++) {
        for (int64_t i = ith; i < a->n_embd; i += nth) {
            float sum = 0.0f;
            for (int64_t j = 0; j < a->n_used; j++) {
                const int32_t e = a->ids[t * a->n_used + j];
                if (e >= 0) {
                    sum += a->weights[t * a->n_used + j] * dot(&a->down, e, i, h_of(a, t, j), a->n_ff);
                }
            }
            a->y[t * a->n_embd + i] = sum;
        }
    }
}
