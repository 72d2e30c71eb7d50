// moe_route: which experts compute a token, and with which weight.
//
//   s_e    = sqrt(softplus(logits_e))                                    (float32; softplus(l) = l for l > 20)
//   chosen = the n_used largest of s_e + bias_e, ties to the lower e     (table == NULL)
//          = table[token]                                                (hash layers; no bias)
//   p_i    = scale * s_i / (1e-20 + sum of chosen s)                     (the bias is not in the weights)
// Source: deepseek-v4.md section 6, "MoE"; 1e-20 as in transformers, for scores that are all zero.
//
// Then the routing policy (routing-and-sparse-attention.md A.2) keeps some of the chosen experts. Candidates are in the order
// of pi_i = p_i nu_i / sum p_j nu_j descending (nu = 1 without `expert_norm`; ties to the lower rank of the selection):
//   off     all
//   topk    the first k_max
//   rel     the longest prefix with pi_i >= threshold * pi_0
//   mass    the shortest prefix with sum pi >= threshold; all if threshold >= 1
//   margin  the longest prefix with log(pi_i / pi_0) + beta * margin_i >= threshold;  margin_i = (s+bias)_i minus the best
//           (s+bias) that was not chosen (infinite if all experts were)
// the length of the prefix is clipped to [k_min, k_max]; protected experts are kept beyond it. If any was dropped, kept weights are
// multiplied by r^-rho * alpha, r = kept sum of p / whole sum of p; otherwise they stay as they are, bit for bit.
// Dropped slots: id -1, weight 0. Hash layers are exempt unless `route_hash`.
//
// Kernels compute in float32, scalar and in this order, so that all of them choose the same ids. A NaN among the logits still
// gives n_used different ids.
#pragma once
#include "../step.h"
#ifdef __cplusplus
extern "C" {
#endif

enum { FATHOM_ROUTING_OFF, FATHOM_ROUTING_TOPK, FATHOM_ROUTING_REL, FATHOM_ROUTING_MASS, FATHOM_ROUTING_MARGIN };

// The policy of one layer.
typedef struct fathom_routing {
    int32_t         policy;
    int32_t         k_min, k_max;
    int32_t         route_hash;
    float           threshold, beta, rho, alpha;
    const float *   expert_norm;  // f32 [n_expert] or NULL
    const uint8_t * is_protected; // u8 [n_expert] or NULL
} fathom_routing;

typedef struct fathom_moe_route_args {
    int32_t n_tokens, n_expert, n_used;
    float   scale;
    const float *   logits;  // f32 [n_expert, n_tokens]
    const float *   bias;    // f32 [n_expert], or NULL
    const int32_t * table;   // i32 [n_used, n_vocab], or NULL
    const int32_t * tokens;  // i32 [n_tokens], read with `table` only
    const fathom_routing * const * routing; // [n_tokens]: the policy of each token's sequence in this layer; or NULL: off for all
    int32_t * ids;           // i32 [n_used, n_tokens], order of selection; -1 = dropped
    float *   weights;       // f32 [n_used, n_tokens]
    int32_t * n_active;      // i32 [n_tokens]
} fathom_moe_route_args;

// Largest n_used.
#define FATHOM_MOE_ROUTE_MAX_USED 64

void fathom_moe_route(const fathom_moe_route_args * args, int32_t ith, int32_t nth);
void fathom_moe_route_reference(const fathom_moe_route_args * args);

#ifdef __cplusplus
}
#endif
