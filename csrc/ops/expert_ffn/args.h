// expert_ffn: the routed experts.
//
//   y_t = sum over slots j with ids[j,t] >= 0, in the order of ids:  weights[j,t] * down_e . act(gate_e . x_t, up_e . x_t)
//   act(g, u) = silu(min(g, clamp)) * clamp(u, -clamp, clamp),  e = ids[j,t]
// Source: deepseek-v4.md section 6. Slots with id < 0 cost nothing and whatever lies in their scratch never reaches y.
// A product with a matrix includes the factor of that matrix, if there is one.
// Expert matrices are reached through tables of pointers, so that they may live in slots of a cache.
//
// Four phases, each run by all threads, in this order:
//   prepare   x to the dot partner's format, and tokens grouped by expert (prefill)
//   gate_up   h = act(gate x, up x)
//   regroup   h to the dot partner's format
//   down      y
// `exact` keeps activations in f32 and expands weights on the fly: what --f32 uses. Otherwise activations meet 4- and 8-bit
// weights as blocks of 32 signed bytes with an f32 step (largest magnitude / 127, ties to even), floats as f32, other types
// as ggml's partner type.
#pragma once
#include "../step.h"
#include "../types.h"
#ifdef __cplusplus
extern "C" {
#endif

// One of the three stacks of expert matrices.
typedef struct fathom_expert_weights {
    int32_t              type;       // ggml's number of the element type
    int64_t              row_bytes;
    const void * const * experts;    // [n_expert], each n_rows rows
    const float *        scales;     // f32 [n_expert], factor of a whole matrix (`.scale` of NVFP4 files), or NULL: 1
    // For types without a kernel of ours: ggml's dot product with its partner type, and its expansion to f32.
    void (*vec_dot)(int n, float * s, size_t bs, const void * x, size_t bx, const void * y, size_t by, int nrc);
    void (*to_float)(const void * x, float * y, int64_t n);
    void (*partner_from_float)(const float * x, void * y, int64_t n);
    int64_t partner_bytes;           // of one activation row in the partner type
} fathom_expert_weights;

typedef struct fathom_expert_ffn_args {
    int32_t n_tokens, n_expert, n_used, n_embd, n_ff;
    int32_t exact;
    float   clamp;            // INFINITY: none
    fathom_expert_weights gate, up;  // rows of n_embd, n_ff of them
    fathom_expert_weights down;      // rows of n_ff, n_embd of them
    const float *   x;        // f32 [n_embd, n_tokens]
    const int32_t * ids;      // i32 [n_used, n_tokens]
    const float *   weights;  // f32 [n_used, n_tokens]
    void *  scratch;          // fathom_expert_ffn_scratch_bytes(args), 64-byte aligned, kept from phase to phase
    float * y;                // f32 [n_embd, n_tokens]
} fathom_expert_ffn_args;

// For the largest n_tokens that will be used and any number of threads up to `nth`.
size_t fathom_expert_ffn_scratch_bytes(const fathom_expert_ffn_args * args, int32_t nth);
void fathom_expert_ffn_prepare(const fathom_expert_ffn_args * args, int32_t ith, int32_t nth);
void fathom_expert_ffn_gate_up(const fathom_expert_ffn_args * args, int32_t ith, int32_t nth);
void fathom_expert_ffn_regroup(const fathom_expert_ffn_args * args, int32_t ith, int32_t nth);
void fathom_expert_ffn_down(const fathom_expert_ffn_args * args, int32_t ith, int32_t nth);
void fathom_expert_ffn_reference(const fathom_expert_ffn_args * args);

#ifdef __cplusplus
}
#endif
