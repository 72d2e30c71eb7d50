// A thread owns (token, heads): with many tokens whole tokens, with few a stretch of heads of each. Its rows are taken in blocks
// of BLOCK: NEAR at a time they are expanded to f32 once for all its heads and meet them in tiles of heads x rows, which gives logits; then
// softmax, and sums by tiles of heads x channels. Rows that were chosen lie anywhere, so they are fetched AHEAD of use. 2 * d multiply-adds per head and row, so at 64 heads it is bound by FMA: each byte of a row in f16 meets 64 of
// them. Expanding costs 1/64 of that and is repeated by each thread that shares a token.
#include "../../simd/rows.h"
#include "args.h"

enum {
    BLOCK = 64,   // rows
    ROWS = 4,     // rows of a tile of logits: what vf_reduce4 sums
    NEAR = 8,     // rows that stay in L1 while all heads pass
    AHEAD = 16,   // rows between those that are read and those that are fetched
#if VF_REGISTERS >= 32
    HEADS = 4,    // heads of a tile
    VECTORS = 4,  // vectors of channels of a tile of sums
#else
    HEADS = 2,
    VECTORS = 4,
#endif
};

// Memory of one thread.
typedef struct arena {
    float * rows;    // [BLOCK][stride]
    float * logits;  // [n_head][BLOCK]
    float * largest; // [n_head]
    float * sum;     // [n_head]
    float * shrink;  // [n_head]: factor of what was summed before this block
    float * rope;    // [2 * n_rot]
} arena;

// A cache line more than a row: at a power of two all rows would share a few sets of L1, and a column of them would not stay there.
static int32_t stride_of(const fathom_gather_attention_args * args) {
    return args->d + 16;
}

static size_t arena_floats(const fathom_gather_attention_args * args) {
    const size_t n_head = (size_t) args->n_head;
    const size_t floats = BLOCK * (size_t) stride_of(args) + BLOCK * n_head + 3 * n_head + 2 * (size_t) args->rope.n_rot;
    return (floats + 15) / 16 * 16;
}

size_t FATHOM_KERNEL(gather_attention_scratch_bytes)(const fathom_gather_attention_args * args, int32_t nth) {
    return arena_floats(args) * sizeof(float) * (size_t) nth;
}

static arena arena_of(const fathom_gather_attention_args * args, int32_t ith) {
    float * at = (float *) args->scratch + arena_floats(args) * (size_t) ith;
    arena a;
    a.rows = at;
    a.logits = a.rows + BLOCK * (size_t) stride_of(args);
    a.largest = a.logits + BLOCK * (size_t) args->n_head;
    a.sum = a.largest + args->n_head;
    a.shrink = a.sum + args->n_head;
    a.rope = a.shrink + args->n_head;
    return a;
}

// The rows of one token, in the order of the contract.
typedef struct row_list {
    const fathom_gather_attention_args * args;
    const fathom_run * run;
    const int32_t * top;  // NULL: compressed rows 0, 1, ..
    int32_t r;
    int64_t n_compressed, n;
    int64_t first_pos;    // of the window
} row_list;

static row_list rows_of(const fathom_gather_attention_args * args, int32_t t) {
    row_list list = {.args = args, .r = args->step->run_of_token[t]};
    list.run = &args->step->runs[list.r];
    const int64_t pos = list.run->pos + (t - list.run->first);
    if (args->ratio > 0) {
        list.top = args->top ? args->top + (int64_t) t * args->top_k : NULL;
        list.n_compressed = args->top ? args->n_top[t] : (pos + 1) / args->ratio;
    }
    list.first_pos = pos < args->n_swa ? 0 : pos - args->n_swa + 1;
    list.n = list.n_compressed + (pos - list.first_pos + 1);
    return list;
}

static const void * row_at(const row_list * list, int64_t i) {
    const fathom_gather_attention_args * args = list->args;
    if (i < list->n_compressed) {
        return fathom_row_at(&args->rows[list->r], list->top ? list->top[i] : i);
    }
    const int64_t pos = list->first_pos + (i - list->n_compressed);
    if (pos >= list->run->pos) {
        return (const char *) args->kv + (list->run->first + (pos - list->run->pos)) * args->row_bytes;
    }
    const fathom_window * window = &args->window[list->r];
    return (const char *) window->rows + pos % window->n_slots * window->row_bytes;
}

static void prefetch_rows(const row_list * list, int64_t begin, int64_t n) {
    for (int64_t i = begin; i < begin + n && i < list->n; i++) {
        const char * row = (const char *) row_at(list, i);
        for (int64_t at = 0; at < list->args->row_bytes; at += 64) {
            __builtin_prefetch(row + at, 0, 2);
        }
    }
}

