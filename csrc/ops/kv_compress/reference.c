#include "../rows.h"
#include "args.h"

// u and z + ape of channel c at position `pos`: from this step if it holds that position, else from the open state.
static void slot_of(const fathom_kv_compress_args * args, int32_t r, int64_t pos, int32_t c, double * u, double * z) {
    const fathom_run * run = &args->step->runs[r];
    const int32_t w = args->d * (1 + args->overlap);
    if (pos >= run->pos) {
        const int64_t t = run->first + (pos - run->pos);
        *u = args->u[t * w + c];
        *z = (double) args->z[t * w + c] + args->ape[pos % args->ratio * w + c];
    } else {
        const int64_t slot = pos % args->n_pending;
        *u = args->pending[r].u[slot * w + c];
        *z = args->pending[r].z[slot * w + c];
    }
}

static void make_row(const fathom_kv_compress_args * args, int32_t r, int64_t group) {
    const int32_t d = args->d;
    const int32_t ratio = args->ratio;
    const int32_t n_rot = args->rope.n_rot;
    // With overlap the slots begin with those of the group before.
    const int64_t first_pos = (args->overlap && group > 0 ? group - 1 : group) * ratio;
    double e[d];
    double squares = 0.0;
    for (int32_t i = 0; i < d; i++) {
        double sum = 0.0;
        double weighted = 0.0;
        double largest = -INFINITY;
        for (int pass = 0; pass < 2; pass++) {
            for (int64_t pos = first_pos; pos < (group + 1) * ratio; pos++) {
                const int32_t c = args->overlap && pos >= group * ratio ? d + i : i;
                double u, z;
                slot_of(args, r, pos, c, &u, &z);
                if (pass == 0) {
                    largest = fmax(largest, z);
                } else {
                    sum += exp(z - largest);
                    weighted += exp(z - largest) * u;
                }
            }
        }
        e[i] = weighted / sum;
        squares += e[i] * e[i];
    }
    const double factor = 1.0 / sqrt(squares / d + args->eps);
    for (int32_t i = 0; i < d; i++) {
        e[i] *= factor * args->norm[i];
    }
    for (int32_t i = 0; i < n_rot / 2; i++) {
        double * pair = e + d - n_rot + 2 * i;
        const double angle = (float) (group * ratio) * args->rope.freq[i];
        const double a = pair[0];
        const double b = pair[1];
        pair[0] = a * cos(angle) - b * sin(angle);
        pair[1] = a * sin(angle) + b * cos(angle);
    }
    float row[d];
    for (int32_t i = 0; i < d; i++) {
        row[i] = (float) e[i];
    }
    if (args->hadamard) {
        fathom_hadamard(row, d);
    }
    const fathom_rows * rows = &args->rows[r];
    fathom_row_store_of(rows->row_type, d, n_rot, row, (void *) fathom_row_at(rows, group));
}

void fathom_kv_compress_reference(const fathom_kv_compress_args * args) {
    const int32_t w = args->d * (1 + args->overlap);
    for (int32_t r = 0; r < args->step->n_runs; r++) {
        const fathom_run * run = &args->step->runs[r];
        for (int64_t group = run->pos / args->ratio; (group + 1) * args->ratio <= run->pos + run->n_tokens; group++) {
            make_row(args, r, group);
        }
    }
    for (int32_t r = 0; r < args->step->n_runs; r++) {
        const fathom_run * run = &args->step->runs[r];
        for (int32_t t = 0; t < run->n_tokens; t++) {
            const int64_t pos = run->pos + t;
            const int64_t slot = pos % args->n_pending;
            for (int32_t c = 0; c < w; c++) {
                const int64_t from = (int64_t) (run->first + t) * w + c;
                args->pending[r].u[slot * w + c] = args->u[from];
                args->pending[r].z[slot * w + c] = args->z[from] + args->ape[pos % args->ratio * w + c];
            }
        }
    }
}
