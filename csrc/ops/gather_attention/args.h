// gather_attention: attention over the sliding window and the chosen compressed rows; one key/value head for all query heads.
//
// For the token at position p of a run that began at position p0:
//   window rows      positions max(0, p - n_swa + 1) .. p; those >= p0 lie in `kv`, earlier ones in the run's window
//   compressed rows  ratio == 0: none; top != NULL: top[.., t], n_top[t] of them (CSA); else rows 0 .. (p+1)/ratio - 1 (HCA)
//   a = softmax over all of them of scale * q_h . row, with one more logit sinks[h] whose value is zero
//   out_h = sum a * row, then the last n_rot channels rotated back by the token's own position
// Order of summation: compressed rows ascending, then window rows ascending, in blocks counted from the first row; a streaming softmax in
// f32. 64 heads share each row that is read; nothing is concatenated, there is no mask.
// Source: deepseek-v4.md section 6, "Attention".
//
// `commit` afterwards copies the last n_swa rows of each run from `kv` to its window.
#pragma once
#include "../step.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct fathom_gather_attention_args {
    const fathom_step * step;
    int32_t n_head, d;        // d: channels of a head
    int32_t n_swa, ratio, top_k;
    int32_t row_type;         // of kv, window and rows
    int64_t row_bytes;
    float   scale;
    fathom_rope rope;
    const float * q;          // f32 [d, n_head, n_tokens], roped
    const void *  kv;         // rows of this step's tokens [row_bytes, n_tokens], roped and in the row type
    const float * sinks;      // f32 [n_head]
    const int32_t * top;      // i32 [top_k, n_tokens], ascending, or NULL
    const int32_t * n_top;    // i32 [n_tokens], with `top`
    const fathom_window * window;  // [n_runs]
    const fathom_rows *   rows;    // [n_runs], NULL when ratio == 0
    void *  scratch;          // 64-byte aligned
    float * out;              // f32 [d, n_head, n_tokens]
} fathom_gather_attention_args;

// Reads nothing of the step.
size_t fathom_gather_attention_scratch_bytes(const fathom_gather_attention_args * args, int32_t nth);
void fathom_gather_attention(const fathom_gather_attention_args * args, int32_t ith, int32_t nth);
void fathom_gather_attention_commit(const fathom_gather_attention_args * args, int32_t ith, int32_t nth);
void fathom_gather_attention_reference(const fathom_gather_attention_args * args);  // without commit

#ifdef __cplusplus
}
#endif
