// ggml's numbers of the element types that have kernels of their own.
#pragma once

enum {
    FATHOM_TYPE_F32   = 0,
    FATHOM_TYPE_F16   = 1,
    FATHOM_TYPE_Q8_0  = 8,
    FATHOM_TYPE_BF16  = 30,
    FATHOM_TYPE_MXFP4 = 39,
    FATHOM_TYPE_NVFP4 = 40,
};
