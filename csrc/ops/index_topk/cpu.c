// A thread takes a block of tokens of one run and walks over the keys, BLOCK at a time: they are expanded once for all tokens of the
// block. With many tokens each block of them is walked by one thread. With few, the rows are split into parts, one thread each,
// whose winners `merge` joins.
//
// Keys in FP4 are scored in bytes: all products and sums of a dot product are exact there. Keys in f16 and f32 are scored in bytes first
// where that is faster (VI_SHORT_IS_FAST), with a bound of the error (bound.h); rows that the bound cannot exclude are scored once more in
// 16 bits (VI_DOT2_IS_FAST), with a closer one, and in f32 if that cannot exclude them either, so the result is the same. A score is the
// same bits on each of these ways.
#include "../../simd/rows.h"
#include "args.h"
#include "bound.h"
#include "fp4.h"
#include "keep.h"
#include "scores.h"

enum {
    TOKENS = 8,  // of a block
    AHEAD = 4,   // blocks between the keys that are scored and those that are fetched
};

// What a token needs while its rows are walked.
typedef struct token {
    query       q;
    keep        kept;
    error_bound bound;
    const float * heads;      // f32 [n_head][d]
    int32_t     n_head;
    int32_t     t;
    int64_t     n_rows;       // visible
    int         in_bytes;     // scored in bytes
    int         is_bounded;   // .. and the score is still to be confirmed
    int64_t     n_scored, n_confirmed;
} token;

// Memory of one thread.
typedef struct arena {
    token    tokens[TOKENS];
    gram     gram;
    float *  keys;     // [BLOCK][d]
    float *  gathered; // [BLOCK][d]
    uint8_t * bytes;   // [BLOCK][d]
    key_units units;
    int16_t * words;   // [BLOCK][d], of gathered keys
    whole_heads query_words;
    uint64_t * joined; // [nth * top_k], for merge
} arena;

static int32_t lanes_of(const fathom_index_topk_args * args) {
    return (args->n_head + VF_LANES - 1) / VF_LANES * VF_LANES;
}

// With a bound, what it leaves open is many times top_k; the later it is settled, the more the best of them exclude.
static int32_t capacity_of(const fathom_index_topk_args * args) {
    return (VI_SHORT_IS_FAST ? 16 : 4) * args->top_k + 2 * BLOCK;
}

// What is left of a piece of memory; base NULL: only the size counts.
typedef struct cursor {
    char * base;
    size_t used;
} cursor;

static void * take(cursor * at, size_t bytes) {
    void * taken = at->base ? at->base + at->used : NULL;
    at->used += (bytes + 63) / 64 * 64;
    return taken;
}

// Lays the memory of one thread out from `base` on; returns its size.
static size_t lay_out(const fathom_index_topk_args * args, int32_t nth, char * base, arena * a) {
    cursor at = {base, 0};
    const size_t d = (size_t) args->n_embd;
    const size_t n_lanes = (size_t) lanes_of(args);
    const size_t capacity = (size_t) capacity_of(args);
    for (int i = 0; i < TOKENS; i++) {
        token * t = &a->tokens[i];
        t->q.d = args->n_embd;
        t->q.n_lanes = (int32_t) n_lanes;
        t->q.channels = take(&at, d * n_lanes * sizeof(float));
        t->q.weights = take(&at, n_lanes * sizeof(float));
        t->q.bytes.fours = take(&at, d * n_lanes);
        t->q.bytes.bias = take(&at, n_lanes * sizeof(int32_t));
        t->q.bytes.weights = take(&at, n_lanes * sizeof(float));
        t->q.linear = take(&at, d * sizeof(float));
        t->kept.keys = take(&at, capacity * sizeof(uint64_t));
        t->kept.upper = take(&at, capacity * sizeof(float));
    }
    a->gram.vectors = take(&at, d * n_lanes * sizeof(float));
    a->gram.products = take(&at, n_lanes * n_lanes * sizeof(float));
    a->keys = take(&at, BLOCK * d * sizeof(float));
    a->gathered = take(&at, BLOCK * d * sizeof(float));
    a->bytes = take(&at, BLOCK * d);
    a->words = take(&at, BLOCK * d * sizeof(int16_t));
    a->query_words.fours = take(&at, d * n_lanes * sizeof(int16_t));
    a->query_words.bias = take(&at, n_lanes * sizeof(int32_t));
    a->query_words.weights = take(&at, n_lanes * sizeof(float));
    const size_t n_joined = (size_t) nth * (size_t) args->top_k;
    a->joined = take(&at, n_joined * sizeof(uint64_t));
    uint64_t * work = take(&at, (capacity > n_joined ? capacity : n_joined) * sizeof(uint64_t));
    for (int i = 0; i < TOKENS; i++) {
        a->tokens[i].kept.work = work;
        a->tokens[i].kept.k = args->top_k;
        a->tokens[i].kept.capacity = (int32_t) capacity;
    }
    return at.used;
}

