// llama.cpp tells what it has allocated only through a C++ map: add it up.

#include "../fathom.h"

#include "llama-ext.h"

int32_t fathom_llama_memory_of(const llama_context * context, fathom_llama_memory * out) noexcept {
    *out = {};
    try {
        for (const auto & [type, bytes] : llama_get_memory_breakdown(context)) {
            out->weights += bytes.model;
            out->cache   += bytes.context;
            out->compute += bytes.compute;
            if (!ggml_backend_buft_is_host(type)) {
                const ggml_backend_dev_t device = ggml_backend_buft_get_device(type);
                // The CPU's own layouts (CPU_REPACK) are not "host" buffers either.
                if (device && ggml_backend_dev_type(device) != GGML_BACKEND_DEVICE_TYPE_CPU) {
                    out->device += bytes.total();
                }
            }
        }
    } catch (...) {
        return 1;
    }
    return 0;
}
