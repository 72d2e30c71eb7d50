// Which instruction set this compilation is for, and the names that follow from it. First include of every cpu.c.
//
// build.rs compiles each cpu.c (and set.c) once per set, with FATHOM_FOR_<SET> defined and the compiler's flags for it.
#pragma once

#if defined(FATHOM_FOR_AVX512)
#define FATHOM_ISA_SUFFIX avx512
#elif defined(FATHOM_FOR_AVX2)
#define FATHOM_ISA_SUFFIX avx2
#elif defined(FATHOM_FOR_NEON)
#define FATHOM_ISA_SUFFIX neon
#else
#define FATHOM_ISA_SUFFIX portable
#endif

#define FATHOM_JOIN_(a, b) fathom_##a##_##b
#define FATHOM_JOIN(a, b) FATHOM_JOIN_(a, b)
// fathom_<name>_<set>: a kernel in cpu.c begins `void FATHOM_KERNEL(moe_route)(const fathom_moe_route_args * a, int32_t ith, int32_t nth)`.
#define FATHOM_KERNEL(name) FATHOM_JOIN(name, FATHOM_ISA_SUFFIX)