static size_t arena_bytes(const fathom_index_topk_args * args, int32_t nth) {
    arena a;
    return lay_out(args, nth, NULL, &a);
}

// Winners of one (token, part): their number, then top_k keys.
static size_t part_words(const fathom_index_topk_args * args) {
    return 1 + (size_t) args->top_k;
}

static int64_t n_blocks_of(const fathom_step * step) {
    int64_t n_blocks = 0;
    for (int32_t r = 0; r < step->n_runs; r++) {
        n_blocks += (step->runs[r].n_tokens + TOKENS - 1) / TOKENS;
    }
    return n_blocks;
}

// Into how many parts the rows of each block of tokens are split: at least two blocks or parts a thread.
static int64_t n_parts_of(int64_t n_blocks, int32_t nth) {
    const int64_t n_parts = n_blocks >= 2 * nth ? 1 : (2 * nth + n_blocks - 1) / n_blocks;
    return n_parts < nth ? n_parts : nth;
}

size_t FATHOM_KERNEL(index_topk_scratch_bytes)(const fathom_index_topk_args * args, int32_t nth) {
    // Parts exist for fewer than 2 nth blocks, and blocks times parts is below 4 nth.
    const int64_t of_blocks = 4 * (int64_t) nth * TOKENS;
    const int64_t of_tokens = (int64_t) args->step->n_tokens * nth;
    const size_t n_parts = (size_t) (of_blocks < of_tokens ? of_blocks : of_tokens);
    return arena_bytes(args, nth) * (size_t) nth + n_parts * part_words(args) * sizeof(uint64_t);
}

static uint64_t * part_of(const fathom_index_topk_args * args, int32_t nth, int64_t t, int64_t n_parts, int64_t part) {
    uint64_t * parts = (uint64_t *) ((char *) args->scratch + arena_bytes(args, nth) * (size_t) nth);
    return parts + (size_t) (t * n_parts + part) * part_words(args);
}

static int64_t n_rows_of(const fathom_index_topk_args * args, int32_t t) {
    const fathom_run * run = &args->step->runs[args->step->run_of_token[t]];
    return (run->pos + (t - run->first) + 1) / args->ratio;
}

static void write_top(const fathom_index_topk_args * args, int32_t t, const uint64_t * keys, int32_t n) {
    int32_t * top = args->top + (int64_t) t * args->top_k;
    for (int32_t i = 0; i < args->top_k; i++) {
        top[i] = i >= n ? -1 : keys ? row_of_key(keys[i]) : i;
    }
    args->n_top[t] = n;
}

static void set_channels(const query * q, const float * heads, int32_t n_head) {
    memset(q->channels, 0, (size_t) q->d * (size_t) q->n_lanes * sizeof(float));
    for (int32_t h = 0; h < n_head; h++) {
        for (int32_t c = 0; c < q->d; c++) {
            q->channels[(int64_t) c * q->n_lanes + h] = heads[(int64_t) h * q->d + c];
        }
    }
}

