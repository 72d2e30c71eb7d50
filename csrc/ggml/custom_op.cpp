// Our ops as nodes of ggml graphs, and the one thing of ggml's private headers that we need. The only file that includes both.
//
// A node is GGML_OP_CUSTOM; its userdata is the op's argument struct, which Rust owns and completes before each run. Sources of
// the node say what it depends on; the kernel takes its pointers from the arguments.

#include "../fathom.h"

#include "ggml.h"
#include "ggml-impl.h"

#include <cstring>

#define FATHOM_OP(op)
#define FATHOM_SCRATCH(op)
#define FATHOM_PHASE(op, name)                                                                    \
    extern "C" void fathom_node_##name(ggml_tensor *, int ith, int nth, void * userdata) {        \
        fathom_##name(static_cast<const fathom_##op##_args *>(userdata), ith, nth);               \
    }
#include "../ops/ops.def"

// Writes nodes `begin` .. `end - 1` of a graph as a graph of its own. 0 on success.
extern "C" int32_t fathom_graph_view(ggml_cgraph * graph, int32_t begin, int32_t end, void * out, size_t bytes) {
    if (sizeof(ggml_cgraph) > bytes) {
        return 1;
    }
    const ggml_cgraph view = ggml_graph_view(graph, begin, end);
    std::memcpy(out, &view, sizeof(view));
    return 0;
}
