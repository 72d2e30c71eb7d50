// Activations in f32: for weights that are floats, and for all weights in exact mode, expanded to f32 first. And ggml's dot
// product for types without a kernel of ours.
//
// One sum of VF_LANES lanes for each row and token, columns in order, lanes added at the end.
#pragma once

#include "job.h"

#define FLOAT_TOKENS (VF_REGISTERS == 32 ? 4 : 2)

TILE_INLINE size_t float_buffer_bytes(int32_t n_cols) {
    return sizeof(float) * TILE_ROWS * (size_t) n_cols;
}

TILE_INLINE int64_t float_bytes(int32_t type) {
    return type == FATHOM_TYPE_F32 ? 4 : 2;
}

TILE_INLINE vf float_load(int32_t type, const uint8_t * p) {
    return type == FATHOM_TYPE_F32 ? vf_load((const float *) (const void *) p)
           : type == FATHOM_TYPE_F16 ? vf_load_f16((const uint16_t *) (const void *) p)
                                     : vf_load_bf16((const uint16_t *) (const void *) p);
}

// Four rows, n tokens.
TILE_INLINE void float_columns(int32_t type, int n, const uint8_t * w, int64_t stride, const float * const * x, int32_t n_cols,
                               float * out /* [n][TILE_ROWS] */) {
    vf sum[4 * FLOAT_TOKENS];
    for (int i = 0; i < 4 * n; i++) {
        sum[i] = vf_set1(0.0f);
    }
    const int32_t n_whole = n_cols / VF_LANES * VF_LANES;
    for (int32_t c = 0; c < n_whole; c += VF_LANES) {
        vf row[4];
        for (int r = 0; r < 4; r++) {
            row[r] = float_load(type, w + r * stride + c * float_bytes(type));
        }
        for (int t = 0; t < n; t++) {
            const vf values = vf_load(x[t] + c);
            for (int r = 0; r < 4; r++) {
                sum[4 * t + r] = vf_fma(row[r], values, sum[4 * t + r]);
            }
        }
    }
    if (n_whole < n_cols) {
        const size_t n_rest = (size_t) (n_cols - n_whole);
        for (int r = 0; r < 4; r++) {
            uint8_t row[4 * VF_LANES] = { 0 };
            memcpy(row, w + r * stride + n_whole * float_bytes(type), n_rest * (size_t) float_bytes(type));
            for (int t = 0; t < n; t++) {
                float values[VF_LANES] = { 0 };
                memcpy(values, x[t] + n_whole, n_rest * sizeof(float));
                sum[4 * t + r] = vf_fma(float_load(type, row), vf_load(values), sum[4 * t + r]);
            }
        }
    }
    for (int t = 0; t < n; t++) {
        vf_reduce4(out + t * TILE_ROWS, sum[4 * t], sum[4 * t + 1], sum[4 * t + 2], sum[4 * t + 3]);
    }
}

// TILE_ROWS rows: tile r of the job.
TILE_INLINE void float_tile_of(int32_t type, const job * j, int r, const uint8_t * w, int64_t stride) {
    for (int32_t i = 0; i < j->n_pairs; i += FLOAT_TOKENS) {
        const int32_t n = j->n_pairs - i < FLOAT_TOKENS ? j->n_pairs - i : FLOAT_TOKENS;
        const float * x[FLOAT_TOKENS];
        float         out[FLOAT_TOKENS * TILE_ROWS];
        for (int t = 0; t < FLOAT_TOKENS; t++) {
            x[t] = job_x(j, i + (t < n ? t : n - 1));
        }
        for (int k = 0; k < TILE_ROWS; k += 4) {
            if (n == 1) {
                float_columns(type, 1, w + k * stride, stride, x, j->n_cols, out + k);
            } else {
                float_columns(type, FLOAT_TOKENS, w + k * stride, stride, x, j->n_cols, out + k);
            }
        }
        for (int t = 0; t < n; t++) {
            job_emit(j, i + t, r, vf_load(out + t * TILE_ROWS));
        }
    }
}

// A row of 4- or 8-bit weights as f32, exactly.
static void float_expand(const fathom_expert_weights * w, const uint8_t * row, int32_t n, float * out) {
    const int32_t block = w->type == FATHOM_TYPE_NVFP4 ? 16 : 32;
    switch (w->type) {
        case FATHOM_TYPE_Q8_0:
        case FATHOM_TYPE_MXFP4:
        case FATHOM_TYPE_NVFP4:
            break;
        default:
            w->to_float(row, out, n);
            return;
    }
    for (int32_t b = 0; b < n / block; b++, out += block) {
        if (w->type == FATHOM_TYPE_Q8_0) {
            uint16_t step;
            memcpy(&step, row + 34 * b, 2);
            for (int i = 0; i < 32; i++) {
                out[i] = fathom_f32_from_f16(step) * (float) (int8_t) row[34 * b + 2 + i];
            }
        } else {
            const int       half  = block / 2;
            const uint8_t * codes = w->type == FATHOM_TYPE_MXFP4 ? row + 17 * b + 1 : row + 36 * (b / 4) + 4 + 8 * (b % 4);
            const float     scale = w->type == FATHOM_TYPE_MXFP4 ? fathom_e8m0_half(row[17 * b]) : fathom_ue4m3_half(row[36 * (b / 4) + b % 4]);
            for (int i = 0; i < half; i++) {
                out[i]        = scale * (float) fathom_e2m1_doubled[codes[i] & 15];
                out[i + half] = scale * (float) fathom_e2m1_doubled[codes[i] >> 4];
            }
        }
    }
}

static void float_rows(const job * j) {
    const int64_t stride = j->weights->row_bytes;
    float *       rows   = (float *) (void *) j->buffer;
    for (int r = 0; r < PANEL_TILES; r++) {
        const uint8_t * w = j->rows + r * TILE_ROWS * stride;
        switch (j->weights->type) {
            case FATHOM_TYPE_F32:  float_tile_of(FATHOM_TYPE_F32, j, r, w, stride); break;
            case FATHOM_TYPE_F16:  float_tile_of(FATHOM_TYPE_F16, j, r, w, stride); break;
            case FATHOM_TYPE_BF16: float_tile_of(FATHOM_TYPE_BF16, j, r, w, stride); break;
            default:
                for (int k = 0; k < TILE_ROWS; k++) {
                    float_expand(j->weights, w + k * stride, j->n_cols, rows + (int64_t) k * j->n_cols);
                }
                float_tile_of(FATHOM_TYPE_F32, j, r, (const uint8_t *) rows, (int64_t) sizeof(float) * j->n_cols);
        }
    }
}

static void ggml_rows(const job * j) {
    const int64_t stride = j->weights->row_bytes;
    for (int32_t i = 0; i < j->n_pairs; i++) {
        float out[JOB_ROWS];
        for (int k = 0; k < JOB_ROWS; k++) {
            j->weights->vec_dot(j->n_cols, &out[k], 0, j->rows + k * stride, 0, job_x(j, i), 0, 1);
        }
        for (int r = 0; r < PANEL_TILES; r++) {
            job_emit(j, i, r, vf_load(out + r * TILE_ROWS));
        }
    }
}