static void set_query(const fathom_index_topk_args * args, int32_t row_type, int64_t n_rows, const arena * a, token * tok) {
    const float * q = args->q + (int64_t) tok->t * args->n_head * args->n_embd;
    const int32_t n_lanes = tok->q.n_lanes;
    memset(tok->q.weights, 0, (size_t) n_lanes * sizeof(float));
    memset(tok->q.bytes.fours, 0, (size_t) n_lanes * (size_t) args->n_embd);
    memset(tok->q.bytes.bias, 0, (size_t) n_lanes * sizeof(int32_t));
    memset(tok->q.bytes.weights, 0, (size_t) n_lanes * sizeof(float));
    for (int32_t h = 0; h < args->n_head; h++) {
        tok->q.weights[h] = args->weights[(int64_t) tok->t * args->n_head + h] * args->scale;
    }
    tok->in_bytes = 0;
    tok->is_bounded = 0;
    tok->n_scored = 0;
    tok->n_confirmed = 0;
    tok->kept.n = 0;
    tok->kept.is_open = 1;
    tok->heads = q;
    tok->n_head = args->n_head;
    set_channels(&tok->q, q, args->n_head);
    if (row_type == FATHOM_ROW_FP4) {
        tok->in_bytes = query_to_fp4(&tok->q, args->n_head);
        return;
    }
    // The bound has a price of its own, and excludes nothing as long as most rows win.
    if (VI_SHORT_IS_FAST && n_rows >= 4 * (int64_t) args->top_k && args->n_embd % 32 == 0) {
        tok->bound = query_to_bytes(&tok->q, q, args->n_head, &a->gram);
        tok->in_bytes = 1;
        tok->is_bounded = 1;
    }
}

// Entries from *at on that pass `least` and whose scores are not known yet, BLOCK at most; their keys are fetched.
static int32_t next_unknown(const keep * kept, const fathom_rows * keys, uint64_t least, int32_t * at, int32_t * entries) {
    int32_t n = 0;
    for (; *at < kept->n && n < BLOCK; ++*at) {
        if (kept->keys[*at] >= least && kept->upper[*at] != score_of_key(kept->keys[*at])) {
            const char * row = (const char *) fathom_row_at(keys, row_of_key(kept->keys[*at]));
            for (int64_t i = 0; i < keys->row_bytes; i += 64) {
                __builtin_prefetch(row + i, 0, 3);
            }
            entries[n++] = *at;
        }
    }
    return n;
}

// Scores of the entries that pass `least` (all: 0) and are not known yet: in f32, or closer bounds in 16 bits.
static inline __attribute__((always_inline)) void score_entries(token * tok, const fathom_rows * keys, uint64_t least, const error_bound * bound,
                                                                arena * a) {
    keep * kept = &tok->kept;
    const int32_t d = tok->q.d;
    int32_t entries[2][BLOCK];
    key_units units;
    float lower[BLOCK_LANES];
    float upper[BLOCK_LANES];
    int32_t at = 0;
    int32_t n = next_unknown(kept, keys, least, &at, entries[0]);
    for (int turn = 0; n > 0; turn ^= 1) {
        const int32_t * now = entries[turn];
        const int32_t n_next = next_unknown(kept, keys, least, &at, entries[turn ^ 1]);
        const void * rows[BLOCK];
        for (int32_t i = 0; i < n; i++) {
            rows[i] = fathom_row_at(keys, row_of_key(kept->keys[now[i]]));
        }
        if (bound) {
            load_keys(WORDS, keys->row_type, rows, n, d, a->gathered, (uint8_t *) a->words, &units);
            score_bounds(WORDS, &tok->q, &a->query_words, bound, a->gathered, (const uint8_t *) a->words, &units, n, lower, upper);
        } else {
            for (int32_t i = 0; i < n; i++) {
                vf_row_load(keys->row_type, d, 0, rows[i], a->gathered + (int64_t) i * d);
            }
            scores_f32(&tok->q, a->gathered, n, lower);
            tok->n_confirmed += n;
        }
        for (int32_t i = 0; i < n; i++) {
            kept->keys[now[i]] = key_of(lower[i], row_of_key(kept->keys[now[i]]));
            kept->upper[now[i]] = bound ? upper[i] : score_of_key(kept->keys[now[i]]);
        }
        n = n_next;
    }
}

static void confirm(token * tok, const fathom_rows * keys, uint64_t least, arena * a) {
    score_entries(tok, keys, least, NULL, a);
}

static void refine(token * tok, const fathom_rows * keys, arena * a) {
    const error_bound bound = query_to_words(&tok->q, &a->query_words, tok->heads, tok->n_head);
    score_entries(tok, keys, 0, &bound, a);
}

// Down to the k best, with their scores: first those that are likely to win, whose scores then exclude most others.
static void settle(token * tok, const fathom_rows * keys, arena * a) {
    keep * kept = &tok->kept;
    if (tok->is_bounded) {
        if (kept->n > kept->k) {
            confirm(tok, keys, select_largest(kept->keys, kept->n, kept->k, kept->work), a);
            keep_possible(kept);
            if (VI_DOT2_IS_FAST) {
                refine(tok, keys, a);
                keep_possible(kept);
            }
        }
        confirm(tok, keys, 0, a);
    }
    keep_best(kept);
}

