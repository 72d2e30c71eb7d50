// 4- and 8-bit weights times activations in blocks of 32 signed bytes (simd/product.h).
#pragma once

#include "job.h"

TILE_INLINE void int8_rows_of(int32_t type, const job * j) {
    float sums[PANEL_CHUNK * PANEL_ROWS];
    for (int32_t i = 0; i < j->n_pairs; i += PANEL_CHUNK) {
        const int32_t       n = j->n_pairs - i < PANEL_CHUNK ? j->n_pairs - i : PANEL_CHUNK;
        const activations * x[PANEL_CHUNK];
        for (int32_t t = 0; t < n; t++) {
            x[t] = job_x(j, i + t);
        }
        product_rows(type, n, j->rows, j->weights->row_bytes, j->n_cols / 32, x, 1, j->ahead, sums);
        for (int32_t t = 0; t < n; t++) {
            for (int r = 0; r < PANEL_TILES; r++) {
                job_emit(j, i + t, r, vf_load(sums + t * PANEL_ROWS + r * TILE_ROWS));
            }
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
