// expert_ffn: grouped by expert, whatever the number of tokens. For each expert that any token chose, the rows of its matrices are
// split among the threads; rows are taken JOB_ROWS at a time and used for all tokens of the expert (job.h). One token is the same
// walk with one pair for each expert.
//
// The sum over the experts of a token is in the order of expert ids, so that `down` needs no room for the products of every pair.

#include "../../simd/isa.h"
#include "args.h"

#include <math.h>

#include "float.h"
#include "int8.h"
#include "job.h"

// How activations meet a weight type.
typedef enum partner { PARTNER_F32, PARTNER_INT8, PARTNER_GGML } partner;

static partner partner_of(const fathom_expert_ffn_args * a, const fathom_expert_weights * w) {
    switch (w->type) {
        case FATHOM_TYPE_F32:
        case FATHOM_TYPE_F16:
        case FATHOM_TYPE_BF16:
            return PARTNER_F32;
        case FATHOM_TYPE_Q8_0:
        case FATHOM_TYPE_MXFP4:
        case FATHOM_TYPE_NVFP4:
            return a->exact ? PARTNER_F32 : PARTNER_INT8;
        default:
            return a->exact ? PARTNER_F32 : PARTNER_GGML;
    }
}

// Bytes of one row of activations; 0: they stay where they are.
static int64_t partner_bytes(const fathom_expert_ffn_args * a, const fathom_expert_weights * w, int32_t n_cols) {
    switch (partner_of(a, w)) {
        case PARTNER_INT8: return (int64_t) sizeof(activations) * (n_cols / 32);
        case PARTNER_GGML: return w->partner_bytes;
        default:           return 0;
    }
}

static void to_partner(const fathom_expert_ffn_args * a, const fathom_expert_weights * w, const float * x, int32_t n, uint8_t * out) {
    switch (partner_of(a, w)) {
        case PARTNER_INT8:
            for (int32_t b = 0; b < n / 32; b++) {
                activations_round(w->type, x + 32 * b, (activations *) (void *) out + b);
            }
            break;
        case PARTNER_GGML: w->partner_from_float(x, out, n); break;
        default:           break;
    }
}

// Scratch memory, part after part.
typedef struct parts {
    int32_t * active;   // i32 [1 + n_expert]: how many experts are in use, and which, ascending
    int32_t * first;    // i32 [n_expert + 1]: where an expert's pairs begin
    int32_t * pairs;    // i32 [n_used * n_tokens]: token * n_used + slot, by expert, then by token
    uint8_t * x_gate;   // activations of every token
    uint8_t * x_up;     // the same memory when the type is the same
    float *   h;        // f32 [n_ff, pairs]
    uint8_t * x_down;   // activations of every pair
    uint8_t * buffers;  // of every thread
    uint8_t * padded;   // of every thread: a tile of rows, for matrices smaller than one
    int64_t   buffer_bytes, padded_bytes;
    size_t    bytes;
} parts;

static uint8_t * take(parts * p, uint8_t * base, size_t bytes) {
    uint8_t * at = base ? base + p->bytes : NULL;
    p->bytes += (bytes + 63) / 64 * 64;
    return at;
}

static parts parts_of(const fathom_expert_ffn_args * a, int32_t nth) {
    uint8_t *     base     = a->scratch;
    const size_t  n_tokens = (size_t) a->n_tokens, n_pairs = n_tokens * (size_t) a->n_used;
    const int32_t widest   = a->n_embd > a->n_ff ? a->n_embd : a->n_ff;
    parts p = { 0 };
    p.active = (int32_t *) (void *) take(&p, base, sizeof(int32_t) * (size_t) (1 + a->n_expert));
    p.first  = (int32_t *) (void *) take(&p, base, sizeof(int32_t) * (size_t) (1 + a->n_expert));
    p.pairs  = (int32_t *) (void *) take(&p, base, sizeof(int32_t) * n_pairs);
    p.x_gate = take(&p, base, (size_t) partner_bytes(a, &a->gate, a->n_embd) * n_tokens);
    p.x_up   = a->up.type == a->gate.type ? p.x_gate : take(&p, base, (size_t) partner_bytes(a, &a->up, a->n_embd) * n_tokens);
    p.h      = (float *) (void *) take(&p, base, sizeof(float) * (size_t) a->n_ff * n_pairs);
    p.x_down = take(&p, base, (size_t) partner_bytes(a, &a->down, a->n_ff) * n_pairs);
    p.buffer_bytes = (int64_t) (float_buffer_bytes(widest) + 63) / 64 * 64;
    p.buffers      = take(&p, base, (size_t) p.buffer_bytes * (size_t) nth);
    if (a->n_ff < JOB_ROWS || a->n_embd < JOB_ROWS) {
        const int64_t gate = a->gate.row_bytes > a->up.row_bytes ? a->gate.row_bytes : a->up.row_bytes;
        p.padded_bytes = (JOB_ROWS * (gate > a->down.row_bytes ? gate : a->down.row_bytes) + 63) / 64 * 64;
        p.padded       = take(&p, base, (size_t) p.padded_bytes * (size_t) nth);
    }
    return p;
}