// Room for one more block.
static void make_room(token * tok, const fathom_rows * keys, arena * a) {
    keep * kept = &tok->kept;
    if (kept->n + BLOCK <= kept->capacity) {
        return;
    }
    if (!tok->is_bounded) {
        keep_best(kept);
        return;
    }
    keep_possible(kept);
    if (kept->n > kept->capacity / 4 * 3) {
        settle(tok, keys, a);
        // A bound that confirms every other row costs more than it saves.
        if (2 * tok->n_confirmed > tok->n_scored) {
            tok->is_bounded = 0;
            tok->in_bytes = 0;
        }
    }
}

// Which forms of the block's keys are there.
typedef struct block {
    int64_t base;
    int32_t n;
    int     has_f32, has_bytes;
    int     is_wide;  // FP4 whose exponents do not fit bytes
} block;

static void expand_f32(const fathom_rows * keys, int32_t d, block * b, const arena * a) {
    if (b->has_f32) {
        return;
    }
    for (int32_t r = 0; r < b->n; r++) {
        vf_row_load(keys->row_type, d, 0, fathom_row_at(keys, b->base + r), a->keys + (int64_t) r * d);
    }
    b->has_f32 = 1;
}

static void expand_bytes(const fathom_rows * keys, int32_t d, block * b, arena * a) {
    if (b->has_bytes || b->is_wide) {
        return;
    }
    if (keys->row_type == FATHOM_ROW_FP4) {
        for (int32_t r = 0; r < b->n; r++) {
            const uint8_t * row = (const uint8_t *) fathom_row_at(keys, b->base + r);
            int32_t smallest;
            if (!common_exponent(row, d, &smallest)) {
                b->is_wide = 1;
                return;
            }
            expand_codes(row, d, smallest, a->bytes + (int64_t) r * d);
            a->units.units[r] = unit_of(smallest);
        }
    } else {
        const void * rows[BLOCK];
        for (int32_t r = 0; r < b->n; r++) {
            rows[r] = fathom_row_at(keys, b->base + r);
        }
        load_keys(SHORT, keys->row_type, rows, b->n, d, a->keys, a->bytes, &a->units);
        b->has_f32 = 1;
    }
    b->has_bytes = 1;
}

static void score_block(token * tok, const fathom_rows * keys, block * b, arena * a) {
    const int32_t d = tok->q.d;
    const int64_t visible = tok->n_rows - b->base;
    const int32_t n = (int32_t) (visible < b->n ? visible : b->n);
    float lower[BLOCK_LANES];
    float upper[BLOCK_LANES];
    if (n <= 0) {
        return;
    }
    make_room(tok, keys, a);
    tok->n_scored += n;
    if (tok->in_bytes) {
        expand_bytes(keys, d, b, a);
    }
    if (tok->is_bounded) {
        score_bounds(SHORT, &tok->q, &tok->q.bytes, &tok->bound, a->keys, a->bytes, &a->units, n, lower, upper);
        keep_block(&tok->kept, (int32_t) b->base, n, lower, upper);
        return;
    }
    if (tok->in_bytes && !b->is_wide) {
        scores_whole(EXACT, d / 4, tok->q.n_lanes, &tok->q.bytes, a->bytes, n, lower);
        for (int r = 0; r < n; r += VF_LANES) {
            vf_store(lower + r, vf_mul(vf_load(lower + r), vf_load(a->units.units + r)));
        }
    } else {
        expand_f32(keys, d, b, a);
        scores_f32(&tok->q, a->keys, n, lower);
    }
    keep_block(&tok->kept, (int32_t) b->base, n, lower, lower);
}

// The processor's own prefetching ends at pages, of which a row takes a good part.
static void prefetch_block(const fathom_rows * keys, int64_t base, int64_t end) {
    for (int64_t next = base; next < end && next < base + BLOCK; next++) {
        const char * row = (const char *) fathom_row_at(keys, next);
        for (int64_t i = 0; i < keys->row_bytes; i += 64) {
            __builtin_prefetch(row + i, 0, 2);
        }
    }
}

