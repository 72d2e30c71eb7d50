// The table of one instruction set; compiled once per set.

#include "isa.h"
#include "kernels.h"

#define FATHOM_OP(op)
#define FATHOM_SCRATCH(op)     size_t FATHOM_KERNEL(op##_scratch_bytes)(const fathom_##op##_args * args, int32_t nth);
#define FATHOM_PHASE(op, name) void FATHOM_KERNEL(name)(const fathom_##op##_args * args, int32_t ith, int32_t nth);
#include "../ops/ops.def"

int64_t FATHOM_KERNEL(roof_fma)(int64_t n, float * sink);
int64_t FATHOM_KERNEL(roof_dot4)(int64_t n, float * sink);
void FATHOM_KERNEL(roof_read)(const float * data, int64_t n, float * sink);

extern const fathom_kernels FATHOM_KERNEL(kernels);
const fathom_kernels FATHOM_KERNEL(kernels) = {
#define FATHOM_OP(op)
#define FATHOM_SCRATCH(op)     .op##_scratch_bytes = FATHOM_KERNEL(op##_scratch_bytes),
#define FATHOM_PHASE(op, name) .name = FATHOM_KERNEL(name),
#include "../ops/ops.def"
    .roof_fma = FATHOM_KERNEL(roof_fma),
    .roof_dot4 = FATHOM_KERNEL(roof_dot4),
    .roof_read = FATHOM_KERNEL(roof_read),
};
