// Keys and queries in FP4 as bytes. A number is a code times the power of two of its group; where the exponents of all groups of a
// row are within three of each other, it is a whole multiple |n| <= 96 of one unit, and a dot product of such rows is exact in 32 bits.
// It is also exact in float32, whose 24 bits hold the sum: both ways give the same score.
#pragma once

#include "scores.h"

// Exponents of the groups of a row in FP4: the smallest, if none is more than three above it. Groups of zeros do not count.
static int common_exponent(const uint8_t * row, int32_t d, int32_t * smallest) {
    int32_t least = 255;
    int32_t most = 0;
    for (int32_t g = 0; g < d / FATHOM_FP4_GROUP; g++) {
        const int32_t exponent = row[d / 2 + g];
        uint64_t codes[2];
        memcpy(codes, row + g * FATHOM_FP4_GROUP / 2, sizeof codes);
        if (((codes[0] | codes[1]) & 0x7777777777777777u) != 0) {
            least = exponent < least ? exponent : least;
            most = exponent > most ? exponent : most;
        }
    }
    *smallest = least == 255 ? 127 : least;
    return most - least <= 3;
}

// Twice the numbers of a row in FP4, as multiples of 2^smallest, plus VI_DOT4_OFFSET.
static void expand_codes(const uint8_t * row, int32_t d, int32_t smallest, uint8_t * bytes) {
#define TIMES(n) \
    {VI_DOT4_OFFSET + 0, VI_DOT4_OFFSET + n, VI_DOT4_OFFSET + 2 * n, VI_DOT4_OFFSET + 3 * n, VI_DOT4_OFFSET + 4 * n, VI_DOT4_OFFSET + 6 * n, \
     VI_DOT4_OFFSET + 8 * n, VI_DOT4_OFFSET + 12 * n, VI_DOT4_OFFSET + 0, (uint8_t) (VI_DOT4_OFFSET - n), (uint8_t) (VI_DOT4_OFFSET - 2 * n), \
     (uint8_t) (VI_DOT4_OFFSET - 3 * n), (uint8_t) (VI_DOT4_OFFSET - 4 * n), (uint8_t) (VI_DOT4_OFFSET - 6 * n), (uint8_t) (VI_DOT4_OFFSET - 8 * n), \
     (uint8_t) (VI_DOT4_OFFSET - 12 * n)}
    static const uint8_t tables[4][16] = {TIMES(1), TIMES(2), TIMES(4), TIMES(8)};
#undef TIMES
    for (int32_t g = 0; g < d / FATHOM_FP4_GROUP; g++) {
        const int32_t above = row[d / 2 + g] - smallest;
        // Exponents out of reach are those of groups of zeros.
        vec_expand_codes(row + g * FATHOM_FP4_GROUP / 2, tables[above < 0 || above > 3 ? 0 : above], bytes + g * FATHOM_FP4_GROUP);
    }
}

// One unit of expand_codes.
static float unit_of(int32_t smallest) {
    return 0.5f * fathom_f32_from_e8m0((uint8_t) smallest);
}

