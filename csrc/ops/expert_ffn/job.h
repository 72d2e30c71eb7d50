// The unit of work: JOB_ROWS rows of one expert's matrix times the activations of all tokens that chose the expert.
#pragma once

#include "../../simd/product.h"
#include "args.h"

#define JOB_ROWS PANEL_ROWS

// What happens to the products.
typedef enum emit { EMIT_GATE, EMIT_UP, EMIT_DOWN } emit;

typedef struct job {
    const fathom_expert_ffn_args * args;
    const fathom_expert_weights *  weights;
    emit            emit;
    int32_t         expert;
    int32_t         n_rows, n_cols;   // of the matrix
    int32_t         row, n_valid;     // rows whose products are wanted: row .. row + n_valid - 1
    int32_t         first_row;        // rows that are read: first_row .. first_row + JOB_ROWS - 1
    const uint8_t * rows;
    const int32_t * pairs;            // token * n_used + slot of every pair of this expert
    int32_t         first, n_pairs;   // the expert's place among all pairs
    const uint8_t * x;                // activations in the partner's format
    int64_t         x_bytes;          // of one token
    int32_t         x_by_pair;        // one row of x for every pair, not for every token
    float *         h;                // f32 [n_ff, pairs]
    uint8_t *       buffer;           // of this thread
    uint8_t *       padded;           // of this thread
    const uint8_t * ahead;            // the rows that come next: JOB_ROWS * row_bytes
} job;

TILE_INLINE const void * job_x(const job * j, int32_t i) {
    const int64_t row = j->x_by_pair ? j->first + i : j->pairs[i] / j->args->n_used;
    return j->x + row * j->x_bytes;
}

// silu(min(g, clamp)) * clamp(u, -clamp, clamp). Minima with the number second: they keep NaN.
TILE_INLINE vf job_act(vf g, vf u, float clamp) {
    const vf bound = vf_set1(clamp);
    g = vf_min(bound, g);
    u = vf_max(vf_sub(vf_set1(0.0f), bound), vf_min(bound, u));
    const vf e = vf_exp(vf_min(vf_set1(88.0f), vf_sub(vf_set1(0.0f), g)));
    return vf_mul(vf_div(g, vf_add(vf_set1(1.0f), e)), u);
}

// Takes the products of pair i with tile r of the rows that are read.
TILE_INLINE void job_emit(const job * j, int32_t i, int r, vf product) {
    const fathom_expert_ffn_args * a = j->args;
    const int32_t at    = j->first_row + r * TILE_ROWS;  // row of lane 0
    const int32_t begin = j->row > at ? j->row - at : 0;
    const int32_t past  = j->row + j->n_valid - at;
    const int32_t n     = (past < TILE_ROWS ? past : TILE_ROWS) - begin;
    if (n <= 0) {
        return;
    }
    const int64_t token = j->pairs[i] / a->n_used;
    float *       out   = (j->emit == EMIT_DOWN ? a->y + token * a->n_embd : j->h + (int64_t) (j->first + i) * a->n_ff) + at + begin;
    const int     whole = n == TILE_ROWS;
    float         some[TILE_ROWS] = { 0 };
    if (!whole) {
        vf_store(some, product);
        memmove(some, some + begin, (size_t) n * sizeof(float));
        product = vf_load(some);
        memcpy(some, out, (size_t) n * sizeof(float));
    }
    if (j->weights->scales) {
        product = vf_mul(product, vf_set1(j->weights->scales[j->expert]));
    }
    if (j->emit != EMIT_GATE) {
        const vf before = vf_load(whole ? out : some);
        product = j->emit == EMIT_UP ? job_act(before, product, a->clamp) : vf_fma(vf_set1(a->weights[j->pairs[i]]), product, before);
    }
    vf_store(whole ? out : some, product);
    if (!whole) {
        memcpy(out, some, (size_t) n * sizeof(float));
    }
}
