// norm_rope: RMS norm of each head, rotary embedding of its last channels, stored in a row type.
//
//   y = x / sqrt(mean(x^2) + eps) [* weight];  last n_rot channels rotated by the token's position
// eps < 0: no norm (index queries). Used for q (no weight, f32 out), kv (weight, row type out) and index queries (rope only).
// Source: deepseek-v4.md section 6, "Attention" and "Rope".
#pragma once
#include "../step.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct fathom_norm_rope_args {
    const fathom_step * step;
    int32_t n_head, d;
    float   eps;
    fathom_rope rope;
    const float * x;       // f32 [d, n_head, n_tokens]
    const float * weight;  // f32 [d], or NULL
    int32_t row_type;
    int64_t row_bytes;
    void *  out;           // rows [row_bytes, n_head, n_tokens]; may be x itself for f32
} fathom_norm_rope_args;

void fathom_norm_rope(const fathom_norm_rope_args * args, int32_t ith, int32_t nth);
void fathom_norm_rope_reference(const fathom_norm_rope_args * args);

#ifdef __cplusplus
}
#endif