size_t FATHOM_KERNEL(expert_ffn_scratch_bytes)(const fathom_expert_ffn_args * a, int32_t nth) {
    fathom_expert_ffn_args nowhere = *a;
    nowhere.scratch = NULL;
    return parts_of(&nowhere, nth).bytes;
}

// Sorts the pairs by expert.
static void group(const fathom_expert_ffn_args * a, const parts * p) {
    const int32_t n = a->n_tokens * a->n_used;
    memset(p->first, 0, sizeof(int32_t) * (size_t) (1 + a->n_expert));
    for (int32_t i = 0; i < n; i++) {
        if (a->ids[i] >= 0) {
            p->first[a->ids[i]]++;
        }
    }
    int32_t n_active = 0, sum = 0;
    for (int32_t e = 0; e < a->n_expert; e++) {
        const int32_t n_pairs = p->first[e];
        if (n_pairs > 0) {
            p->active[1 + n_active++] = e;
        }
        p->first[e] = sum;
        sum += n_pairs;
    }
    p->active[0] = n_active;
    for (int32_t i = 0; i < n; i++) {
        if (a->ids[i] >= 0) {
            p->pairs[p->first[a->ids[i]]++] = i;
        }
    }
    // Filling has moved every beginning to the end: one place up they are right again.
    memmove(p->first + 1, p->first, sizeof(int32_t) * (size_t) a->n_expert);
    p->first[0] = 0;
}

void FATHOM_KERNEL(expert_ffn_prepare)(const fathom_expert_ffn_args * a, int32_t ith, int32_t nth) {
    const parts p = parts_of(a, nth);
    for (int32_t t = ith; t < a->n_tokens; t += nth) {
        const float * x = a->x + (int64_t) t * a->n_embd;
        to_partner(a, &a->gate, x, a->n_embd, p.x_gate + t * partner_bytes(a, &a->gate, a->n_embd));
        if (p.x_up != p.x_gate) {
            to_partner(a, &a->up, x, a->n_embd, p.x_up + t * partner_bytes(a, &a->up, a->n_embd));
        }
    }
    if (ith == nth - 1) {
        group(a, &p);
    }
}

void FATHOM_KERNEL(expert_ffn_regroup)(const fathom_expert_ffn_args * a, int32_t ith, int32_t nth) {
    const parts p = parts_of(a, nth);
    for (int32_t i = ith; i < p.first[a->n_expert]; i += nth) {
        to_partner(a, &a->down, p.h + (int64_t) i * a->n_ff, a->n_ff, p.x_down + i * partner_bytes(a, &a->down, a->n_ff));
    }
}

// Tiles of a matrix that are this thread's.
typedef struct stretch {
    int32_t begin, end;
} stretch;

static stretch stretch_of(int32_t n_rows, int32_t ith, int32_t nth) {
    const int64_t n_tiles = (n_rows + JOB_ROWS - 1) / JOB_ROWS;
    return (stretch) { (int32_t) (n_tiles * ith / nth), (int32_t) (n_tiles * (ith + 1) / nth) };
}

// The rows that a kernel reads for a tile: the last tile of a matrix begins where a whole one still fits.
static int32_t first_row(int32_t n_rows, int32_t tile) {
    const int32_t row = tile * JOB_ROWS;
    return row + JOB_ROWS <= n_rows || n_rows < JOB_ROWS ? row : n_rows - JOB_ROWS;
}

static const uint8_t * rows_at(const fathom_expert_weights * w, int32_t expert, int32_t n_rows, int32_t tile) {
    return (const uint8_t *) w->experts[expert] + first_row(n_rows, tile) * w->row_bytes;
}