// Rounds the channels of a query, [d][n_lanes], as keys are: Hadamard transform (the sums and differences of fathom_hadamard, in its
// order), then FP4. Also writes the bytes; returns whether they can be used. Heads are lanes.
static int query_to_fp4(query * q, int32_t n_head) {
    const int32_t d = q->d;
    const int32_t n_lanes = q->n_lanes;
    const int32_t n_groups = d / FATHOM_FP4_GROUP;
    for (int32_t half = 1; half < d; half *= 2) {
        for (int32_t base = 0; base < d; base += 2 * half) {
            for (int32_t c = base; c < base + half; c++) {
                float * first = q->channels + (int64_t) c * n_lanes;
                float * second = first + (int64_t) half * n_lanes;
                for (int32_t lane = 0; lane < n_lanes; lane += VF_LANES) {
                    const vf a = vf_load(first + lane);
                    const vf b = vf_load(second + lane);
                    vf_store(first + lane, vf_add(a, b));
                    vf_store(second + lane, vf_sub(a, b));
                }
            }
        }
    }
    const vf scale = vf_set1((float) (1.0 / sqrt((double) d)));
    int fits = 1;
    for (int32_t lane = 0; lane < n_lanes; lane += VF_LANES) {
        int32_t exponents[n_groups][VF_LANES];  // of E8M0
        float amax[n_groups][VF_LANES];
        int32_t smallest[VF_LANES];
        for (int32_t g = 0; g < n_groups; g++) {
            vf largest = vf_set1(0.0f);
            for (int32_t c = g * FATHOM_FP4_GROUP; c < (g + 1) * FATHOM_FP4_GROUP; c++) {
                float * x = q->channels + (int64_t) c * n_lanes + lane;
                vf_store(x, vf_mul(vf_load(x), scale));
                largest = vf_max(vf_abs(vf_load(x)), largest);
            }
            vf_store(amax[g], largest);
            // fathom_fp4_scale: the sum carries into the exponent if the fraction is above one half.
            const vi rounded_up = vi_shr(vi_add(vi_bits(largest), vi_set1(0x3fffff)), 23);
            vi_store(exponents[g], vi_max(vi_sub(rounded_up, vi_set1(2)), vi_set1(1)));
        }
        for (int i = 0; i < VF_LANES; i++) {
            int32_t least = 255;
            int32_t most = 0;
            for (int32_t g = 0; g < n_groups; g++) {
                if (amax[g][i] > 0.0f) {
                    least = exponents[g][i] < least ? exponents[g][i] : least;
                    most = exponents[g][i] > most ? exponents[g][i] : most;
                }
            }
            smallest[i] = least == 255 ? 127 : least;
            fits &= most - least <= 3;
            if (lane + i < n_head) {
                q->bytes.weights[lane + i] = q->weights[lane + i] * unit_of(smallest[i]);
            }
        }
        vi sum = vi_zero();
        for (int32_t g = 0; g < n_groups; g++) {
            const vi exponent = vi_load(exponents[g]);
            const vf inverse = vf_from_bits(vi_shl(vi_sub(vi_set1(254), exponent), 23));
            const vf unit = vf_from_bits(vi_shl(exponent, 23));
            float factors[VF_LANES];  // from values to doubled codes of the smallest exponent
            for (int i = 0; i < VF_LANES; i++) {
                const int32_t above = exponents[g][i] - smallest[i];
                factors[i] = above < 0 || above > 3 ? 0.0f : (float) (2 << above);  // others are groups of zeros
            }
            for (int32_t c = g * FATHOM_FP4_GROUP; c < (g + 1) * FATHOM_FP4_GROUP; c += 4) {
                vi four = vi_zero();
                for (int i = 0; i < 4; i++) {
                    float * channel = q->channels + (int64_t) (c + i) * n_lanes + lane;
                    const vf x = vf_load(channel);
                    const vi sign = vi_and(vi_bits(x), vi_set1((int32_t) 0x80000000u));
                    const vf magnitude = vf_min(vf_max(vf_mul(vf_abs(x), inverse), vf_set1(0.0f)), vf_set1(6.0f));
                    // Codes lie half a power of two apart: that of the magnitude, at least 1.
                    const vi power = vi_and(vi_bits(vf_max(magnitude, vf_set1(1.0f))), vi_set1(0x7f800000));
                    const vf steps = vf_mul(magnitude, vf_mul(vf_from_bits(vi_sub(vi_set1(254 << 23), power)), vf_set1(2.0f)));
                    const vf code = vf_mul(vf_round(steps), vf_mul(vf_from_bits(power), vf_set1(0.5f)));
                    const vf value = vf_from_bits(vi_or(vi_bits(code), sign));
                    const vi byte = vi_of_vf(vf_mul(value, vf_load(factors)));
                    vf_store(channel, vf_mul(value, unit));
                    sum = vi_add(sum, byte);
                    four = vi_or(four, vi_shl(vi_and(byte, vi_set1(255)), 8 * i));
                }
                memcpy(q->bytes.fours + ((int64_t) (c / 4) * n_lanes + lane) * 4, &four, sizeof four);
            }
        }
        int32_t sums[VF_LANES];
        vi_store(sums, sum);
        for (int i = 0; i < VF_LANES; i++) {
            q->bytes.bias[lane + i] = -VI_DOT4_OFFSET * sums[i];
        }
    }
    return fits;
}
