// Number formats of cached rows (FATHOM_ROW_*), one number and one row at a time. Every rounding is to nearest, ties to
// even. Scales are powers of two kept as E8M0 (byte b means 2^(b-127)), the smallest that holds the group's largest
// magnitude. Source: deepseek-v4.md section 6, "Rounding in the reference runtime".
//
// These functions are the specification; vectorised conversions must give the same bits.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "numbers.h"
#include "step.h"

enum {
    FATHOM_FP8_GROUP = 64,  // channels that share a scale
    FATHOM_FP4_GROUP = 32,
};

// 2^ceil(log2(max(amax, 1e-4) / 448)); 448 = 1.75 * 2^8.
static inline uint8_t fathom_fp8_scale(float amax) {
    const uint32_t bits = fathom_f32_bits(amax > 1e-4f ? amax : 1e-4f);
    const uint32_t exponent = (bits >> 23) + ((bits & 0x7fffff) > 0x600000);
    return (uint8_t) (exponent - 8);
}

// 2^ceil(log2(amax / 6)), at least 2^-126; 6 = 1.5 * 2^2.
static inline uint8_t fathom_fp4_scale(float amax) {
    const uint32_t bits = fathom_f32_bits(amax);
    const uint32_t exponent = (bits >> 23) + ((bits & 0x7fffff) > 0x400000);
    return (uint8_t) (exponent > 2 ? exponent - 2 : 1);
}

static inline float fathom_amax(const float * x, int32_t n) {
    float amax = 0.0f;
    for (int32_t i = 0; i < n; i++) {
        amax = fmaxf(amax, fabsf(x[i]));
    }
    return amax;
}

// Offsets within a FATHOM_ROW_FP8 row. The last group is shorter when d - n_rot is no multiple of 64.
static inline int32_t fathom_fp8_groups(int32_t d, int32_t n_rot) {
    return (d - n_rot + FATHOM_FP8_GROUP - 1) / FATHOM_FP8_GROUP;
}

static inline int32_t fathom_fp8_rope_offset(int32_t d, int32_t n_rot) {
    return d - n_rot + (fathom_fp8_groups(d, n_rot) + 1) / 2 * 2;
}

// Bytes of one row of d channels, n_rot of them rotary (read for FP8 only).
static inline int64_t fathom_row_bytes_of(int32_t row_type, int32_t d, int32_t n_rot) {
    switch (row_type) {
        case FATHOM_ROW_F32: return 4 * (int64_t) d;
        case FATHOM_ROW_F16: return 2 * (int64_t) d;
        case FATHOM_ROW_FP8: return fathom_fp8_rope_offset(d, n_rot) + 2 * (int64_t) n_rot;
        default:             return d / 2 + d / FATHOM_FP4_GROUP;
    }
}

