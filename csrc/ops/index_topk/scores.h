// Scores of a block of keys for one token, in f32 and in bytes.
//
// Heads are lanes: a tile of TILE_VECTORS vectors of heads x some keys takes one channel of each key (or four, in bytes) for all its
// heads at a time. 128 * 64 multiply-adds a key: bound by vf_fma, or by vi_dot4. Whatever tile a key falls into, its score is
// summed in the same order.
#pragma once

#include "../../simd/rows.h"

enum {
    BLOCK = 24,  // keys that are expanded together; a multiple of the tiles' heights
    TILE_VECTORS = 2,
#if VF_REGISTERS >= 32
    TILE_ROWS = 12,
    TILE_ROWS_OF_BYTES = 8,
#else
    TILE_ROWS = 6,
    TILE_ROWS_OF_BYTES = 4,
#endif
    BLOCK_LANES = (BLOCK + VF_LANES - 1) / VF_LANES * VF_LANES,
};

// The heads of one token. n_lanes: heads filled up with zeros to whole vectors.
typedef struct query {
    int32_t d, n_lanes;
    float *   channels;       // [d][n_lanes]
    float *   weights;        // [n_lanes], with the scale
    int8_t *  bytes;          // [d / 4][n_lanes][4]
    int32_t * bytes_bias;     // [n_lanes]: what VI_DOT4_OFFSET of the keys adds, negated
    float *   bytes_weights;  // [n_lanes], with the scale and the size of a byte's unit
    float *   linear;         // [d]: see bound.h
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

// With `is_halved` the magnitude of the dot takes the place of relu.
static inline __attribute__((always_inline)) void tile_bytes(int is_halved, int n_vectors, int32_t d, const query * q, int32_t first_lane, const uint8_t * keys, vf * sums) {
    vi dots[TILE_VECTORS][TILE_ROWS_OF_BYTES];
    for (int v = 0; v < n_vectors; v++) {
        const vi bias = vi_load(q->bytes_bias + first_lane + v * VF_LANES);
        for (int r = 0; r < TILE_ROWS_OF_BYTES; r++) {
            dots[v][r] = bias;
        }
    }
    const int8_t * four = q->bytes + 4 * first_lane;
    for (int32_t c = 0; c < d; c += 4, four += 4 * q->n_lanes) {
        vi heads[TILE_VECTORS];
        for (int v = 0; v < n_vectors; v++) {
            heads[v] = vi_load(four + 4 * v * VF_LANES);
        }
        for (int r = 0; r < TILE_ROWS_OF_BYTES; r++) {
            int32_t key;
            memcpy(&key, keys + (int64_t) r * d + c, sizeof key);
            for (int v = 0; v < n_vectors; v++) {
                dots[v][r] = vi_dot4(dots[v][r], vi_set1(key), heads[v]);
            }
        }
    }
    for (int v = 0; v < n_vectors; v++) {
        const vf weight = vf_load(q->bytes_weights + first_lane + v * VF_LANES);
        for (int r = 0; r < TILE_ROWS_OF_BYTES; r++) {
            const vi dot = is_halved ? vi_abs(dots[v][r]) : vi_relu(dots[v][r]);
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

// keys: bytes [BLOCK][d] with VI_DOT4_OFFSET added; the scores are still to be multiplied by the keys' units.
static inline __attribute__((always_inline)) void scores_bytes(int is_halved, const query * q, const uint8_t * keys, int32_t n, float * scores) {
    vf sums[BLOCK];
    for (int r = 0; r < BLOCK; r++) {
        sums[r] = vf_set1(0.0f);
    }
    for (int32_t lane = 0; lane < q->n_lanes; lane += TILE_VECTORS * VF_LANES) {
        const int is_full = lane + TILE_VECTORS * VF_LANES <= q->n_lanes;
        for (int32_t r = 0; r < n; r += TILE_ROWS_OF_BYTES) {
            if (is_full && q->d == 128) {  // strides that are known
                tile_bytes(is_halved, TILE_VECTORS, 128, q, lane, keys + (int64_t) r * 128, sums + r);
            } else if (is_full) {
                tile_bytes(is_halved, TILE_VECTORS, q->d, q, lane, keys + (int64_t) r * q->d, sums + r);
            } else {
                tile_bytes(is_halved, 1, q->d, q, lane, keys + (int64_t) r * q->d, sums + r);
            }
        }
    }
    sum_lanes(sums, scores);
}

