// All of csrc that Rust sees: plain C, fixed-width types, prefix `fathom_`.
// Rust's side: src/kernels/sys.rs (generated from this file), src/engine/llama/sys.rs for `fathom_llama_*`.
#pragma once

#include "simd/kernels.h"

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#define FATHOM_NOEXCEPT noexcept
#else
#define FATHOM_NOEXCEPT
#endif

struct llama_context;

// Bytes that a llama.cpp context and its model take.
typedef struct fathom_llama_memory {
    uint64_t weights;
    uint64_t cache;
    uint64_t compute;
    uint64_t device;  // the part of the sum that is in the memory of a GPU
} fathom_llama_memory;

// 0 on success.
int32_t fathom_llama_memory_of(const struct llama_context * context, fathom_llama_memory * out) FATHOM_NOEXCEPT;

#ifdef __cplusplus
}
#endif
