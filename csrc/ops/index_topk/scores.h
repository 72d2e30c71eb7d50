// Scores of a block of keys for one token, in f32 and in whole numbers of 8 and 16 bits.
//
// Heads are lanes: a tile of TILE_VECTORS vectors of heads x some keys takes one channel of each key (or as many as four bytes hold) for all its
// heads at a time. 128 * 64 multiply-adds a key: bound by vf_fma, vi_dot4 or vi_short4. Whatever tile a key falls into, its score is
// summed in the same order.
#pragma once

#include "../../simd/rows.h"

enum {
    BLOCK = 24,  // keys that are expanded together; a multiple of the tiles' heights
    TILE_VECTORS = 2,
#if VF_REGISTERS >= 32
    TILE_ROWS = 12,
    TILE_ROWS_OF_EXACT = 8,
    TILE_ROWS_OF_ROUNDED = 8,
#else
    TILE_ROWS = 6,
    TILE_ROWS_OF_EXACT = 4,
    TILE_ROWS_OF_ROUNDED = 6,
#endif
    BLOCK_LANES = (BLOCK + VF_LANES - 1) / VF_LANES * VF_LANES,
};

// What four bytes of a key hold.
typedef enum whole {
    EXACT,  // bytes of vi_dot4
    SHORT,  // bytes of vi_short4
    WORDS,  // two numbers of 16 bits
} whole;

// Heads in whole numbers, and what they stand for.
typedef struct whole_heads {
    int8_t *  fours;    // [bytes of a key / 4][n_lanes][4]
    int32_t * bias;     // [n_lanes]: what the offset of the keys' bytes adds, negated
    float *   weights;  // [n_lanes], with the scale and the size of a unit
} whole_heads;

// The heads of one token. n_lanes: heads filled up with zeros to whole vectors.
typedef struct query {
    int32_t d, n_lanes;
    float *     channels;  // [d][n_lanes]
    float *     weights;   // [n_lanes], with the scale
    whole_heads bytes;
    float *     linear;    // [d]: see bound.h
} query;

// sums[r] += weight * relu(dot) over the heads of n_vectors vectors.
static inline __attribute__((always_inline)) void tile_f32(int n_vectors, int32_t d, const query * q, int32_t first_lane, const float * keys, vf * sums) {
    vf dots[TILE_VECTORS][TILE_ROWS];
    for (int v = 0; v < n_vectors; v++) {
        for (int r = 0; r < TILE_ROWS; r++) {
            dots[v][r] = vf_set1(0.0f);
        }
    }
    const float * channel = q->channels + first_lane;
    for (int32_t c = 0; c < d; c++, channel += q->n_lanes) {
        vf heads[TILE_VECTORS];
        for (int v = 0; v < n_vectors; v++) {
            heads[v] = vf_load(channel + v * VF_LANES);
        }
        for (int r = 0; r < TILE_ROWS; r++) {
            const vf key = vf_set1(keys[(int64_t) r * d + c]);
            for (int v = 0; v < n_vectors; v++) {
                dots[v][r] = vf_fma(heads[v], key, dots[v][r]);
            }
        }
    }
    for (int v = 0; v < n_vectors; v++) {
        const vf weight = vf_load(q->weights + first_lane + v * VF_LANES);
        for (int r = 0; r < TILE_ROWS; r++) {
            sums[r] = vf_fma(weight, vf_max(dots[v][r], vf_set1(0.0f)), sums[r]);
        }
    }
}

static inline int rows_of_tile(whole kind) {
    return kind == EXACT ? TILE_ROWS_OF_EXACT : TILE_ROWS_OF_ROUNDED;
}

