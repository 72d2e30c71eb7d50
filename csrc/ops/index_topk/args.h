// index_topk: the compressed rows that a token attends to.
//
// Token at position p sees rows 0 .. (p+1)/ratio - 1 (integer division).
//   score(w) = sum over heads h:  weights_h * scale * relu(q_h . k_w)
// in an order of summation that is the kernel's own and the same for every key.
// Kept: the top_k largest, ties to the lower row; all of them if there are no more than top_k (nothing is computed then).
// Written in ascending order of rows, the rest filled with -1. No score matrix, no mask: scores of a block of rows are
// compared with the running threshold and forgotten.
// Keys in FATHOM_ROW_FP4 are in the Hadamard basis: q is rotated and rounded in the same way first (deepseek-v4.md section 6,
// "Rounding"); n_embd is a power of two then.
// Source: deepseek-v4.md section 6, "Indexer".
#pragma once
#include "../step.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct fathom_index_topk_args {
    const fathom_step * step;
    int32_t n_head, n_embd;  // of the indexer
    int32_t ratio, top_k;
    float   scale;
    const float * q;         // f32 [n_embd, n_head, n_tokens], roped
    const float * weights;   // f32 [n_head, n_tokens]
    const fathom_rows * keys;  // [n_runs]
    void *    scratch;       // 64-byte aligned, kept from phase to phase
    int32_t * top;           // i32 [top_k, n_tokens]
    int32_t * n_top;         // i32 [n_tokens]
} fathom_index_topk_args;

// Grows with step->n_tokens and nth and reads nothing else of the step: ask with the largest of both.
size_t fathom_index_topk_scratch_bytes(const fathom_index_topk_args * args, int32_t nth);
// Two phases: with few tokens the rows are split among the threads (`scan`), and the parts are joined (`merge`).
void fathom_index_topk_scan(const fathom_index_topk_args * args, int32_t ith, int32_t nth);
void fathom_index_topk_merge(const fathom_index_topk_args * args, int32_t ith, int32_t nth);
void fathom_index_topk_reference(const fathom_index_topk_args * args);

#ifdef __cplusplus
}
#endif
