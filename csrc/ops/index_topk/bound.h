// How far a score computed in whole numbers can be from the score in f32.
//
// relu(z) = (z + |z|) / 2, so s(k) = l . k + 1/2 sum_h weight_h |q_h . k| with l = 1/2 sum_h weight_h q_h: half of a score is one dot
// product, which is computed in f32. In the other half, with q = q^ + dq for each head and k = k^ + dk (q^ and k^ in whole numbers of a unit),
//   |s(k) - s^(k)| <= 1/2 sum_h w_h |dq_h . k + q^_h . dk|         w_h = |weight_h|, the scale included
//                  <= 1/2 sqrt(W) (sqrt(lambda(dq)) |k| + sqrt(lambda(q^)) |dk|)      by Cauchy-Schwarz, W = sum_h w_h,
// where lambda(x) is the largest eigenvalue of the Gram matrix G of the vectors sqrt(w_h) x_h. lambda(x)^2 is at most the largest
// sum of absolute values in a row of G * G. In 16 bits the errors are so small that the sum over heads of w_h (|dq_h| |k| + |q^_h| |dk|) will do.
// The float32 rounding of both scores is at most ROUNDING * sum_h w_h |q_h| |k|.
#pragma once

#include "scores.h"

// (128 channels + 64 heads + a few) * 2^-24 for the score in f32, two thirds of that for the other: half a dot product of as many
// terms, and a sum over heads of whole numbers.
#define ROUNDING 3e-5f
// Rounding of what is computed below: each entry of G has a relative error of 128 * 2^-24 of a product of two lengths, a row 64 entries.
#define SLACK 1.002f

// The bound for a key is per_error * |dk| + per_length * |k|.
typedef struct error_bound {
    float per_error, per_length;
} error_bound;

// Memory: [n_lanes][d] and [n_lanes][n_lanes].
typedef struct gram {
    float * vectors;
    float * products;
} gram;

static float largest_eigenvalue(const gram * g, int32_t n, int32_t d) {
    for (int32_t i = 0; i < n; i += 4) {
        for (int32_t j = i; j < n; j += 4) {
            vf sums[4][4];
            for (int a = 0; a < 16; a++) {
                sums[a / 4][a % 4] = vf_set1(0.0f);
            }
            for (int32_t c = 0; c < d; c += VF_LANES) {
                for (int a = 0; a < 4; a++) {
                    const vf left = vf_load(g->vectors + (int64_t) (i + a) * d + c);
                    for (int b = 0; b < 4; b++) {
                        sums[a][b] = vf_fma(left, vf_load(g->vectors + (int64_t) (j + b) * d + c), sums[a][b]);
                    }
                }
            }
            for (int a = 0; a < 4; a++) {
                float * row = g->products + (int64_t) (i + a) * n + j;
                vf_reduce4(row, sums[a][0], sums[a][1], sums[a][2], sums[a][3]);
                for (int b = 0; b < 4; b++) {
                    g->products[(int64_t) (j + b) * n + i + a] = row[b];
                }
            }
        }
    }
    float largest = 0.0f;
    for (int32_t i = 0; i < n; i += 4) {
        vf row_sums[4] = {vf_set1(0.0f), vf_set1(0.0f), vf_set1(0.0f), vf_set1(0.0f)};
        for (int32_t j = 0; j < n; j += VF_LANES) {
            vf sums[4] = {vf_set1(0.0f), vf_set1(0.0f), vf_set1(0.0f), vf_set1(0.0f)};
            for (int32_t k = 0; k < n; k++) {
                const vf column = vf_load(g->products + (int64_t) k * n + j);
                for (int a = 0; a < 4; a++) {
                    sums[a] = vf_fma(vf_set1(g->products[(int64_t) (i + a) * n + k]), column, sums[a]);
                }
            }
            for (int a = 0; a < 4; a++) {
                row_sums[a] = vf_add(row_sums[a], vf_abs(sums[a]));
            }
        }
        float squared[4];
        vf_reduce4(squared, row_sums[0], row_sums[1], row_sums[2], row_sums[3]);
        largest = fmaxf(largest, fmaxf(fmaxf(squared[0], squared[1]), fmaxf(squared[2], squared[3])));
    }
    return sqrtf(largest);
}