// logits[h][r] = q_h . row_r for HEADS x ROWS of them.
static inline __attribute__((always_inline)) void dots_tile(int n_heads, const float * q, const float * rows, int32_t stride, int32_t d, float * logits) {
    vf sums[HEADS][ROWS];
    for (int h = 0; h < n_heads; h++) {
        for (int r = 0; r < ROWS; r++) {
            sums[h][r] = vf_set1(0.0f);
        }
    }
    for (int32_t c = 0; c < d; c += VF_LANES) {
        vf row[ROWS];
        for (int r = 0; r < ROWS; r++) {
            row[r] = vf_keep(vf_load(rows + (int64_t) r * stride + c));
        }
        for (int h = 0; h < n_heads; h++) {
            const vf head = vf_load(q + (int64_t) h * d + c);
            for (int r = 0; r < ROWS; r++) {
                sums[h][r] = vf_fma(head, row[r], sums[h][r]);
            }
        }
    }
    for (int h = 0; h < n_heads; h++) {
        vf_reduce4(logits + h * BLOCK, sums[h][0], sums[h][1], sums[h][2], sums[h][3]);
    }
}

// Logits of `n_rows` rows that are near each other, for all heads.
static void dots(const float * q, int32_t n_heads, const float * rows, int32_t stride, int32_t n_rows, int32_t d, float * logits) {
    for (int32_t h = 0; h < n_heads; h += HEADS) {
        for (int32_t r = 0; r < n_rows; r += ROWS) {
            if (h + HEADS <= n_heads) {
                dots_tile(HEADS, q + (int64_t) h * d, rows + (int64_t) r * stride, stride, d, logits + h * BLOCK + r);
            } else {
                for (int32_t one = h; one < n_heads; one++) {
                    dots_tile(1, q + (int64_t) one * d, rows + (int64_t) r * stride, stride, d, logits + one * BLOCK + r);
                }
            }
        }
    }
}

// Logits of one head and block to weights; the running maximum and sum follow.
static inline void soften(float * logits, int32_t n_rows, float scale, float * largest, float * sum, float * shrink) {
    for (int32_t r = n_rows; r < BLOCK; r++) {
        logits[r] = -INFINITY;
    }
    vf block_largest = vf_set1(*largest);
    for (int r = 0; r < BLOCK; r += VF_LANES) {
        const vf scaled = vf_mul(vf_load(logits + r), vf_set1(scale));
        vf_store(logits + r, scaled);
        block_largest = vf_max(block_largest, scaled);
    }
    const float now = vf_largest(block_largest);
    vf block_sum = vf_set1(0.0f);
    for (int r = 0; r < BLOCK; r += VF_LANES) {
        const vf a = vf_exp(vf_sub(vf_load(logits + r), vf_set1(now)));
        vf_store(logits + r, a);
        block_sum = vf_add(block_sum, a);
    }
    float first[VF_LANES];
    vf_store(first, vf_exp(vf_set1(*largest - now)));
    *shrink = first[0];
    *sum = *sum * first[0] + vf_sum(block_sum);
    *largest = now;
}

// out_h = shrink_h * out_h + sum over rows of weight[h][r] * row_r, for n_heads x n_vectors.
static inline __attribute__((always_inline)) void sums_tile(int n_heads, int n_vectors, const float * weights, const float * shrink, const float * rows,
                                                            int32_t stride, int32_t n_rows, int32_t d, float * out) {
    vf sums[HEADS][VECTORS];
    for (int h = 0; h < n_heads; h++) {
        for (int v = 0; v < n_vectors; v++) {
            sums[h][v] = vf_mul(vf_load(out + (int64_t) h * d + v * VF_LANES), vf_set1(shrink[h]));
        }
    }
    for (int32_t r = 0; r < n_rows; r++) {
        vf row[VECTORS];
        for (int v = 0; v < n_vectors; v++) {
            row[v] = vf_keep(vf_load(rows + (int64_t) r * stride + v * VF_LANES));
        }
        for (int h = 0; h < n_heads; h++) {
            const vf weight = vf_set1(weights[h * BLOCK + r]);
            for (int v = 0; v < n_vectors; v++) {
                sums[h][v] = vf_fma(weight, row[v], sums[h][v]);
            }
        }
    }
    for (int h = 0; h < n_heads; h++) {
        for (int v = 0; v < n_vectors; v++) {
            vf_store(out + (int64_t) h * d + v * VF_LANES, sums[h][v]);
        }
    }
}

static void sums(const float * weights, const float * shrink, const float * rows, int32_t stride, int32_t n_rows, int32_t n_heads, int32_t d,
                 float * out) {
    for (int32_t c = 0; c < d;) {
        const int is_wide = c + VECTORS * VF_LANES <= d;
        for (int32_t h = 0; h < n_heads;) {
            const int is_full = h + HEADS <= n_heads;
            const float * w = weights + h * BLOCK;
            float * o = out + (int64_t) h * d + c;
            if (is_full && is_wide) {
                sums_tile(HEADS, VECTORS, w, shrink + h, rows + c, stride, n_rows, d, o);
            } else if (is_full) {
                sums_tile(HEADS, 1, w, shrink + h, rows + c, stride, n_rows, d, o);
            } else if (is_wide) {
                sums_tile(1, VECTORS, w, shrink + h, rows + c, stride, n_rows, d, o);
            } else {
                sums_tile(1, 1, w, shrink + h, rows + c, stride, n_rows, d, o);
            }
            h += is_full ? HEADS : 1;
        }
        c += is_wide ? VECTORS * VF_LANES : VF_LANES;
    }
}

