#include "../rows.h"
#include "args.h"

void fathom_norm_rope_reference(const fathom_norm_rope_args * args) {
    const int32_t d = args->d;
    const int32_t n_rot = args->rope.n_rot;
    float y[d];
    for (int32_t t = 0; t < args->step->n_tokens; t++) {
        const fathom_run * run = &args->step->runs[args->step->run_of_token[t]];
        const int64_t pos = run->pos + (t - run->first);
        for (int32_t h = 0; h < args->n_head; h++) {
            const int64_t head = (int64_t) t * args->n_head + h;
            const float * x = args->x + head * d;
            double sum = 0.0;
            for (int32_t i = 0; i < d; i++) {
                sum += (double) x[i] * x[i];
            }
            const double factor = args->eps < 0.0f ? 1.0 : 1.0 / sqrt(sum / d + args->eps);
            double normed[d];
            for (int32_t i = 0; i < d; i++) {
                normed[i] = x[i] * factor * (args->weight ? args->weight[i] : 1.0f);
            }
            for (int32_t i = 0; i < n_rot / 2; i++) {
                double * pair = normed + d - n_rot + 2 * i;
                const double angle = (float) pos * args->rope.freq[i];
                const double a = pair[0];
                const double b = pair[1];
                pair[0] = a * cos(angle) - b * sin(angle);
                pair[1] = a * sin(angle) + b * cos(angle);
            }
            for (int32_t i = 0; i < d; i++) {
                y[i] = (float) normed[i];
            }
            fathom_row_store_of(args->row_type, d, n_rot, y, (char *) args->out + head * args->row_bytes);
        }
    }
}