// What whole numbers can hold: the largest one, and the length of a vector (of half its channels in sums of vi_short4) that leaves room for
// its rounding.
static inline float most_of(whole kind) {
    return kind == WORDS ? 32767.0f : VI_SHORT_LARGEST;
}

static inline float room_of(whole kind, int32_t d) {
    const float length = kind == WORDS ? 46340.0f : VI_SHORT_LENGTH;  // squared: below 2^31, 2^15
    return 0.999f * (length - 0.5f * sqrtf((float) d));
}

// A part of a query's head as whole numbers of `unit`.
static inline vf in_units(vf x, float unit, float most) {
    const vf inverse = vf_set1(unit > 1e-30f ? 1.0f / unit : 0.0f);
    return vf_max(vf_min(vf_round(vf_mul(x, inverse)), vf_set1(most)), vf_set1(-most));
}

// The query in bytes, and its bound. heads: f32 [n_head][d]; d in whole vectors.
static error_bound query_to_bytes(query * q, const float * heads, int32_t n_head, const gram * g) {
    const int32_t d = q->d;
    float total = 0.0f;    // W
    float lengths = 0.0f;  // sum_h w_h |q_h|
    float eigenvalues[2];  // of dq, of q^
    float units[n_head];
    uint8_t bytes[d];
    memset(q->linear, 0, (size_t) d * sizeof(float));
    for (int32_t h = 0; h < n_head; h++) {
        const float * head = heads + (int64_t) h * d;
        vf largest = vf_set1(0.0f);
        vf squares = vf_set1(0.0f);
        for (int32_t c = 0; c < d; c += VF_LANES) {
            const vf x = vf_load(head + c);
            largest = vf_max(largest, vf_abs(x));
            squares = vf_fma(x, x, squares);
            vf_store(q->linear + c, vf_fma(vf_set1(0.5f * q->weights[h]), x, vf_load(q->linear + c)));
        }
        units[h] = fmaxf(vf_largest(largest) / 127.0f, sqrtf(vf_short_squares(squares)) / room_of(SHORT, d));
        total += fabsf(q->weights[h]);
        lengths += fabsf(q->weights[h]) * sqrtf(vf_sum(squares));
        for (int32_t c = 0; c < d; c += VF_LANES) {
            vf_store_bytes(bytes + c, in_units(vf_load(head + c), units[h], 127.0f));
        }
        int32_t sums[2] = {0, 0};
        for (int32_t c = 0; c < d; c++) {
            bytes[c] = (uint8_t) (bytes[c] - VI_DOT4_OFFSET);
            sums[c / 2 % 2] += (int8_t) bytes[c];
        }
        for (int32_t c = 0; c < d; c += 4) {
            memcpy(q->bytes.fours + (int64_t) c * q->n_lanes + 4 * h, bytes + c, 4);
        }
        q->bytes.bias[h] = vi_short_bias(sums[0], sums[1]);
        q->bytes.weights[h] = 0.5f * q->weights[h] * units[h];
    }
    memset(g->vectors + (int64_t) n_head * d, 0, (size_t) (q->n_lanes - n_head) * (size_t) d * sizeof(float));
    for (int part = 0; part < 2; part++) {
        for (int32_t h = 0; h < n_head; h++) {
            const vf root = vf_set1(sqrtf(fabsf(q->weights[h])));
            for (int32_t c = 0; c < d; c += VF_LANES) {
                const vf x = vf_load(heads + (int64_t) h * d + c);
                const vf rounded = vf_mul(in_units(x, units[h], 127.0f), vf_set1(units[h]));
                vf_store(g->vectors + (int64_t) h * d + c, vf_mul(root, part == 0 ? vf_sub(x, rounded) : rounded));
            }
        }
        eigenvalues[part] = largest_eigenvalue(g, q->n_lanes, d);
    }
    return (error_bound) {
        .per_error = 0.5f * SLACK * sqrtf(total * eigenvalues[1]),
        .per_length = 0.5f * SLACK * sqrtf(total * eigenvalues[0]) + ROUNDING * lengths,
    };
}

