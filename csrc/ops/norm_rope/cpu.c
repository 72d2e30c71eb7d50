// (token, head) pairs are split among the threads in equal stretches; cos and sin of a token are computed once for its heads.
// Bound by the bytes of x and out.
#include "../../simd/rows.h"
#include "args.h"

void FATHOM_KERNEL(norm_rope)(const fathom_norm_rope_args * args, int32_t ith, int32_t nth) {
    const int32_t d = args->d;
    const int32_t n_rot = args->rope.n_rot;
    const int64_t n_units = (int64_t) args->step->n_tokens * args->n_head;
    float y[d];
    float table[2 * n_rot + 1];
    int32_t token_of_table = -1;
    for (int64_t unit = n_units * ith / nth; unit < n_units * (ith + 1) / nth; unit++) {
        const int32_t t = (int32_t) (unit / args->n_head);
        if (t != token_of_table) {
            const fathom_run * run = &args->step->runs[args->step->run_of_token[t]];
            rope_table(&args->rope, run->pos + (t - run->first), 1.0f, table);
            token_of_table = t;
        }
        memcpy(y, args->x + unit * d, (size_t) d * sizeof(float));
        if (args->eps >= 0.0f) {
            vf_scale(y, 1.0f / sqrtf(vf_squares(y, d) / (float) d + args->eps), args->weight, d);
        } else if (args->weight) {
            vf_scale(y, 1.0f, args->weight, d);
        }
        rope_apply(n_rot, table, y + d - n_rot);
        vf_row_store(args->row_type, d, n_rot, y, (char *) args->out + unit * args->row_bytes);
    }
}