static inline void fathom_row_store_of(int32_t row_type, int32_t d, int32_t n_rot, const float * x, void * row) {
    uint8_t * bytes = (uint8_t *) row;
    switch (row_type) {
        case FATHOM_ROW_F32: {
            memmove(row, x, (size_t) d * sizeof(float));
            break;
        }
        case FATHOM_ROW_F16: {
            uint16_t * halves = (uint16_t *) row;
            for (int32_t i = 0; i < d; i++) {
                halves[i] = fathom_f16_from_f32(x[i]);
            }
            break;
        }
        case FATHOM_ROW_FP8: {
            const int32_t n_plain = d - n_rot;
            uint16_t * rotary = (uint16_t *) (bytes + fathom_fp8_rope_offset(d, n_rot));
            for (int32_t g = 0; g < fathom_fp8_groups(d, n_rot); g++) {
                const int32_t begin = g * FATHOM_FP8_GROUP;
                const int32_t end = begin + FATHOM_FP8_GROUP < n_plain ? begin + FATHOM_FP8_GROUP : n_plain;
                const uint8_t scale = fathom_fp8_scale(fathom_amax(x + begin, end - begin));
                bytes[n_plain + g] = scale;
                for (int32_t i = begin; i < end; i++) {
                    bytes[i] = fathom_e4m3_from_f32(x[i] * fathom_e8m0_inverse(scale));
                }
            }
            if (fathom_fp8_groups(d, n_rot) % 2 != 0) {
                bytes[n_plain + fathom_fp8_groups(d, n_rot)] = 0;
            }
            for (int32_t i = 0; i < n_rot; i++) {
                rotary[i] = fathom_bf16_from_f32(x[n_plain + i]);
            }
            break;
        }
        case FATHOM_ROW_FP4: {
            for (int32_t g = 0; g < d / FATHOM_FP4_GROUP; g++) {
                const float * group = x + g * FATHOM_FP4_GROUP;
                const uint8_t scale = fathom_fp4_scale(fathom_amax(group, FATHOM_FP4_GROUP));
                const float inverse = fathom_e8m0_inverse(scale);
                bytes[d / 2 + g] = scale;
                for (int32_t j = 0; j < FATHOM_FP4_GROUP / 2; j++) {
                    const uint8_t low = fathom_e2m1_from_f32(group[2 * j] * inverse);
                    const uint8_t high = fathom_e2m1_from_f32(group[2 * j + 1] * inverse);
                    bytes[g * FATHOM_FP4_GROUP / 2 + j] = (uint8_t) (low | high << 4);
                }
            }
            break;
        }
        default: break;
    }
}

static inline void fathom_row_load_of(int32_t row_type, int32_t d, int32_t n_rot, const void * row, float * x) {
    const uint8_t * bytes = (const uint8_t *) row;
    switch (row_type) {
        case FATHOM_ROW_F32: {
            memmove(x, row, (size_t) d * sizeof(float));
            break;
        }
        case FATHOM_ROW_F16: {
            const uint16_t * halves = (const uint16_t *) row;
            for (int32_t i = 0; i < d; i++) {
                x[i] = fathom_f32_from_f16(halves[i]);
            }
            break;
        }
        case FATHOM_ROW_FP8: {
            const int32_t n_plain = d - n_rot;
            const uint16_t * rotary = (const uint16_t *) (bytes + fathom_fp8_rope_offset(d, n_rot));
            for (int32_t i = 0; i < n_plain; i++) {
                x[i] = fathom_f32_from_e4m3(bytes[i]) * fathom_f32_from_e8m0(bytes[n_plain + i / FATHOM_FP8_GROUP]);
            }
            for (int32_t i = 0; i < n_rot; i++) {
                x[n_plain + i] = fathom_f32_from_bf16(rotary[i]);
            }
            break;
        }
        case FATHOM_ROW_FP4: {
            for (int32_t i = 0; i < d; i++) {
                const int32_t code = bytes[i / 2] >> 4 * (i % 2) & 15;
                x[i] = 0.5f * (float) fathom_e2m1_doubled[code] * fathom_f32_from_e8m0(bytes[d / 2 + i / FATHOM_FP4_GROUP]);
            }
            break;
        }
        default: break;
    }
}

static inline const void * fathom_row_at(const fathom_rows * rows, int64_t i) {
    const int64_t in_segment = i & (((int64_t) 1 << rows->log2_segment_rows) - 1);
    return (const char *) rows->segments[i >> rows->log2_segment_rows] + in_segment * rows->row_bytes;
}

// Normalised Hadamard transform of n = 2^k numbers in place, Sylvester order. Sums and differences of pairs and one
// product at the end: the same bits on every machine, which makes FP4 codes comparable.
static inline void fathom_hadamard(float * x, int32_t n) {
    for (int32_t half = 1; half < n; half *= 2) {
        for (int32_t base = 0; base < n; base += 2 * half) {
            for (int32_t i = base; i < base + half; i++) {
                const float a = x[i];
                const float b = x[i + half];
                x[i] = a + b;
                x[i + half] = a - b;
            }
        }
    }
    const float scale = (float) (1.0 / sqrt((double) n));
    for (int32_t i = 0; i < n; i++) {
        x[i] *= scale;
    }
}