// The query in 16 bits, and its bound. d in 32s.
static error_bound query_to_words(const query * q, whole_heads * words, const float * heads, int32_t n_head) {
    const int32_t d = q->d;
    error_bound bound = {0.0f, 0.0f};
    int16_t numbers[d];
    memset(words->fours, 0, 2 * (size_t) d * (size_t) q->n_lanes);
    memset(words->bias, 0, (size_t) q->n_lanes * sizeof(int32_t));
    memset(words->weights, 0, (size_t) q->n_lanes * sizeof(float));
    for (int32_t h = 0; h < n_head; h++) {
        const float * head = heads + (int64_t) h * d;
        const float length = sqrtf(vf_squares(head, d));
        vf largest = vf_set1(0.0f);
        for (int32_t c = 0; c < d; c += VF_LANES) {
            largest = vf_max(largest, vf_abs(vf_load(head + c)));
        }
        const float unit = fmaxf(vf_largest(largest) / most_of(WORDS), length / room_of(WORDS, d));
        vf errors = vf_set1(0.0f);
        for (int32_t c = 0; c < d; c += VF_LANES) {
            const vf number = in_units(vf_load(head + c), unit, most_of(WORDS));
            const vf left = vf_fma(number, vf_set1(-unit), vf_load(head + c));
            errors = vf_fma(left, left, errors);
            vf_store_words(numbers + c, number);
        }
        for (int32_t c = 0; c < d; c += 2) {
            memcpy(words->fours + 2 * (int64_t) c * q->n_lanes + 4 * h, numbers + c, 4);
        }
        words->weights[h] = 0.5f * q->weights[h] * unit;
        const float weight = fabsf(q->weights[h]);
        const float error = sqrtf(vf_sum(errors));
        bound.per_error += 0.5f * SLACK * weight * (length + error);
        bound.per_length += weight * (0.5f * SLACK * error + ROUNDING * length);
    }
    return bound;
}

// What keys in whole numbers stand for.
typedef struct key_units {
    float units[BLOCK_LANES];
    float lengths[BLOCK_LANES];  // |k|
    float errors[BLOCK_LANES];   // |dk|
} key_units;

// A key as f32, its largest magnitude and the squares of its numbers, summed by lanes.
static inline vf load_key(int32_t row_type, const void * row, int32_t d, float * key, float * largest) {
    vf most = vf_set1(0.0f);
    vf squares = vf_set1(0.0f);
    if (row_type != FATHOM_ROW_F16) {
        vf_row_load(row_type, d, 0, row, key);
    }
    for (int32_t c = 0; c < d; c += VF_LANES) {
        const vf x = row_type == FATHOM_ROW_F16 ? vf_load_f16((const uint16_t *) row + c) : vf_load(key + c);
        vf_store(key + c, x);
        most = vf_max(most, vf_abs(x));
        squares = vf_fma(x, x, squares);
    }
    *largest = vf_largest(most);
    return squares;
}

