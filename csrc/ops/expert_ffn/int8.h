// 4- and 8-bit weights times activations in blocks of 32 signed bytes.
//
// Few tokens: a tile is unpacked into registers and used for all of them; bound by the bytes of the weights. Many tokens: the rows
// are unpacked once into the thread's buffer and read from there for INT8_TOKENS tokens at a time; bound by multiply-adds. Both
// add tiles in the same order (tile_add).
#pragma once

#include "job.h"

// Tokens that share a tile in registers: as many sums as there is room for.
#define INT8_TOKENS (VF_REGISTERS == 32 ? 8 : 4)

typedef struct unpacked_tile {
    vi tile[8];
    vf scales[2];
} unpacked_tile;

TILE_INLINE size_t int8_buffer_bytes(int32_t n_cols) {
    return sizeof(unpacked_tile) * (size_t) (n_cols / 32);
}

TILE_INLINE void int8_columns(int32_t type, int n, const job * j, const uint8_t * w, int64_t stride, const unpacked_tile * unpacked,
                              const activations * const * x, int fetch, vf * sums) {
    vf        sum[INT8_TOKENS];
    const int32_t n_blocks = j->n_cols / 32;
    for (int t = 0; t < n; t++) {
        sum[t] = vf_set1(0.0f);
    }
    for (int32_t b = 0; b < n_blocks; b++) {
        vi tile[8];
        vf scales[2];
        if (unpacked) {
            memcpy(tile, unpacked[b].tile, sizeof tile);
            memcpy(scales, unpacked[b].scales, tile_has_halves(type) ? sizeof scales : sizeof scales[0]);
        } else {
            tile_load(type, w, stride, b, tile, scales);
            if (fetch) {
                job_fetch_ahead(j, b, TILE_ROWS * tile_block_bytes(type));
            }
        }
        for (int t = 0; t < n; t++) {
            sum[t] = tile_add(type, sum[t], tile, scales, x[t] + b);
        }
    }
    for (int t = 0; t < n; t++) {
        sums[t] = sum[t];
    }
}

TILE_INLINE void int8_rows_of(int32_t type, const job * j) {
    const int64_t   stride = j->weights->row_bytes;
    const uint8_t * w      = j->rows;
    unpacked_tile * unpacked = NULL;
    if (j->n_pairs > INT8_TOKENS) {
        unpacked = (unpacked_tile *) (void *) j->buffer;
        for (int32_t b = 0; b < j->n_cols / 32; b++) {
            tile_load(type, w, stride, b, unpacked[b].tile, unpacked[b].scales);
            job_fetch_ahead(j, b, TILE_ROWS * tile_block_bytes(type));
        }
    }
    for (int32_t i = 0; i < j->n_pairs; i += INT8_TOKENS) {
        const int32_t       n = j->n_pairs - i < INT8_TOKENS ? j->n_pairs - i : INT8_TOKENS;
        const activations * x[INT8_TOKENS];
        vf                  sums[INT8_TOKENS];
        for (int t = 0; t < INT8_TOKENS; t++) {
            x[t] = job_x(j, i + (t < n ? t : n - 1));  // the last one again: its sums are not used
        }
        if (unpacked) {
            if (n > 2) {
                n > 4 ? int8_columns(type, INT8_TOKENS, j, w, stride, unpacked, x, 0, sums) : int8_columns(type, 4, j, w, stride, unpacked, x, 0, sums);
            } else {
                int8_columns(type, 2, j, w, stride, unpacked, x, 0, sums);
            }
        } else if (n == 1) {
            int8_columns(type, 1, j, w, stride, NULL, x, 1, sums);
        } else if (n == 2) {
            int8_columns(type, 2, j, w, stride, NULL, x, 1, sums);
        } else if (n <= 4) {
            int8_columns(type, 4, j, w, stride, NULL, x, 1, sums);
        } else {
            int8_columns(type, INT8_TOKENS, j, w, stride, NULL, x, 1, sums);
        }
        for (int t = 0; t < n; t++) {
            job_emit(j, i + t, sums[t]);
        }
    }
}

static void int8_rows(const job * j) {
    switch (j->weights->type) {
        case FATHOM_TYPE_MXFP4: int8_rows_of(FATHOM_TYPE_MXFP4, j); break;
        case FATHOM_TYPE_NVFP4: int8_rows_of(FATHOM_TYPE_NVFP4, j); break;
        default:                int8_rows_of(FATHOM_TYPE_Q8_0, j); break;
    }
}

// Blocks of 32: step = largest magnitude / 127, ties to even.
static void int8_activations(int32_t type, const float * x, int32_t n, activations * out) {
    const int32_t offset = tile_offset(type);
    for (int32_t b = 0; b < n / 32; b++) {
        float largest = 0.0f;
        for (int i = 0; i < 32; i++) {
            // Not fmaxf: NaN must reach the step.
            const float magnitude = fabsf(x[32 * b + i]);
            largest = magnitude <= largest ? largest : magnitude;
        }
        const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
        int32_t     sums[2] = { 0, 0 };
        out[b].step = largest / 127.0f;
        for (int i = 0; i < 32; i += VF_LANES) {
            float rounded[VF_LANES];
            vf_store(rounded, vf_round(vf_mul(vf_load(x + 32 * b + i), vf_set1(inverse))));
            for (int k = 0; k < VF_LANES; k++) {
                const int32_t q = rounded[k] >= -127.0f && rounded[k] <= 127.0f ? (int32_t) rounded[k] : 0;
                out[b].q[i + k] = (int8_t) q;
                sums[(i + k) / 16] += q;
            }
        }
        out[b].start[0] = -offset * (tile_has_halves(type) ? sums[0] : sums[0] + sums[1]);
        out[b].start[1] = -offset * sums[1];
    }
}
