// The one place that knows which instruction sets exist and asks the processor for them.

#include "kernels.h"

#include <stdatomic.h>
#include <stdalign.h>

// build.rs defines FATHOM_WITH_<SET> for what it compiled; portable is always there.
extern const fathom_kernels fathom_kernels_portable, fathom_kernels_neon, fathom_kernels_avx2, fathom_kernels_avx512;

const fathom_kernels * fathom_kernels_for(int32_t isa) {
    switch (isa) {
        case FATHOM_ISA_PORTABLE:
            return &fathom_kernels_portable;
#ifdef FATHOM_WITH_NEON
        case FATHOM_ISA_NEON:  // part of every AArch64
            return &fathom_kernels_neon;
#endif
#ifdef FATHOM_WITH_AVX2
        case FATHOM_ISA_AVX2:  // no processor has AVX2 without F16C, and older compilers cannot ask for F16C
            return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") ? &fathom_kernels_avx2 : NULL;
#endif
#ifdef FATHOM_WITH_AVX512
        case FATHOM_ISA_AVX512:
            return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni") &&
                           __builtin_cpu_supports("avx512vbmi")
                       ? &fathom_kernels_avx512
                       : NULL;
#endif
        default:
            return NULL;
    }
}

// -1: not asked yet. Threads that race here find the same answer.
static _Atomic int32_t in_use = -1;

int32_t fathom_isa(void) {
    int32_t isa = atomic_load_explicit(&in_use, memory_order_relaxed);
    if (isa < 0) {
        isa = FATHOM_N_ISA - 1;
        while (!fathom_kernels_for(isa)) {
            --isa;
        }
        atomic_store_explicit(&in_use, isa, memory_order_relaxed);
    }
    return isa;
}

int32_t fathom_isa_use(int32_t isa) {
    if (!fathom_kernels_for(isa)) {
        return 1;
    }
    atomic_store_explicit(&in_use, isa, memory_order_relaxed);
    return 0;
}

// Without the questions to the processor: they were asked when the set was chosen.
static const fathom_kernels * current(void) {
    switch (fathom_isa()) {
#ifdef FATHOM_WITH_NEON
        case FATHOM_ISA_NEON: return &fathom_kernels_neon;
#endif
#ifdef FATHOM_WITH_AVX2
        case FATHOM_ISA_AVX2: return &fathom_kernels_avx2;
#endif
#ifdef FATHOM_WITH_AVX512
        case FATHOM_ISA_AVX512: return &fathom_kernels_avx512;
#endif
        default: return &fathom_kernels_portable;
    }
}

#define FATHOM_OP(op)
#define FATHOM_SCRATCH(op) \
    size_t fathom_##op##_scratch_bytes(const fathom_##op##_args * args, int32_t nth) { return current()->op##_scratch_bytes(args, nth); }
#define FATHOM_PHASE(op, name) \
    void fathom_##name(const fathom_##op##_args * args, int32_t ith, int32_t nth) { current()->name(args, ith, nth); }
#include "../ops/ops.def"

#define LAYOUT(type) { #type, sizeof(type), alignof(type) }

size_t fathom_layouts(const fathom_layout ** layouts) {
    static const fathom_layout all[] = {
        LAYOUT(fathom_run),
        LAYOUT(fathom_step),
        LAYOUT(fathom_rows),
        LAYOUT(fathom_window),
        LAYOUT(fathom_rope),
        LAYOUT(fathom_pending),
        LAYOUT(fathom_routing),
        LAYOUT(fathom_expert_weights),
        LAYOUT(fathom_moe_route_args),
        LAYOUT(fathom_expert_ffn_args),
        LAYOUT(fathom_kv_compress_args),
        LAYOUT(fathom_index_topk_args),
        LAYOUT(fathom_gather_attention_args),
        LAYOUT(fathom_norm_rope_args),
        LAYOUT(fathom_dense_args),
        LAYOUT(fathom_hyper_step_args),
        LAYOUT(fathom_kernels),
    };
    *layouts = all;
    return sizeof(all) / sizeof(all[0]);
}