// Keys as f32 and in whole numbers. rows: [n], keys: f32 [BLOCK][d]; d in 32s.
static inline __attribute__((always_inline)) void load_keys(whole kind, int32_t row_type, const void * const * rows, int32_t n, int32_t d, float * keys,
                                                            uint8_t * bytes, key_units * u) {
    float inverses[BLOCK_LANES];
    for (int32_t r = 0; r < n; r++) {
        const vf squares = load_key(row_type, rows[r], d, keys + (int64_t) r * d, &u->units[r]);
        u->lengths[r] = vf_sum(squares);
        inverses[r] = kind == SHORT ? vf_short_squares(squares) : u->lengths[r];
    }
    const vf of_largest = vf_set1(1.0f / most_of(kind));
    const vf of_length = vf_set1(1.0f / room_of(kind, d));
    for (int r = 0; r < BLOCK_LANES; r += VF_LANES) {
        const vf unit = vf_max(vf_mul(vf_sqrt(vf_load(inverses + r)), of_length), vf_mul(vf_load(u->units + r), of_largest));
        vf_store(inverses + r, vf_div(vf_set1(1.0f), vf_max(unit, vf_set1(1e-30f))));
        vf_store(u->units + r, unit);
        vf_store(u->lengths + r, vf_sqrt(vf_load(u->lengths + r)));
    }
    for (int32_t r = 0; r < n; r++) {
        const vf step = vf_sub(vf_set1(0.0f), vf_set1(u->units[r]));
        const vf inverse = vf_set1(inverses[r]);
        vf errors = vf_set1(0.0f);
        for (int32_t c = 0; c < d; c += 32) {
            vf numbers[32 / VF_LANES];
            for (int i = 0; i < 32 / VF_LANES; i++) {
                const vf x = vf_load(keys + (int64_t) r * d + c + i * VF_LANES);
                numbers[i] = vf_round(vf_mul(x, inverse));
                const vf left = vf_fma(numbers[i], step, x);
                errors = vf_fma(left, left, errors);
            }
            if (kind == SHORT) {
                vf_store_short(bytes + (int64_t) r * d + c, numbers);
            } else {
                for (int i = 0; i < 32 / VF_LANES; i++) {
                    vf_store_words((int16_t *) bytes + (int64_t) r * d + c + i * VF_LANES, numbers[i]);
                }
            }
        }
        u->errors[r] = vf_sum(errors);
    }
    for (int r = 0; r < BLOCK_LANES; r += VF_LANES) {
        vf_store(u->errors + r, vf_sqrt(vf_load(u->errors + r)));
    }
}

// Bounds of the scores of a block of keys. keys, bytes: of load_keys.
static inline __attribute__((always_inline)) void score_bounds(whole kind, const query * q, const whole_heads * heads, const error_bound * bound,
                                                               const float * keys, const uint8_t * bytes, const key_units * u, int32_t n, float * lower,
                                                               float * upper) {
    float linear[BLOCK_LANES];
    float magnitudes[BLOCK_LANES];
    scores_whole(kind, kind == WORDS ? q->d / 2 : q->d / 4, q->n_lanes, heads, bytes, n, magnitudes);
    for (int32_t r = 0; r < n; r += 4) {
        vf sums[4] = {vf_set1(0.0f), vf_set1(0.0f), vf_set1(0.0f), vf_set1(0.0f)};
        for (int32_t c = 0; c < q->d; c += VF_LANES) {
            const vf l = vf_load(q->linear + c);
            for (int i = 0; i < 4; i++) {
                sums[i] = vf_fma(l, vf_load(keys + (int64_t) (r + i) * q->d + c), sums[i]);
            }
        }
        vf_reduce4(linear + r, sums[0], sums[1], sums[2], sums[3]);
    }
    for (int r = 0; r < n; r += VF_LANES) {
        const vf score = vf_fma(vf_load(magnitudes + r), vf_load(u->units + r), vf_load(linear + r));
        // The last term: products that underflow.
        const vf error = vf_fma(vf_set1(bound->per_error), vf_load(u->errors + r),
                                vf_fma(vf_set1(bound->per_length), vf_load(u->lengths + r), vf_set1(1e-36f)));
        vf_store(lower + r, vf_sub(score, error));
        vf_store(upper + r, vf_add(score, error));
    }
}
