// hyper_step: the four residual streams around a block of the model: what the block reads, and what its output does to them.
//
// S_s: stream s of a token, D = n_embd numbers. m = dots / sqrt(mean(S^2) + norm_eps), the mean over all 4 D numbers.
//   open   pre_s  = sigmoid(m_s scale_0 + base_s) + eps
//          post_s = 2 sigmoid(m_{4+s} scale_1 + base_{4+s})
//          M[a][b] = m_{8+4a+b} scale_2 + base_{8+4a+b}; softmax over b, + eps; divided by (sum over a, + eps); then
//          n_iterations - 1 times: divided by (sum over b, + eps), divided by (sum over a, + eps)
//          x = sum_s pre_s S_s;  x / sqrt(mean(x^2) + norm_eps) * norm
//   close  out_b = post_b y + sum_a M[a][b] S_a
// With n_mixes == 4 (before the output) there are no post and M, and nothing closes.
// Order of summation: s and a ascending, from the first term on; y first.
// Source: deepseek-v4.md section 6, "Hyper-connection" and "Head".
#pragma once
#include "../step.h"
#ifdef __cplusplus
extern "C" {
#endif

enum {
    FATHOM_N_STREAMS = 4,
    FATHOM_N_MIXES = 24,  // 4 of pre, 4 of post, 16 of M
};

typedef struct fathom_hyper_step_args {
    int32_t n_tokens, n_embd;
    int32_t n_mixes, n_iterations;
    float   norm_eps, eps;
    const float * streams;  // f32 [n_embd, 4, n_tokens]
    const float * dots;     // f32 [n_mixes, n_tokens]: a dense product with the streams as they are
    const float * scale;    // f32 [3], or [1] with n_mixes == 4
    const float * base;     // f32 [n_mixes]
    const float * norm;     // f32 [n_embd]
    float *       x;        // f32 [n_embd, n_tokens]: the block's input
    float *       mix;      // f32 [20, n_tokens]: post, then M, from open to close
    const float * y;        // f32 [n_embd, n_tokens]: the block's output
    float *       out;      // f32 [n_embd, 4, n_tokens]; may be `streams` itself
} fathom_hyper_step_args;

void fathom_hyper_open(const fathom_hyper_step_args * args, int32_t ith, int32_t nth);
void fathom_hyper_close(const fathom_hyper_step_args * args, int32_t ith, int32_t nth);
void fathom_hyper_step_reference(const fathom_hyper_step_args * args);  // both; without y only open

#ifdef __cplusplus
}
#endif
