// dense: rows are split among the threads and taken PANEL_ROWS at a time, for all tokens (simd/product.h). While one panel of rows is
// computed the next one is fetched, so that one token runs at the speed of memory.
//
// Rounded activations lie block by block, each block of all tokens together: a panel of 32 columns then meets its
// tokens in a row, and no power of two lies between two of them.

#include "../../simd/isa.h"
#include "args.h"

#include "../../simd/product.h"

static int32_t n_blocks_of(const fathom_dense_args * a) {
    return a->n_groups * (a->n_cols / 32);
}

size_t FATHOM_KERNEL(dense_scratch_bytes)(const fathom_dense_args * a, int32_t nth) {
    (void) nth;
    return sizeof(activations) * (size_t) n_blocks_of(a) * (size_t) a->n_tokens;
}

void FATHOM_KERNEL(dense_round)(const fathom_dense_args * a, int32_t ith, int32_t nth) {
    enum { TOKENS = 8 };  // that are read side by side
    const int64_t n_blocks = n_blocks_of(a), n_tokens = a->n_tokens;
    const int64_t begin = n_blocks * ith / nth, end = n_blocks * (ith + 1) / nth;
    activations * out = a->scratch;
    for (int64_t first = 0; first < n_tokens; first += TOKENS) {
        const int64_t past = first + TOKENS < n_tokens ? first + TOKENS : n_tokens;
        for (int64_t b = begin; b < end; b++) {
            for (int64_t t = first; t < past; t++) {
                activations_round(FATHOM_TYPE_Q8_0, a->x + (t * n_blocks + b) * 32, out + b * n_tokens + t);
            }
        }
    }
}

// The rows that are read for a panel of all groups: the last one of a group begins where a whole one still fits.
typedef struct place {
    int64_t group, row, first_row;
    const uint8_t * rows;
} place;

static place place_of(const fathom_dense_args * a, int64_t index) {
    const int64_t n_panels = (a->n_rows + PANEL_ROWS - 1) / PANEL_ROWS;
    place at = { .group = index / n_panels, .row = index % n_panels * PANEL_ROWS };
    at.first_row = at.row + PANEL_ROWS <= a->n_rows ? at.row : a->n_rows - PANEL_ROWS;
    at.rows = (const uint8_t *) a->weights + (at.group * a->n_rows + at.first_row) * a->row_bytes;
    return at;
}

void FATHOM_KERNEL(dense_product)(const fathom_dense_args * a, int32_t ith, int32_t nth) {
    const int64_t n_all = (a->n_rows + PANEL_ROWS - 1) / PANEL_ROWS * (int64_t) a->n_groups;
    const int64_t begin = n_all * ith / nth, end = n_all * (ith + 1) / nth;
    const int32_t n_blocks = a->n_cols / 32;
    for (int64_t index = begin; index < end; index++) {
        const place at = place_of(a, index), next = place_of(a, index + 1 < end ? index + 1 : index);
        const activations * x = (const activations *) a->scratch + at.group * n_blocks * a->n_tokens;
        for (int64_t first = 0; first < a->n_tokens; first += PANEL_CHUNK) {
            const int32_t       n = (int32_t) (a->n_tokens - first < PANEL_CHUNK ? a->n_tokens - first : PANEL_CHUNK);
            const activations * tokens[PANEL_CHUNK];
            float               sums[PANEL_CHUNK * PANEL_ROWS];
            for (int32_t t = 0; t < n; t++) {
                tokens[t] = x + first + t;
            }
            product_rows(FATHOM_TYPE_Q8_0, n, at.rows, a->row_bytes, n_blocks, tokens, a->n_tokens, next.rows, sums);
            const int64_t skip = at.row - at.first_row;
            for (int32_t t = 0; t < n; t++) {
                memcpy(a->y + ((first + t) * a->n_groups + at.group) * a->n_rows + at.row, sums + t * PANEL_ROWS + skip,
                       sizeof(float) * (size_t) (PANEL_ROWS - skip));
            }
        }
    }
}