static void scan_block(const fathom_index_topk_args * args, int32_t r, int32_t first, int32_t n_tokens, int64_t part, int64_t n_parts,
                       int32_t nth, arena * a) {
    const fathom_rows * keys = &args->keys[r];
    const int64_t n_rows = n_rows_of(args, first + n_tokens - 1);
    const int64_t n_steps = (n_rows + BLOCK - 1) / BLOCK;
    const int64_t begin = n_steps * part / n_parts * BLOCK;
    const int64_t part_end = n_steps * (part + 1) / n_parts * BLOCK;
    const int64_t end = part_end < n_rows ? part_end : n_rows;
    int n_active = 0;
    for (int32_t t = first; t < first + n_tokens; t++) {
        token * tok = &a->tokens[n_active];
        tok->t = t;
        tok->n_rows = n_rows_of(args, t);
        if (tok->n_rows <= args->top_k) {
            if (part == 0) {
                write_top(args, t, NULL, (int32_t) tok->n_rows);
            }
        } else {
            set_query(args, keys->row_type, (tok->n_rows < end ? tok->n_rows : end) - begin, a, tok);
            n_active++;
        }
    }
    if (n_active == 0) {
        return;
    }
    for (block b = {.base = begin}; b.base < end; b = (block) {.base = b.base + BLOCK}) {
        b.n = (int32_t) (end - b.base < BLOCK ? end - b.base : BLOCK);
        prefetch_block(keys, b.base + AHEAD * BLOCK, end);
        for (int i = 0; i < n_active; i++) {
            score_block(&a->tokens[i], keys, &b, a);
        }
    }
    for (int i = 0; i < n_active; i++) {
        token * tok = &a->tokens[i];
        settle(tok, keys, a);
        if (n_parts == 1) {
            write_top(args, tok->t, tok->kept.keys, tok->kept.n);
        } else {
            uint64_t * out = part_of(args, nth, tok->t, n_parts, part);
            out[0] = (uint64_t) tok->kept.n;
            memcpy(out + 1, tok->kept.keys, (size_t) tok->kept.n * sizeof(uint64_t));
        }
    }
}

void FATHOM_KERNEL(index_topk_scan)(const fathom_index_topk_args * args, int32_t ith, int32_t nth) {
    arena a;
    lay_out(args, nth, (char *) args->scratch + arena_bytes(args, nth) * (size_t) ith, &a);
    const int64_t n_parts = n_parts_of(n_blocks_of(args->step), nth);
    int64_t item = 0;  // (block of tokens, part), dealt to the threads in turn
    for (int32_t r = 0; r < args->step->n_runs; r++) {
        const fathom_run * run = &args->step->runs[r];
        for (int32_t i = 0; i < run->n_tokens; i += TOKENS) {
            const int32_t n_tokens = run->n_tokens - i < TOKENS ? run->n_tokens - i : TOKENS;
            for (int64_t part = 0; part < n_parts; part++, item++) {
                if (item % nth == ith) {
                    scan_block(args, r, run->first + i, n_tokens, part, n_parts, nth, &a);
                }
            }
        }
    }
}

void FATHOM_KERNEL(index_topk_merge)(const fathom_index_topk_args * args, int32_t ith, int32_t nth) {
    const int64_t n_parts = n_parts_of(n_blocks_of(args->step), nth);
    if (n_parts == 1) {
        return;
    }
    arena a;
    lay_out(args, nth, (char *) args->scratch + arena_bytes(args, nth) * (size_t) ith, &a);
    for (int32_t t = ith; t < args->step->n_tokens; t += nth) {
        if (n_rows_of(args, t) <= args->top_k) {
            continue;
        }
        int32_t n = 0;
        for (int64_t part = 0; part < n_parts; part++) {
            const uint64_t * winners = part_of(args, nth, t, n_parts, part);
            memcpy(a.joined + n, winners + 1, (size_t) winners[0] * sizeof(uint64_t));
            n += (int32_t) winners[0];
        }
        const uint64_t last = select_largest(a.joined, n, args->top_k, a.tokens[0].kept.work);
        int32_t n_top = 0;
        for (int32_t i = 0; i < n; i++) {
            const uint64_t key = a.joined[i];
            a.joined[n_top] = key;
            n_top += key >= last;
        }
        write_top(args, t, a.joined, n_top);
    }
}
