// How far a score computed in bytes can be from the score in f32.
//
// With q = q^ + dq for each head and k = k^ + dk (q^ and k^ in bytes), and because relu never enlarges a difference,
//   |s(k) - s^(k)| <= sum_h w_h |dq_h . k + q^_h . dk|         w_h = |weight_h| * scale
//                  <= sqrt(W) (sqrt(lambda(dq)) |k| + sqrt(lambda(q^)) |dk|)      by Cauchy-Schwarz, W = sum_h w_h,
// where lambda(x) is the largest eigenvalue of the Gram matrix G of the vectors sqrt(w_h) x_h. lambda(x)^2 is at most the largest
// sum of absolute values in a row of G * G. The float32 rounding of both scores is at most ROUNDING * sum_h w_h |q_h| |k|.
#pragma once

#include "scores.h"

// (128 channels + 64 heads + a few) * 2^-24 for the score in f32, less than half of that for the one in bytes.
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
    for (int32_t i = 0; i < n; i++) {
        vf row_sum = vf_set1(0.0f);
        for (int32_t j = 0; j < n; j += VF_LANES) {
            vf sum = vf_set1(0.0f);
            for (int32_t k = 0; k < n; k++) {
                sum = vf_fma(vf_set1(g->products[(int64_t) i * n + k]), vf_load(g->products + (int64_t) k * n + j), sum);
            }
            row_sum = vf_add(row_sum, vf_max(sum, vf_sub(vf_set1(0.0f), sum)));
        }
        largest = fmaxf(largest, vf_sum(row_sum));
    }
    return sqrtf(largest);
}

// The query in bytes, and its bound. heads: f32 [n_head][d].
static error_bound query_to_bytes(query * q, const float * heads, int32_t n_head, const gram * g) {
    float total = 0.0f;    // W
    float lengths = 0.0f;  // sum_h w_h |q_h|
    float eigenvalues[2];  // of dq, of q^
    float units[n_head];
    for (int32_t h = 0; h < n_head; h++) {
        const float * head = heads + (int64_t) h * q->d;
        const float unit = fathom_amax(head, q->d) / 127.0f;
        units[h] = unit;
        total += fabsf(q->weights[h]);
        lengths += fabsf(q->weights[h]) * sqrtf(vf_squares(head, q->d));
        int32_t sum = 0;
        for (int32_t c = 0; c < q->d; c++) {
            const int32_t byte = unit > 0.0f ? (int32_t) rintf(fminf(fmaxf(head[c] / unit, -127.0f), 127.0f)) : 0;
            q->bytes[((int64_t) (c / 4) * q->n_lanes + h) * 4 + c % 4] = (int8_t) byte;
            sum += byte;
        }
        q->bytes_bias[h] = -VI_DOT4_OFFSET * sum;
        q->bytes_weights[h] = q->weights[h] * unit;
    }
    for (int part = 0; part < 2; part++) {
        memset(g->vectors, 0, (size_t) q->n_lanes * (size_t) q->d * sizeof(float));
        for (int32_t h = 0; h < n_head; h++) {
            const float * head = heads + (int64_t) h * q->d;
            const float root = sqrtf(fabsf(q->weights[h]));
            for (int32_t c = 0; c < q->d; c++) {
                const float rounded = units[h] * (float) q->bytes[((int64_t) (c / 4) * q->n_lanes + h) * 4 + c % 4];
                g->vectors[(int64_t) h * q->d + c] = root * (part == 0 ? head[c] - rounded : rounded);
            }
        }
        eigenvalues[part] = largest_eigenvalue(g, q->n_lanes, q->d);
    }
    return (error_bound) {
        .per_error = SLACK * sqrtf(total * eigenvalues[1]),
        .per_length = SLACK * sqrtf(total * eigenvalues[0]) + ROUNDING * lengths,
    };
}

// A key in bytes: its unit, |k| and |dk|.
static void key_to_bytes(const float * key, int32_t d, uint8_t * bytes, float * unit, float * length, float * error) {
    vf largest = vf_set1(0.0f);
    vf squares = vf_set1(0.0f);
    for (int32_t c = 0; c < d; c += VF_LANES) {
        const vf x = vf_load(key + c);
        largest = vf_max(largest, vf_max(x, vf_sub(vf_set1(0.0f), x)));
        squares = vf_fma(x, x, squares);
    }
    const float amax = vf_largest(largest);
    *unit = amax / 127.0f;
    const vf step = vf_set1(*unit);
    const vf inverse = vf_set1(amax > 0.0f ? 127.0f / amax : 0.0f);
    vf errors = vf_set1(0.0f);
    for (int32_t c = 0; c < d; c += VF_LANES) {
        const vf x = vf_load(key + c);
        const vf whole = vf_round(vf_mul(x, inverse));
        const vf left = vf_fma(vf_sub(vf_set1(0.0f), whole), step, x);
        errors = vf_fma(left, left, errors);
        vf_store_bytes(bytes + c, whole);
    }
    float sums[4];
    vf_reduce4(sums, squares, errors, squares, errors);
    *length = sqrtf(sums[0]);
    *error = sqrtf(sums[1]);
}
