// dense: products with matrices of Q8_0, whole or in groups.
//
//   y[r,g,t] = sum over c of  w[c,r,g] * x'[c,g,t]
//   x' is x in blocks of 32 columns of whole numbers: step = largest magnitude / 127, ties to even. An input that is not finite
//   makes the products with its block NaN.
// Source: the linear maps of deepseek-v4.md section 6; groups are those of the attention's output, one of them is a plain matrix.
// The rounding is that of ggml's partner of Q8_0 but for the step, which stays f32 where ggml has f16. Sums of a block are exact
// and blocks are added in f32 in their order.
//
// Two phases: round reads x and writes the scratch, product reads it. Products with the same x may share what one round has
// written: it depends on x and its size only.
#pragma once
#include "../step.h"
#include "../types.h"
#ifdef __cplusplus
extern "C" {
#endif

// Fewer rows are ggml's business.
enum { FATHOM_DENSE_MIN_ROWS = 32 };

typedef struct fathom_dense_args {
    int32_t n_tokens, n_groups;
    int32_t n_rows, n_cols;   // of one group's matrix: at least FATHOM_DENSE_MIN_ROWS, a multiple of 32
    int64_t row_bytes;
    const void *  weights;    // Q8_0 [n_cols, n_rows, n_groups]
    const float * x;          // f32 [n_cols, n_groups, n_tokens]
    void *        scratch;    // fathom_dense_scratch_bytes(args)
    float *       y;          // f32 [n_rows, n_groups, n_tokens]
} fathom_dense_args;

// Depends on n_tokens and n_groups * n_cols.
size_t fathom_dense_scratch_bytes(const fathom_dense_args * args, int32_t nth);
void fathom_dense_round(const fathom_dense_args * args, int32_t ith, int32_t nth);
void fathom_dense_product(const fathom_dense_args * args, int32_t ith, int32_t nth);
void fathom_dense_reference(const fathom_dense_args * args);

#ifdef __cplusplus
}
#endif
