#include <stdlib.h>

#include "../rows.h"
#include "args.h"

// All rows that token t attends to, in the order of the contract, as f32. Returns their number.
static int64_t rows_of(const fathom_gather_attention_args * args, int32_t t, float * out) {
    const int32_t r = args->step->run_of_token[t];
    const fathom_run * run = &args->step->runs[r];
    const int64_t pos = run->pos + (t - run->first);
    const int32_t n_rot = args->rope.n_rot;
    int64_t n = 0;
    if (args->ratio > 0) {
        const int64_t n_compressed = args->top ? args->n_top[t] : (pos + 1) / args->ratio;
        for (int64_t i = 0; i < n_compressed; i++) {
            const int64_t row = args->top ? args->top[(int64_t) t * args->top_k + i] : i;
            fathom_row_load_of(args->row_type, args->d, n_rot, fathom_row_at(&args->rows[r], row), out + n++ * args->d);
        }
    }
    for (int64_t p = pos < args->n_swa ? 0 : pos - args->n_swa + 1; p <= pos; p++) {
        const fathom_window * window = &args->window[r];
        const char * row = p >= run->pos ? (const char *) args->kv + (run->first + (p - run->pos)) * args->row_bytes
                                         : (const char *) window->rows + p % window->n_slots * window->row_bytes;
        fathom_row_load_of(args->row_type, args->d, n_rot, row, out + n++ * args->d);
    }
    return n;
}

void fathom_gather_attention_reference(const fathom_gather_attention_args * args) {
    const int32_t d = args->d;
    const int32_t n_rot = args->rope.n_rot;
    for (int32_t t = 0; t < args->step->n_tokens; t++) {
        const fathom_run * run = &args->step->runs[args->step->run_of_token[t]];
        const int64_t pos = run->pos + (t - run->first);
        const int64_t n_compressed = args->ratio > 0 ? (pos + 1) / args->ratio : 0;
        float * rows = malloc((size_t) (n_compressed + args->n_swa) * d * sizeof(float));
        double * logits = malloc((size_t) (n_compressed + args->n_swa) * sizeof(double));
        const int64_t n = rows_of(args, t, rows);
        for (int32_t h = 0; h < args->n_head; h++) {
            const float * q = args->q + ((int64_t) t * args->n_head + h) * d;
            float * out = args->out + ((int64_t) t * args->n_head + h) * d;
            double largest = args->sinks[h];
            for (int64_t i = 0; i < n; i++) {
                double dot = 0.0;
                for (int32_t c = 0; c < d; c++) {
                    dot += (double) q[c] * rows[i * d + c];
                }
                logits[i] = dot * args->scale;
                largest = fmax(largest, logits[i]);
            }
            double sum = exp(args->sinks[h] - largest);
            for (int64_t i = 0; i < n; i++) {
                sum += exp(logits[i] - largest);
            }
            double o[d];
            memset(o, 0, sizeof o);
            for (int64_t i = 0; i < n; i++) {
                const double weight = exp(logits[i] - largest) / sum;
                for (int32_t c = 0; c < d; c++) {
                    o[c] += weight * rows[i * d + c];
                }
            }
            for (int32_t i = 0; i < n_rot / 2; i++) {
                double * pair = o + d - n_rot + 2 * i;
                const double angle = (float) pos * args->rope.freq[i];
                const double a = pair[0];
                const double b = pair[1];
                pair[0] = a * cos(angle) + b * sin(angle);
                pair[1] = b * cos(angle) - a * sin(angle);
            }
            for (int32_t c = 0; c < d; c++) {
                out[c] = (float) o[c];
            }
        }
        free(rows);
        free(logits);
    }
}
