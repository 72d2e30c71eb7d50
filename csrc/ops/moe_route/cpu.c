// Scalar for every instruction set: 256 scores are a few microseconds, and all processors must choose the same experts.
// Tokens are split among the threads.

#include "../../simd/isa.h"
#include "args.h"

#include <math.h>

// Above the n_used that any release has; Rust checks it.
#define MAX_USED FATHOM_MOE_ROUTE_MAX_USED

typedef struct candidate {
    int32_t rank;  // place in the order of selection
    float   share, margin;
} candidate;

static float score_of(float logit) {
    return sqrtf(logit > 20.0f ? logit : log1pf(expf(logit)));
}

// The n largest of score + bias, ties to the lower expert. NaN loses against everything, but keeps its place among the first n.
// Returns the best value that was not chosen.
static float select_experts(const float * logits, const float * bias, int32_t n_expert, int32_t n, int32_t * ids, float * scores) {
    float   biased[MAX_USED];
    int32_t filled   = 0;
    float   rejected = -INFINITY;
    for (int32_t e = 0; e < n_expert; e++) {
        const float score = score_of(logits[e]);
        const float value = bias ? score + bias[e] : score;
        if (filled == n && !(value > biased[n - 1])) {
            rejected = value > rejected ? value : rejected;
            continue;
        }
        int32_t at = filled;
        if (filled == n) {
            rejected = biased[n - 1] > rejected ? biased[n - 1] : rejected;
            at       = n - 1;
        } else {
            filled++;
        }
        for (; at > 0 && value > biased[at - 1]; at--) {
            biased[at] = biased[at - 1];
            ids[at]    = ids[at - 1];
            scores[at] = scores[at - 1];
        }
        biased[at] = value;
        ids[at]    = e;
        scores[at] = score;
    }
    return rejected;
}

// Length of the prefix of candidates that the policy keeps.
static int32_t n_kept(const fathom_routing * r, const candidate * c, int32_t n) {
    int32_t kept = 0;
    float   mass = 0.0f;
    switch (r->policy) {
        case FATHOM_ROUTING_TOPK:
            kept = r->k_max;
            break;
        case FATHOM_ROUTING_REL:
            while (kept < n && c[kept].share >= r->threshold * c[0].share) {
                kept++;
            }
            break;
        case FATHOM_ROUTING_MASS:
            while (kept < n && (mass < r->threshold || r->threshold >= 1.0f)) {
                mass += c[kept++].share;
            }
            break;
        case FATHOM_ROUTING_MARGIN:
            while (kept < n) {
                // Without a beta an infinite margin must not become NaN.
                const float margin = r->beta != 0.0f ? r->beta * c[kept].margin : 0.0f;
                if (!(logf(c[kept].share / c[0].share) + margin >= r->threshold)) {
                    break;
                }
                kept++;
            }
            break;
        default:
            return n;
    }
    kept = kept < r->k_min ? r->k_min : kept;
    kept = kept > r->k_max ? r->k_max : kept;
    return kept < n ? kept : n;
}

// Applies a policy to one token; returns how many experts stay.
static int32_t apply(const fathom_routing * r, const float * margins, int32_t n, int32_t * ids, float * weights) {
    candidate c[MAX_USED];
    float     norm = 0.0f;
    for (int32_t j = 0; j < n; j++) {
        const float     share = r->expert_norm ? weights[j] * r->expert_norm[ids[j]] : weights[j];
        const candidate own   = { j, share, margins[j] };
        norm += share;
        int32_t at = j;
        for (; at > 0 && share > c[at - 1].share; at--) {
            c[at] = c[at - 1];
        }
        c[at] = own;
    }
    for (int32_t i = 0; i < n; i++) {
        c[i].share /= norm;
    }
    const int32_t keep = n_kept(r, c, n);

    int32_t active = 0;
    float   kept = 0.0f, whole = 0.0f;
    for (int32_t i = 0; i < n; i++) {
        const int32_t j = c[i].rank;
        whole += weights[j];
        if (i < keep || (r->is_protected && r->is_protected[ids[j]])) {
            kept += weights[j];
            active++;
        } else {
            ids[j] = -1;
        }
    }
    if (active == n) {
        return n;
    }
    const float ratio  = kept / whole;
    const float factor = r->alpha * (r->rho == 0.0f ? 1.0f : r->rho == 1.0f ? 1.0f / ratio : powf(ratio, -r->rho));
    for (int32_t j = 0; j < n; j++) {
        weights[j] = ids[j] < 0 ? 0.0f : weights[j] * factor;
    }
    return active;
}

void FATHOM_KERNEL(moe_route)(const fathom_moe_route_args * a, int32_t ith, int32_t nth) {
    const int32_t n = a->n_used;
    for (int32_t t = ith; t < a->n_tokens; t += nth) {
        const float * logits  = a->logits + (size_t) t * (size_t) a->n_expert;
        int32_t *     ids     = a->ids + (size_t) t * (size_t) n;
        float *       weights = a->weights + (size_t) t * (size_t) n;
        const fathom_routing * routing = a->routing ? a->routing[t] : NULL;
        const int policy = routing && routing->policy != FATHOM_ROUTING_OFF && (!a->table || routing->route_hash);

        float scores[MAX_USED], margins[MAX_USED];
        float rejected = -INFINITY;
        if (!a->table) {
            rejected = select_experts(logits, a->bias, a->n_expert, n, ids, scores);
        } else {
            for (int32_t j = 0; j < n; j++) {
                ids[j]    = a->table[(size_t) a->tokens[t] * (size_t) n + (size_t) j];
                scores[j] = score_of(logits[ids[j]]);
            }
            for (int32_t e = 0; policy && e < a->n_expert; e++) {
                int chosen = 0;
                for (int32_t j = 0; j < n; j++) {
                    chosen |= ids[j] == e;
                }
                const float value = a->bias ? score_of(logits[e]) + a->bias[e] : score_of(logits[e]);
                rejected = !chosen && value > rejected ? value : rejected;
            }
        }

        float sum = 1e-20f;
        for (int32_t j = 0; j < n; j++) {
            sum += scores[j];
        }
        for (int32_t j = 0; j < n; j++) {
            weights[j] = a->scale * scores[j] / sum;
            margins[j] = (a->bias ? scores[j] + a->bias[ids[j]] : scores[j]) - rejected;
        }
        a->n_active[t] = policy ? apply(routing, margins, n, ids, weights) : n;
    }
}
