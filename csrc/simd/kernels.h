// The kernels of one instruction set, and which of them this processor can run.
//
// Every csrc/ops/<op>/cpu.c is compiled once per instruction set. `fathom_<phase>` (the functions that the contracts declare)
// call the set in use: the best one of this processor unless fathom_isa_use chose another.
#pragma once

#include "../ops/dense/args.h"
#include "../ops/expert_ffn/args.h"
#include "../ops/gather_attention/args.h"
#include "../ops/hyper_step/args.h"
#include "../ops/index_topk/args.h"
#include "../ops/kv_compress/args.h"
#include "../ops/moe_route/args.h"
#include "../ops/norm_rope/args.h"

#ifdef __cplusplus
extern "C" {
#endif

// Ascending: of two sets that a processor has, the larger number is the faster one.
enum {
    FATHOM_ISA_PORTABLE = 0,
    FATHOM_ISA_NEON     = 1,
    FATHOM_ISA_AVX2     = 2,  // with FMA, F16C, BMI2
    FATHOM_ISA_AVX512   = 3,  // F, BW, VL, DQ, VNNI, VBMI: Ice Lake and Zen 4 on
    FATHOM_N_ISA        = 4,
};

typedef struct fathom_kernels {
#define FATHOM_OP(op)
#define FATHOM_SCRATCH(op)     size_t (*op##_scratch_bytes)(const fathom_##op##_args * args, int32_t nth);
#define FATHOM_PHASE(op, name) void (*name)(const fathom_##op##_args * args, int32_t ith, int32_t nth);
#include "../ops/ops.def"
    // What one core can do (simd/roof.c): n rounds of multiply-adds of floats, of bytes, which return how many that were;
    // n floats read. sink: two numbers that the compiler does not know.
    int64_t (*roof_fma)(int64_t n, float * sink);
    int64_t (*roof_dot4)(int64_t n, float * sink);
    void (*roof_read)(const float * data, int64_t n, float * sink);
} fathom_kernels;

// NULL if the set was not compiled in or this processor lacks it.
const fathom_kernels * fathom_kernels_for(int32_t isa);
// The set in use.
int32_t fathom_isa(void);
// Uses another set from now on, in all threads; 0 on success. For tests and for finding faults.
int32_t fathom_isa_use(int32_t isa);

// What the other side of a binding must agree with.
typedef struct fathom_layout {
    const char * name;
    size_t       size, alignment;
} fathom_layout;

// The structs of all contracts; returns how many.
size_t fathom_layouts(const fathom_layout ** layouts);

#ifdef __cplusplus
}
#endif
