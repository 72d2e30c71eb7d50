// Completed groups of all runs are dealt to the threads in turn; `commit` deals tokens. Channels are lanes: a row is one pass
// for the largest logits and one for the sums. Bound by exp: ratio * (1 + overlap) * d of them a row.
#include "../../simd/rows.h"
#include "args.h"

// One position of a softmax: u and z of its channels 0..d, and what is still to be added to z.
typedef struct slot {
    const float * u;
    const float * z;
    const float * ape;  // NULL: it is in z already
} slot;

static slot slot_of(const fathom_kv_compress_args * args, int32_t r, int64_t pos, int32_t first_channel) {
    const fathom_run * run = &args->step->runs[r];
    const int64_t w = (int64_t) args->d * (1 + args->overlap);
    if (pos >= run->pos) {
        const int64_t at = (run->first + (pos - run->pos)) * w + first_channel;
        return (slot) {args->u + at, args->z + at, args->ape + pos % args->ratio * w + first_channel};
    }
    const int64_t at = pos % args->n_pending * w + first_channel;
    return (slot) {args->pending[r].u + at, args->pending[r].z + at, NULL};
}

static inline vf logits_of(const slot * s, int32_t c) {
    const vf z = vf_load(s->z + c);
    return s->ape ? vf_add(z, vf_load(s->ape + c)) : z;
}

static void pool(const slot * slots, int32_t n_slots, int32_t d, float * e) {
    int32_t c = 0;
    for (; c + VF_LANES <= d; c += VF_LANES) {
        vf largest = logits_of(&slots[0], c);
        for (int32_t s = 1; s < n_slots; s++) {
            largest = vf_max(largest, logits_of(&slots[s], c));
        }
        vf sum = vf_set1(0.0f);
        vf weighted = vf_set1(0.0f);
        for (int32_t s = 0; s < n_slots; s++) {
            const vf a = vf_exp(vf_sub(logits_of(&slots[s], c), largest));
            sum = vf_add(sum, a);
            weighted = vf_fma(a, vf_load(slots[s].u + c), weighted);
        }
        vf_store(e + c, vf_div(weighted, sum));
    }
    for (; c < d; c++) {
        float largest = -INFINITY;
        float sum = 0.0f;
        float weighted = 0.0f;
        for (int32_t s = 0; s < n_slots; s++) {
            largest = fmaxf(largest, slots[s].z[c] + (slots[s].ape ? slots[s].ape[c] : 0.0f));
        }
        for (int32_t s = 0; s < n_slots; s++) {
            const float a = expf(slots[s].z[c] + (slots[s].ape ? slots[s].ape[c] : 0.0f) - largest);
            sum += a;
            weighted += a * slots[s].u[c];
        }
        e[c] = weighted / sum;
    }
}

static void make_row(const fathom_kv_compress_args * args, int32_t r, int64_t group) {
    const int32_t d = args->d;
    const int32_t ratio = args->ratio;
    const int32_t n_rot = args->rope.n_rot;
    const int64_t first_pos = (args->overlap && group > 0 ? group - 1 : group) * ratio;
    const int32_t n_slots = (int32_t) ((group + 1) * ratio - first_pos);
    slot slots[n_slots];
    for (int32_t s = 0; s < n_slots; s++) {
        const int64_t pos = first_pos + s;
        slots[s] = slot_of(args, r, pos, args->overlap && pos >= group * ratio ? d : 0);
    }
    float row[d];
    float table[2 * n_rot + 1];
    pool(slots, n_slots, d, row);
    vf_scale(row, 1.0f / sqrtf(vf_squares(row, d) / (float) d + args->eps), args->norm, d);
    rope_table(&args->rope, group * ratio, 1.0f, table);
    rope_apply(n_rot, table, row + d - n_rot);
    if (args->hadamard) {
        fathom_hadamard(row, d);
    }
    const fathom_rows * rows = &args->rows[r];
    vf_row_store(rows->row_type, d, n_rot, row, (void *) fathom_row_at(rows, group));
}

void FATHOM_KERNEL(kv_compress_rows)(const fathom_kv_compress_args * args, int32_t ith, int32_t nth) {
    int64_t n_before = 0;  // groups of earlier runs
    for (int32_t r = 0; r < args->step->n_runs; r++) {
        const fathom_run * run = &args->step->runs[r];
        const int64_t begin = run->pos / args->ratio;
        const int64_t end = (run->pos + run->n_tokens) / args->ratio;
        // The first group of this run whose turn it is: n_before + (group - begin) = ith modulo nth.
        for (int64_t group = begin + ((ith - n_before) % nth + nth) % nth; group < end; group += nth) {
            make_row(args, r, group);
        }
        n_before += end - begin;
    }
}

void FATHOM_KERNEL(kv_compress_commit)(const fathom_kv_compress_args * args, int32_t ith, int32_t nth) {
    const int32_t w = args->d * (1 + args->overlap);
    for (int32_t t = ith; t < args->step->n_tokens; t += nth) {
        const int32_t r = args->step->run_of_token[t];
        const fathom_run * run = &args->step->runs[r];
        if (t < run->first + run->n_tokens - args->n_pending) {
            continue;  // a later token of this step takes the slot
        }
        const int64_t pos = run->pos + (t - run->first);
        const float * z = args->z + (int64_t) t * w;
        const float * ape = args->ape + pos % args->ratio * w;
        float * to = args->pending[r].z + pos % args->n_pending * w;
        memcpy(args->pending[r].u + pos % args->n_pending * w, args->u + (int64_t) t * w, (size_t) w * sizeof(float));
        for (int32_t c = 0; c < w; c++) {
            to[c] = z[c] + ape[c];
        }
    }
}
