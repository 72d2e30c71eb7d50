// The specification of moe_route: every sum and function in double.

#include "args.h"

#include <math.h>
#include <stdlib.h>

typedef struct candidate {
    int32_t rank;    // place in the order of selection
    double  share;   // pi
    double  margin;
} candidate;

static int by_share(const void * a, const void * b) {
    const candidate * x = a;
    const candidate * y = b;
    return x->share != y->share ? (x->share < y->share ? 1 : -1) : x->rank - y->rank;
}

// How many of the n leading candidates the policy keeps.
static int32_t n_kept(const fathom_routing * r, const candidate * c, int32_t n) {
    int32_t kept = 0;
    double  mass = 0;
    switch (r->policy) {
        case FATHOM_ROUTING_TOPK:
            kept = r->k_max;
            break;
        case FATHOM_ROUTING_REL:
            while (kept < n && c[kept].share >= (double) r->threshold * c[0].share) {
                kept++;
            }
            break;
        case FATHOM_ROUTING_MASS:
            while (kept < n && (mass < (double) r->threshold || r->threshold >= 1)) {
                mass += c[kept++].share;
            }
            break;
        case FATHOM_ROUTING_MARGIN:
            while (kept < n && log(c[kept].share / c[0].share) + (r->beta != 0 ? (double) r->beta * c[kept].margin : 0.0) >= (double) r->threshold) {
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

void fathom_moe_route_reference(const fathom_moe_route_args * a) {
    double *    score = malloc(sizeof(double) * (size_t) a->n_expert);
    double *    p     = malloc(sizeof(double) * (size_t) a->n_used);
    candidate * c     = malloc(sizeof(candidate) * (size_t) a->n_used);
    for (int32_t t = 0; t < a->n_tokens; t++) {
        const float * logits = a->logits + (size_t) t * (size_t) a->n_expert;
        int32_t *     ids    = a->ids + (size_t) t * (size_t) a->n_used;
        float *       out    = a->weights + (size_t) t * (size_t) a->n_used;
        for (int32_t e = 0; e < a->n_expert; e++) {
            score[e] = sqrt(logits[e] > 20 ? (double) logits[e] : log1p(exp((double) logits[e])));
        }
#define BIASED(e) (score[e] + (a->bias ? (double) a->bias[e] : 0.0))
        for (int32_t j = 0; j < a->n_used; j++) {
            ids[j] = a->table ? a->table[(size_t) a->tokens[t] * (size_t) a->n_used + (size_t) j] : -1;
            for (int32_t e = 0; !a->table && e < a->n_expert; e++) {
                int taken = 0;
                for (int32_t i = 0; i < j; i++) {
                    taken |= ids[i] == e;
                }
                if (!taken && (ids[j] < 0 || BIASED(e) > BIASED(ids[j]))) {
                    ids[j] = e;
                }
            }
        }
        double best_rejected = -INFINITY;
        for (int32_t e = 0; e < a->n_expert; e++) {
            int taken = 0;
            for (int32_t j = 0; j < a->n_used; j++) {
                taken |= ids[j] == e;
            }
            if (!taken && BIASED(e) > best_rejected) {
                best_rejected = BIASED(e);
            }
        }

        double sum = 0;
        for (int32_t j = 0; j < a->n_used; j++) {
            sum += score[ids[j]];
        }
        for (int32_t j = 0; j < a->n_used; j++) {
            p[j]   = a->scale * score[ids[j]] / (sum + 1e-20);
            out[j] = (float) p[j];
        }
        a->n_active[t] = a->n_used;

        const fathom_routing * r = a->routing ? a->routing[t] : NULL;
        if (!r || r->policy == FATHOM_ROUTING_OFF || (a->table && !r->route_hash)) {
            continue;
        }
        double norm = 0, whole = 0, kept_sum = 0;
        for (int32_t j = 0; j < a->n_used; j++) {
            c[j] = (candidate) { j, p[j] * (r->expert_norm ? (double) r->expert_norm[ids[j]] : 1.0), BIASED(ids[j]) - best_rejected };
            norm += c[j].share;
        }
        for (int32_t j = 0; j < a->n_used; j++) {
            c[j].share /= norm;
        }
        qsort(c, (size_t) a->n_used, sizeof(candidate), by_share);
        const int32_t keep   = n_kept(r, c, a->n_used);
        int32_t       active = 0;
        for (int32_t i = 0; i < a->n_used; i++) {
            const int32_t j = c[i].rank;
            whole += p[j];
            if (i < keep || (r->is_protected && r->is_protected[ids[j]])) {
                kept_sum += p[j];
                active++;
            } else {
                ids[j] = -1;
            }
        }
        for (int32_t j = 0; j < a->n_used && active < a->n_used; j++) {
            out[j] = ids[j] < 0 ? 0.0f : (float) (p[j] * pow(kept_sum / whole, -(double) r->rho) * (double) r->alpha);
        }
        a->n_active[t] = active;
    }
    free(score);
    free(p);
    free(c);
}
