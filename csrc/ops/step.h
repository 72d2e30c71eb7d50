// What the ops share: the tokens of one engine step, the rows of the KV cache, rotary positions.
//
// Shapes are in ggml's order (fastest dimension first), sizes count elements, `_bytes` counts bytes. Integers come
// from Rust, which has checked them: kernels trust their arguments. Every kernel has the form
//     void fathom_<op>(const fathom_<op>_args * args, int32_t ith, int32_t nth)
// is run by `nth` threads at once, writes only its own part of the outputs, and has no barrier inside: what needs "all
// threads finished" is an op (or phase) of its own. What a token gets does not depend on the tokens beside it, nor on
// `nth`: the order of summation is fixed by the token's own shapes.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Consecutive tokens of one sequence within a step.
typedef struct fathom_run {
    int32_t first;     // index of the first token in the step
    int32_t n_tokens;
    int64_t pos;       // position of the first token
} fathom_run;

// The tokens of one step: run after run, nothing between.
typedef struct fathom_step {
    int32_t            n_tokens;
    int32_t            n_runs;
    const fathom_run * runs;          // [n_runs]
    const int32_t *    run_of_token;  // i32 [n_tokens]
} fathom_step;

// How the numbers of one cached row are kept. Rows have a multiple of 32 channels, an even number of them rotary.
enum {
    FATHOM_ROW_F32 = 0,
    FATHOM_ROW_F16 = 1,
    // What the released runtime keeps. A key/value row of d channels with r rotary ones: d-r bytes e4m3 in groups of 64
    // (the last one may be shorter), then one byte E8M0 scale a group (one byte of padding if their number is odd), then
    // r BF16. 584 bytes at 512/64. Rows begin at even addresses.
    FATHOM_ROW_FP8 = 2,
    // An index key of d channels after the Hadamard rotation: d/2 bytes e2m1 (element 2j in the low nibble of byte j),
    // then d/32 bytes E8M0. 68 bytes at 128.
    FATHOM_ROW_FP4 = 3,
};

// Bytes of one row of d channels, n_rot of them rotary (which matters to FATHOM_ROW_FP8 only); one row from f32 and to f32.
// A row of FATHOM_ROW_FP4 holds what the numbers were after the Hadamard rotation, and comes back so.
int64_t fathom_row_bytes(int32_t row_type, int32_t d, int32_t n_rot);
void fathom_row_store(int32_t row_type, int32_t d, int32_t n_rot, const float * x, void * row);
void fathom_row_load(int32_t row_type, int32_t d, int32_t n_rot, const void * row, float * x);

// The compressed rows (or index keys) of one layer and one sequence. Row i lies in segment i >> log2_segment_rows. Full
// segments are never written again and may be shared between sequences.
typedef struct fathom_rows {
    void * const * segments;
    int32_t        log2_segment_rows;
    int32_t        row_type;
    int64_t        row_bytes;
} fathom_rows;

// The most recent rows of one layer and one sequence: the row of position p lies in slot p % n_slots.
typedef struct fathom_window {
    void *  rows;
    int32_t n_slots;   // = sliding window
    int32_t row_type;
    int64_t row_bytes;
} fathom_window;

// Rotary embedding of the last n_rot channels, pairs (2i, 2i+1). The angle of pair i at position p is the float product
// (float) p * freq[i], as the released runtime computes it; YaRN is already in freq, the attention factor is 1.
typedef struct fathom_rope {
    int32_t       n_rot;
    const float * freq;  // f32 [n_rot / 2]
} fathom_rope;

#ifdef __cplusplus
}
#endif