static void run_tile(job * j, int32_t tile) {
    j->row       = tile * JOB_ROWS;
    j->first_row = first_row(j->n_rows, tile);
    j->n_valid   = j->n_rows - j->row < JOB_ROWS ? j->n_rows - j->row : JOB_ROWS;
    j->rows      = rows_at(j->weights, j->expert, j->n_rows, tile);
    if (j->n_rows < JOB_ROWS) {  // a matrix smaller than a tile: in a copy, filled up with its last row
        const size_t row_bytes = (size_t) j->weights->row_bytes;
        for (int32_t r = 0; r < JOB_ROWS; r++) {
            memcpy(j->padded + (size_t) r * row_bytes, j->rows + (size_t) (r < j->n_rows ? r : j->n_rows - 1) * row_bytes, row_bytes);
        }
        j->rows = j->padded;
    }
    switch (partner_of(j->args, j->weights)) {
        case PARTNER_F32:  float_rows(j); break;
        case PARTNER_INT8: int8_rows(j); break;
        case PARTNER_GGML: ggml_rows(j); break;
    }
}

static job job_of(const fathom_expert_ffn_args * a, const parts * p, int32_t ith) {
    return (job) { .args = a, .h = p->h, .buffer = p->buffers + ith * p->buffer_bytes, .padded = p->padded ? p->padded + ith * p->padded_bytes : NULL };
}

static void choose_expert(job * j, const parts * p, int32_t expert) {
    j->expert  = expert;
    j->first   = p->first[expert];
    j->n_pairs = p->first[expert + 1] - p->first[expert];
    j->pairs   = p->pairs + p->first[expert];
}

static void choose_matrix(job * j, const fathom_expert_weights * w, emit emit, int32_t n_rows, int32_t n_cols, const void * x) {
    j->weights = w;
    j->emit    = emit;
    j->n_rows  = n_rows;
    j->n_cols  = n_cols;
    const int64_t bytes = partner_bytes(j->args, w, n_cols);
    j->x_by_pair = emit == EMIT_DOWN;
    if (bytes > 0) {
        j->x       = x;
        j->x_bytes = bytes;
    } else {
        j->x       = emit == EMIT_DOWN ? (const uint8_t *) j->h : (const uint8_t *) j->args->x;
        j->x_bytes = (int64_t) sizeof(float) * n_cols;
    }
}

// Rows are read in the order gate, up, gate, up ..; while one tile is computed the next one is fetched.
void FATHOM_KERNEL(expert_ffn_gate_up)(const fathom_expert_ffn_args * a, int32_t ith, int32_t nth) {
    const parts   p     = parts_of(a, nth);
    const stretch tiles = stretch_of(a->n_ff, ith, nth);
    job           j     = job_of(a, &p, ith);
    for (int32_t k = 0; k < p.active[0]; k++) {
        const int32_t expert = p.active[1 + k];
        const int32_t next   = k + 1 < p.active[0] ? p.active[2 + k] : expert;
        choose_expert(&j, &p, expert);
        for (int32_t tile = tiles.begin; tile < tiles.end; tile++) {
            choose_matrix(&j, &a->gate, EMIT_GATE, a->n_ff, a->n_embd, p.x_gate);
            j.ahead = rows_at(&a->up, expert, a->n_ff, tile);
            run_tile(&j, tile);
            choose_matrix(&j, &a->up, EMIT_UP, a->n_ff, a->n_embd, p.x_up);
            j.ahead = tile + 1 < tiles.end ? rows_at(&a->gate, expert, a->n_ff, tile + 1) : rows_at(&a->gate, next, a->n_ff, tiles.begin);
            run_tile(&j, tile);
        }
    }
}

void FATHOM_KERNEL(expert_ffn_down)(const fathom_expert_ffn_args * a, int32_t ith, int32_t nth) {
    const parts   p     = parts_of(a, nth);
    const stretch tiles = stretch_of(a->n_embd, ith, nth);
    const int32_t row   = tiles.begin * JOB_ROWS;
    const int32_t end   = tiles.end * JOB_ROWS < a->n_embd ? tiles.end * JOB_ROWS : a->n_embd;
    for (int64_t t = 0; t < a->n_tokens && row < end; t++) {
        memset(a->y + t * a->n_embd + row, 0, sizeof(float) * (size_t) (end - row));
    }
    job j = job_of(a, &p, ith);
    for (int32_t k = 0; k < p.active[0]; k++) {
        const int32_t expert = p.active[1 + k];
        const int32_t next   = k + 1 < p.active[0] ? p.active[2 + k] : expert;
        choose_expert(&j, &p, expert);
        choose_matrix(&j, &a->down, EMIT_DOWN, a->n_embd, a->n_ff, p.x_down);
        for (int32_t tile = tiles.begin; tile < tiles.end; tile++) {
            j.ahead = tile + 1 < tiles.end ? rows_at(&a->down, expert, a->n_embd, tile + 1) : rows_at(&a->down, next, a->n_embd, tiles.begin);
            run_tile(&j, tile);
        }
    }
}
