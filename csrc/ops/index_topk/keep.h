// The running top k of one token.
//
// An entry is a row with a lower and an upper bound of its score; both are the score itself once it is known. Entries are in
// ascending order of rows at all times. The threshold is a number that at least k entries reach, so that a later row
// whose upper bound does not exceed it is out (equal scores go to the lower row).
#pragma once

#include <stdint.h>
#include <string.h>

typedef struct keep {
    uint64_t * keys;   // [capacity]: order of (lower bound descending, row ascending) is the order of keys descending
    float *    upper;  // [capacity]
    uint64_t * work;   // [capacity], for select_largest
    int32_t    n, k, capacity;
    int        is_open;  // every row is taken: no threshold yet
    float      threshold;
} keep;

static inline uint64_t key_of(float score, int32_t row) {
    score = score == score ? score + 0.0f : -INFINITY;  // -0 is 0; what is no number comes last
    uint32_t bits;
    memcpy(&bits, &score, sizeof bits);
    bits = bits >> 31 ? ~bits : bits | 0x80000000u;
    return (uint64_t) bits << 32 | (uint32_t) ~row;
}

static inline int32_t row_of_key(uint64_t key) {
    return (int32_t) ~(uint32_t) key;
}

static inline float score_of_key(uint64_t key) {
    const uint32_t bits = (uint32_t) (key >> 32);
    return fathom_f32_from_bits(bits >> 31 ? bits & 0x7fffffffu : ~bits);
}

// The k-th largest of n different keys, 1 <= k <= n: byte by byte from the top, keeping those that agree so far.
static uint64_t select_largest(const uint64_t * keys, int32_t n, int32_t k, uint64_t * work) {
    memcpy(work, keys, (size_t) n * sizeof(uint64_t));
    for (int shift = 56; n > 1; shift -= 8) {
        int32_t counts[256] = {0};
        for (int32_t i = 0; i < n; i++) {
            counts[work[i] >> shift & 255]++;
        }
        uint32_t byte = 255;
        for (; counts[byte] < k; byte--) {
            k -= counts[byte];
        }
        if (counts[byte] < n) {
            int32_t n_left = 0;
            for (int32_t i = 0; i < n; i++) {
                const uint64_t key = work[i];
                work[n_left] = key;
                n_left += (key >> shift & 255) == byte;
            }
            n = n_left;
        }
    }
    return work[0];
}

static inline void keep_push(keep * kept, int32_t row, float lower, float upper) {
    kept->keys[kept->n] = key_of(lower, row);
    kept->upper[kept->n] = upper;
    kept->n++;
}

// Rows first_row .. first_row + n - 1; the arrays have whole vectors.
static void keep_block(keep * kept, int32_t first_row, int32_t n, const float * lower, const float * upper) {
    for (int32_t r = 0; r < n; r += VF_LANES) {
        const int32_t n_lanes = n - r < VF_LANES ? n - r : VF_LANES;
        uint32_t mask = kept->is_open ? UINT32_MAX : vf_mask_not_le(vf_load(upper + r), vf_set1(kept->threshold));
        mask &= (1u << n_lanes) - 1;
        for (; mask != 0; mask &= mask - 1) {
            const int32_t at = r + __builtin_ctz(mask);
            keep_push(kept, first_row + at, lower[at], upper[at]);
        }
    }
}

static void raise_threshold(keep * kept, float threshold) {
    if (kept->is_open || threshold > kept->threshold) {
        kept->threshold = threshold;
    }
    kept->is_open = 0;
}

// Drops what the lower bounds of k others exclude. Entries stay in order.
static void keep_possible(keep * kept) {
    if (kept->n <= kept->k) {
        return;
    }
    raise_threshold(kept, score_of_key(select_largest(kept->keys, kept->n, kept->k, kept->work)));
    int32_t n = 0;
    for (int32_t i = 0; i < kept->n; i++) {
        const float upper = kept->upper[i];
        kept->keys[n] = kept->keys[i];
        kept->upper[n] = upper;
        n += !(upper < kept->threshold);
    }
    kept->n = n;
}

// Down to the k best; all scores are known.
static void keep_best(keep * kept) {
    if (kept->n <= kept->k) {
        return;
    }
    const uint64_t last = select_largest(kept->keys, kept->n, kept->k, kept->work);
    int32_t n = 0;
    for (int32_t i = 0; i < kept->n; i++) {
        const uint64_t key = kept->keys[i];
        kept->keys[n] = key;
        kept->upper[n] = kept->upper[i];
        n += key >= last;
    }
    kept->n = n;
    raise_threshold(kept, score_of_key(last));
}