// n_steps: bytes of a key / 4. Of numbers that were rounded the magnitude of the dot takes the place of relu.
static inline __attribute__((always_inline)) void tile_whole(whole kind, int n_vectors, int32_t n_steps, int32_t n_lanes, const whole_heads * q,
                                                             int32_t first_lane, const uint8_t * keys, vf * sums) {
    const int n_rows = rows_of_tile(kind);
    vi dots[TILE_VECTORS][TILE_ROWS_OF_ROUNDED];
    for (int v = 0; v < n_vectors; v++) {
        const vi bias = vi_load(q->bias + first_lane + v * VF_LANES);
        for (int r = 0; r < n_rows; r++) {
            dots[v][r] = bias;
        }
    }
    const int8_t * fours = q->fours + 4 * first_lane;
    for (int32_t step = 0; step < n_steps; step++, fours += 4 * n_lanes) {
        vi heads[TILE_VECTORS];
        for (int v = 0; v < n_vectors; v++) {
            heads[v] = vi_load(fours + 4 * v * VF_LANES);
        }
        for (int r = 0; r < n_rows; r++) {
            int32_t four;
            memcpy(&four, keys + 4 * ((int64_t) r * n_steps + step), sizeof four);
            const vi key = vi_set1(four);
            for (int v = 0; v < n_vectors; v++) {
                dots[v][r] = kind == EXACT   ? vi_dot4(dots[v][r], key, heads[v])
                             : kind == SHORT ? vi_short4(dots[v][r], key, heads[v])
                                             : vi_dot2(dots[v][r], key, heads[v]);
            }
        }
    }
    for (int v = 0; v < n_vectors; v++) {
        const vf weight = vf_load(q->weights + first_lane + v * VF_LANES);
        for (int r = 0; r < n_rows; r++) {
            const vi dot = kind == EXACT ? vi_relu(dots[v][r]) : vi_abs(kind == SHORT ? vi_short_sum(dots[v][r]) : dots[v][r]);
            sums[r] = vf_fma(weight, vf_of_vi(dot), sums[r]);
        }
    }
}

static void sum_lanes(const vf * sums, float * scores) {
    for (int r = 0; r < BLOCK; r += 4) {
        vf_reduce4(scores + r, sums[r], sums[r + 1], sums[r + 2], sums[r + 3]);
    }
}

// keys: f32 [BLOCK][d], of which n count; scores: [BLOCK_LANES].
static void scores_f32(const query * q, const float * keys, int32_t n, float * scores) {
    vf sums[BLOCK];
    for (int r = 0; r < BLOCK; r++) {
        sums[r] = vf_set1(0.0f);
    }
    for (int32_t lane = 0; lane < q->n_lanes; lane += TILE_VECTORS * VF_LANES) {
        const int is_full = lane + TILE_VECTORS * VF_LANES <= q->n_lanes;
        for (int32_t r = 0; r < n; r += TILE_ROWS) {
            if (is_full && q->d == 128) {  // strides that are known
                tile_f32(TILE_VECTORS, 128, q, lane, keys + (int64_t) r * 128, sums + r);
            } else if (is_full) {
                tile_f32(TILE_VECTORS, q->d, q, lane, keys + (int64_t) r * q->d, sums + r);
            } else {
                tile_f32(1, q->d, q, lane, keys + (int64_t) r * q->d, sums + r);
            }
        }
    }
    sum_lanes(sums, scores);
}

// keys: [BLOCK][4 * n_steps] bytes; the scores are still to be multiplied by the keys' units.
static inline __attribute__((always_inline)) void scores_whole(whole kind, int32_t n_steps, int32_t n_lanes, const whole_heads * q, const uint8_t * keys,
                                                               int32_t n, float * scores) {
    const int32_t usual = kind == WORDS ? 64 : 32;  // strides that are known
    vf sums[BLOCK];
    for (int r = 0; r < BLOCK; r++) {
        sums[r] = vf_set1(0.0f);
    }
    for (int32_t lane = 0; lane < n_lanes; lane += TILE_VECTORS * VF_LANES) {
        const int is_full = lane + TILE_VECTORS * VF_LANES <= n_lanes;
        for (int32_t r = 0; r < n; r += rows_of_tile(kind)) {
            const uint8_t * tile = keys + 4 * (int64_t) r * n_steps;
            if (is_full && n_steps == usual) {
                tile_whole(kind, TILE_VECTORS, usual, n_lanes, q, lane, tile, sums + r);
            } else if (is_full) {
                tile_whole(kind, TILE_VECTORS, n_steps, n_lanes, q, lane, tile, sums + r);
            } else {
                tile_whole(kind, 1, n_steps, n_lanes, q, lane, tile, sums + r);
            }
        }
    }
    sum_lanes(sums, scores);
}
