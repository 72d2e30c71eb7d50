// kv_compress: pools groups of `ratio` tokens into one compressed row each.
//
// Width w = d * (1 + overlap). Group g covers positions g*ratio .. g*ratio+ratio-1 and is made in the step that holds its
// last token. Slot s of the softmax is one position j: logit z_j + ape[j % ratio], value u_j, per channel.
//   no overlap (HCA): the `ratio` positions of the group, channels 0..d
//   overlap (CSA):    the first halves (channels 0..d) of the positions of group g-1 and the second halves (channels d..2d) of
//                     those of group g; for g = 0 only the latter
//   e = sum_s softmax_s(logit) * value;  row = rope(e / sqrt(mean(e^2) + eps) * norm) at position g*ratio
// then, for index keys in FATHOM_ROW_FP4, a normalised Hadamard transform (Sylvester order); then stored in the row's type.
// All in float32. Source: deepseek-v4.md section 6, "Compressor".
//
// Two phases: `rows` makes and stores the rows of the groups that this step completes; `commit` then keeps u and z of the last
// tokens for the next step (slot of position p: p % n_pending), z with ape added.
#pragma once
#include "../step.h"
#ifdef __cplusplus
extern "C" {
#endif

// Open state of one sequence: u and z of positions that a later group needs.
typedef struct fathom_pending {
    float * u;  // f32 [w, n_pending]
    float * z;  // f32 [w, n_pending]
} fathom_pending;

typedef struct fathom_kv_compress_args {
    const fathom_step * step;
    int32_t d, ratio, overlap;
    int32_t n_pending;       // ratio * (1 + overlap)
    int32_t hadamard;
    float   eps;
    fathom_rope rope;
    const float * u;         // f32 [w, n_tokens]
    const float * z;         // f32 [w, n_tokens], without ape
    const float * ape;       // f32 [w, ratio]
    const float * norm;      // f32 [d]
    const fathom_pending * pending;  // [n_runs]
    const fathom_rows *    rows;     // [n_runs], segments present for every row that the step completes
} fathom_kv_compress_args;

void fathom_kv_compress_rows(const fathom_kv_compress_args * args, int32_t ith, int32_t nth);
void fathom_kv_compress_commit(const fathom_kv_compress_args * args, int32_t ith, int32_t nth);
void fathom_kv_compress_reference(const fathom_kv_compress_args * args);  // both phases

#ifdef __cplusplus
}
#endif
