#include <stdlib.h>

#include "../rows.h"
#include "args.h"

typedef struct scored_row {
    double  score;
    int32_t row;
} scored_row;

static int by_score(const void * a, const void * b) {
    const scored_row * left = (const scored_row *) a;
    const scored_row * right = (const scored_row *) b;
    if (left->score != right->score) {
        return left->score > right->score ? -1 : 1;
    }
    return left->row < right->row ? -1 : left->row > right->row;
}

static int by_row(const void * a, const void * b) {
    const scored_row * left = (const scored_row *) a;
    const scored_row * right = (const scored_row *) b;
    return left->row < right->row ? -1 : left->row > right->row;
}

// The query of one head in the keys' basis and precision.
static void query_of(const fathom_index_topk_args * args, const fathom_rows * keys, const float * q, float * out) {
    memcpy(out, q, (size_t) args->n_embd * sizeof(float));
    if (keys->row_type == FATHOM_ROW_FP4) {
        uint8_t row[args->n_embd];
        fathom_hadamard(out, args->n_embd);
        fathom_row_store_of(FATHOM_ROW_FP4, args->n_embd, 0, out, row);
        fathom_row_load_of(FATHOM_ROW_FP4, args->n_embd, 0, row, out);
    }
}

void fathom_index_topk_reference(const fathom_index_topk_args * args) {
    const int32_t d = args->n_embd;
    float * q = malloc((size_t) d * args->n_head * sizeof(float));
    for (int32_t t = 0; t < args->step->n_tokens; t++) {
        const int32_t r = args->step->run_of_token[t];
        const fathom_run * run = &args->step->runs[r];
        const fathom_rows * keys = &args->keys[r];
        const int64_t n_rows = (run->pos + (t - run->first) + 1) / args->ratio;
        scored_row * scored = malloc((size_t) (n_rows + 1) * sizeof(scored_row));
        for (int32_t h = 0; h < args->n_head; h++) {
            query_of(args, keys, args->q + ((int64_t) t * args->n_head + h) * d, q + (int64_t) h * d);
        }
        for (int64_t w = 0; w < n_rows; w++) {
            float key[d];
            fathom_row_load_of(keys->row_type, d, 0, fathom_row_at(keys, w), key);
            double score = 0.0;
            for (int32_t h = 0; h < args->n_head; h++) {
                double dot = 0.0;
                for (int32_t i = 0; i < d; i++) {
                    dot += (double) q[(int64_t) h * d + i] * key[i];
                }
                score += (double) args->weights[(int64_t) t * args->n_head + h] * args->scale * fmax(dot, 0.0);
            }
            scored[w] = (scored_row) {score, (int32_t) w};
        }
        const int32_t n_top = (int32_t) (n_rows < args->top_k ? n_rows : args->top_k);
        qsort(scored, (size_t) n_rows, sizeof(scored_row), by_score);
        qsort(scored, (size_t) n_top, sizeof(scored_row), by_row);
        for (int32_t i = 0; i < args->top_k; i++) {
            args->top[(int64_t) t * args->top_k + i] = i < n_top ? scored[i].row : -1;
        }
        args->n_top[t] = n_top;
        free(scored);
    }
    free(q);
}