static void attend(const fathom_gather_attention_args * args, int32_t t, int32_t first_head, int32_t end_head, const arena * a) {
    const int32_t d = args->d;
    const int32_t n_rot = args->rope.n_rot;
    const int32_t n_heads = end_head - first_head;
    const int32_t stride = stride_of(args);
    const row_list list = rows_of(args, t);
    const float * q = args->q + ((int64_t) t * args->n_head + first_head) * d;
    float * out = args->out + ((int64_t) t * args->n_head + first_head) * d;
    // The sink is the softmax's first entry.
    for (int32_t h = 0; h < n_heads; h++) {
        a->largest[h] = args->sinks[first_head + h];
        a->sum[h] = 1.0f;
    }
    memset(out, 0, (size_t) n_heads * (size_t) d * sizeof(float));
    prefetch_rows(&list, 0, AHEAD);
    for (int64_t begin = 0; begin < list.n; begin += BLOCK) {
        const int32_t n_rows = (int32_t) (list.n - begin < BLOCK ? list.n - begin : BLOCK);
        for (int32_t near = 0; near < n_rows; near += NEAR) {
            const int32_t n_near = n_rows - near < NEAR ? n_rows - near : NEAR;
            float * rows = a->rows + (int64_t) near * stride;
            for (int32_t r = 0; r < n_near; r++) {
                vf_row_load(args->row_type, d, n_rot, row_at(&list, begin + near + r), rows + (int64_t) r * stride);
            }
            for (int32_t r = n_near; r % ROWS != 0; r++) {  // a tile's last rows: computed, never used
                memcpy(rows + (int64_t) r * stride, rows, (size_t) d * sizeof(float));
            }
            prefetch_rows(&list, begin + near + AHEAD, NEAR);
            dots(q, n_heads, rows, stride, n_near, d, a->logits + near);
        }
        for (int32_t h = 0; h < n_heads; h++) {
            soften(a->logits + h * BLOCK, n_rows, args->scale, &a->largest[h], &a->sum[h], &a->shrink[h]);
        }
        sums(a->logits, a->shrink, a->rows, stride, n_rows, n_heads, d, out);
    }
    const fathom_run * run = list.run;
    rope_table(&args->rope, run->pos + (t - run->first), -1.0f, a->rope);
    for (int32_t h = 0; h < n_heads; h++) {
        vf_scale(out + (int64_t) h * d, 1.0f / a->sum[h], NULL, d);
        rope_apply(n_rot, a->rope, out + (int64_t) h * d + d - n_rot);
    }
}

void FATHOM_KERNEL(gather_attention)(const fathom_gather_attention_args * args, int32_t ith, int32_t nth) {
    const arena a = arena_of(args, ith);
    // Whole tokens in turn while there is one for each thread: later tokens of a prompt have more rows, so no stretches.
    const int32_t n_dealt = args->step->n_tokens / nth * nth;
    for (int32_t t = ith; t < n_dealt; t += nth) {
        attend(args, t, 0, args->n_head, &a);
    }
    // The rest: tiles of heads, in stretches.
    const int64_t tiles = (args->n_head + HEADS - 1) / HEADS;
    const int64_t n_units = tiles * (args->step->n_tokens - n_dealt);
    const int64_t end = n_units * (ith + 1) / nth;
    for (int64_t unit = n_units * ith / nth; unit < end;) {
        const int64_t tile = unit % tiles;
        const int64_t n = tiles - tile < end - unit ? tiles - tile : end - unit;
        const int32_t end_head = (int32_t) (tile + n) * HEADS;
        attend(args, n_dealt + (int32_t) (unit / tiles), (int32_t) tile * HEADS, end_head < args->n_head ? end_head : args->n_head, &a);
        unit += n;
    }
}

void FATHOM_KERNEL(gather_attention_commit)(const fathom_gather_attention_args * args, int32_t ith, int32_t nth) {
    for (int32_t t = ith; t < args->step->n_tokens; t += nth) {
        const int32_t r = args->step->run_of_token[t];
        const fathom_run * run = &args->step->runs[r];
        const fathom_window * window = &args->window[r];
        if (t >= run->first + run->n_tokens - window->n_slots) {
            const int64_t pos = run->pos + (t - run->first);
            memcpy((char *) window->rows + pos % window->n_slots * window->row_bytes, (const char *) args->kv + t * args->row_bytes,
                   (size_t) args->row_bytes);
        }
    }
}
