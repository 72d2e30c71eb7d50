// Cached rows and rotary embedding by vectors. Same bits as ops/rows.h.
#pragma once

#include <math.h>

#include "../ops/rows.h"
#include "vec.h"

// Channels in sixteens: every real shape. Others take the functions of ops/rows.h.
static inline int vf_row_fits(int32_t d, int32_t n_rot) {
    return ((d | n_rot) & 15) == 0;
}

static inline void vf_row_load(int32_t row_type, int32_t d, int32_t n_rot, const void * row, float * x) {
    if (!vf_row_fits(d, n_rot) || row_type == FATHOM_ROW_FP4) {
        fathom_row_load_of(row_type, d, n_rot, row, x);
    } else if (row_type == FATHOM_ROW_F32) {
        memcpy(x, row, (size_t) d * sizeof(float));
    } else if (row_type == FATHOM_ROW_F16) {
        const uint16_t * halves = (const uint16_t *) row;
        for (int32_t i = 0; i < d; i += VF_LANES) {
            vf_store(x + i, vf_load_f16(halves + i));
        }
    } else {
        const uint8_t * bytes = (const uint8_t *) row;
        const int32_t n_plain = d - n_rot;
        const uint16_t * rotary = (const uint16_t *) (bytes + fathom_fp8_rope_offset(d, n_rot));
        for (int32_t i = 0; i < n_plain; i += VF_LANES) {
            const float scale = fathom_f32_from_e8m0(bytes[n_plain + i / FATHOM_FP8_GROUP]);
            vf_store(x + i, vf_mul(vf_mul(vf_load_e4m3(bytes + i), vf_set1(VF_E4M3_FACTOR)), vf_set1(scale)));
        }
        for (int32_t i = 0; i < n_rot; i += VF_LANES) {
            vf_store(x + n_plain + i, vf_load_bf16(rotary + i));
        }
    }
}

static inline void vf_row_store(int32_t row_type, int32_t d, int32_t n_rot, const float * x, void * row) {
    if (row_type == FATHOM_ROW_F16 && vf_row_fits(d, n_rot)) {
        uint16_t * halves = (uint16_t *) row;
        for (int32_t i = 0; i < d; i += VF_LANES) {
            vf_store_f16(halves + i, vf_load(x + i));
        }
    } else {  // one row a token: nothing to win
        fathom_row_store_of(row_type, d, n_rot, x, row);
    }
}

// cos and signed sin for both channels of each pair, so that  y = x * cos + swap_pairs(x) * sin.
// `table` holds 2 * n_rot floats. direction -1 rotates back.
static inline void rope_table(const fathom_rope * rope, int64_t pos, float direction, float * table) {
    for (int32_t i = 0; i < rope->n_rot / 2; i++) {
        const float angle = (float) pos * rope->freq[i];
        const float c = cosf(angle);
        const float s = sinf(angle) * direction;
        table[2 * i] = c;
        table[2 * i + 1] = c;
        table[rope->n_rot + 2 * i] = -s;
        table[rope->n_rot + 2 * i + 1] = s;
    }
}

static inline void rope_apply(int32_t n_rot, const float * table, float * x) {
    int32_t i = 0;
    for (; i + VF_LANES <= n_rot; i += VF_LANES) {
        const vf pair = vf_load(x + i);
        vf_store(x + i, vf_fma(pair, vf_load(table + i), vf_mul(vf_swap_pairs(pair), vf_load(table + n_rot + i))));
    }
    for (; i < n_rot; i += 2) {
        const float a = x[i];
        const float b = x[i + 1];
        x[i] = a * table[i] + b * table[n_rot + i];
        x[i + 1] = b * table[i + 1] + a * table[n_rot + i + 1];
    }
}

// Sum of squares of n numbers.
static inline float vf_squares(const float * x, int32_t n) {
    vf sums[4] = {vf_set1(0.0f), vf_set1(0.0f), vf_set1(0.0f), vf_set1(0.0f)};
    int32_t i = 0;
    for (; i + 4 * VF_LANES <= n; i += 4 * VF_LANES) {
        for (int j = 0; j < 4; j++) {
            const vf v = vf_load(x + i + j * VF_LANES);
            sums[j] = vf_fma(v, v, sums[j]);
        }
    }
    float sum = vf_sum(vf_add(vf_add(sums[0], sums[1]), vf_add(sums[2], sums[3])));
    for (; i < n; i++) {
        sum += x[i] * x[i];
    }
    return sum;
}

// x *= factor [* weight]
static inline void vf_scale(float * x, float factor, const float * weight, int32_t n) {
    int32_t i = 0;
    for (; i + VF_LANES <= n; i += VF_LANES) {
        vf v = vf_mul(vf_load(x + i), vf_set1(factor));
        if (weight) {
            v = vf_mul(v, vf_load(weight + i));
        }
        vf_store(x + i, v);
    }
    for (; i < n; i++) {
        x[i] = x[i] * factor * (weight ? weight[i] : 1.0f);
    }
}
