// Products of 4- and 8-bit weights with rounded activations, for whichever matrix they come from.
//
// Few tokens: a tile is unpacked into registers and used for all of them; bound by the bytes of the weights. Many tokens: 32 columns
// of two tiles are unpacked into a panel in the first cache, which then meets every token; bound by multiply-adds. Sums
// of a block are whole numbers, and blocks are added in their order with the same operations, so that both give the same bits.
#pragma once

#include "activations.h"

// Tokens that share a tile or a panel at a time: as many sums as there are registers for.
#define PRODUCT_TOKENS (VF_REGISTERS == 32 ? 8 : 4)
#define PANEL_TILES 2
#define PANEL_ROWS (PANEL_TILES * TILE_ROWS)
// Tokens whose sums stay in the first cache beside a panel and their activations.
#define PANEL_CHUNK (1024 / TILE_ROWS < 128 ? 1024 / TILE_ROWS : 128)

// Sums stay in registers only if every loop around them is unrolled. Plain C has none to keep, and takes minutes to compile unrolled.
#if defined(FATHOM_FOR_AVX512) || defined(FATHOM_FOR_AVX2) || defined(FATHOM_FOR_NEON)
#define PANEL_UNROLL _Pragma("GCC unroll 16")
#else
#define PANEL_UNROLL
#endif

// Columns 32b.. of PANEL_ROWS rows.
typedef struct panel {
#if defined(FATHOM_FOR_AVX2)
    vi codes[PANEL_TILES][16];  // of 8-bit weights, then their magnitudes
#else
    vi codes[PANEL_TILES][8];
#endif
    vf scales[PANEL_TILES][2];
} panel;

// Has the processor fetch a share of rows that come next.
TILE_INLINE void product_fetch(const uint8_t * ahead, int64_t b, int32_t bytes) {
    const uint8_t * p = ahead + b * bytes;
    for (int32_t at = 0; at < bytes; at += 64) {
        __builtin_prefetch(p + at, 0, 2);
    }
}

// TILE_ROWS rows, n tokens. `x_stride`: activations from one block of a token to its next. `ahead`: TILE_ROWS rows of this kind.
TILE_INLINE void product_few(int32_t type, int n, const uint8_t * w, int64_t stride, int32_t n_blocks, const activations * const * x,
                             int64_t x_stride, const uint8_t * ahead, vf * sums) {
    vf sum[PRODUCT_TOKENS];
    for (int t = 0; t < n; t++) {
        sum[t] = vf_set1(0.0f);
    }
    for (int64_t b = 0; b < n_blocks; b++) {
        vi tile[8];
        vf scales[2];
        tile_load(type, w, stride, b, tile, scales);
        product_fetch(ahead, b, TILE_ROWS * tile_block_bytes(type));
        for (int t = 0; t < n; t++) {
            sum[t] = tile_add(type, sum[t], tile, scales, x[t] + b * x_stride);
        }
    }
    for (int t = 0; t < n; t++) {
        sums[t] = sum[t];
    }
}

TILE_INLINE void panel_load(int32_t type, const uint8_t * w, int64_t stride, int64_t b, panel * p) {
    PANEL_UNROLL
    for (int r = 0; r < PANEL_TILES; r++) {
        vi * codes = p->codes[r];
        tile_load(type, w + r * TILE_ROWS * stride, stride, b, codes, p->scales[r]);
#if defined(FATHOM_FOR_AVX2)
        PANEL_UNROLL
        for (int g = 0; type == FATHOM_TYPE_Q8_0 && g < 8; g++) {
            codes[8 + g] = _mm256_abs_epi8(codes[g]);
        }
#endif
    }
}

// Whole numbers: `n_groups` vectors of codes of this half with n tokens.
#if defined(FATHOM_FOR_AVX2)

// Codes are loaded into registers, for all tokens, and sums kept in this order: GCC would load codes again for each token, and make trees
// of the sums, and spill.
TILE_INLINE vi panel_codes(const vi * codes) {
    vi loaded;
    __asm__ volatile("vmovdqa %1, %0" : "=x"(loaded) : "m"(*codes));
    return loaded;
}

TILE_INLINE void panel_dot(int32_t type, int n, const panel * p, int half, int n_groups, const activations * const * x,
                           vi sums[PANEL_TILES][PRODUCT_TOKENS]) {
    const vi ones = _mm256_set1_epi16(1);
    PANEL_UNROLL
    for (int t = 0; t < n; t++) {
        PANEL_UNROLL
        for (int r = 0; r < PANEL_TILES; r++) {
            sums[r][t] = type == FATHOM_TYPE_Q8_0 ? vi_zero() : vi_set1(x[t]->start[half]);
        }
    }
    PANEL_UNROLL
    for (int g = 0; g < n_groups; g++) {
        vi codes[PANEL_TILES], magnitudes[PANEL_TILES];
        PANEL_UNROLL
        for (int r = 0; r < PANEL_TILES; r++) {
            codes[r] = panel_codes(&p->codes[r][4 * half + g]);
            if (type == FATHOM_TYPE_Q8_0) {
                magnitudes[r] = panel_codes(&p->codes[r][8 + g]);
            }
        }
        PANEL_UNROLL
        for (int t = 0; t < n; t++) {
            const vi four = tile_x4(x[t]->q + 16 * half + 4 * g);
            PANEL_UNROLL
            for (int r = 0; r < PANEL_TILES; r++) {
                if (type == FATHOM_TYPE_Q8_0) {
                    const vi pairs = _mm256_maddubs_epi16(magnitudes[r], _mm256_sign_epi8(four, codes[r]));
                    sums[r][t] = _mm256_add_epi32(sums[r][t], _mm256_madd_epi16(pairs, ones));
                } else {
                    sums[r][t] = _mm256_add_epi16(sums[r][t], _mm256_maddubs_epi16(codes[r], four));
                }
                __asm__("" : "+x"(sums[r][t]));
            }
        }
    }
    PANEL_UNROLL
    for (int t = 0; type != FATHOM_TYPE_Q8_0 && t < n; t++) {
        PANEL_UNROLL
        for (int r = 0; r < PANEL_TILES; r++) {
            sums[r][t] = _mm256_madd_epi16(sums[r][t], ones);
        }
    }
}

#else

TILE_INLINE void panel_dot(int32_t type, int n, const panel * p, int half, int n_groups, const activations * const * x,
                           vi sums[PANEL_TILES][PRODUCT_TOKENS]) {
    (void) type;
    PANEL_UNROLL
    for (int t = 0; t < n; t++) {
        PANEL_UNROLL
        for (int r = 0; r < PANEL_TILES; r++) {
            sums[r][t] = vi_set1(x[t]->start[half]);
        }
    }
    PANEL_UNROLL
    for (int g = 0; g < n_groups; g++) {
        PANEL_UNROLL
        for (int t = 0; t < n; t++) {
            const vi four = tile_x4(x[t]->q + 16 * half + 4 * g);
            PANEL_UNROLL
            for (int r = 0; r < PANEL_TILES; r++) {
                sums[r][t] = vi_dot4(sums[r][t], p->codes[r][4 * half + g], four);
            }
        }
    }
}

#endif

// As tile_add, for n tokens and all rows of a panel: sums f32 [n][PANEL_ROWS].
TILE_INLINE void panel_add(int32_t type, int n, const panel * p, const activations * const * x, float * sums) {
    const int n_halves = tile_has_halves(type) ? 2 : 1;
    PANEL_UNROLL
    for (int half = 0; half < n_halves; half++) {
        vi whole[PANEL_TILES][PRODUCT_TOKENS];
        panel_dot(type, n, p, half, 8 / n_halves, x, whole);
        PANEL_UNROLL
        for (int t = 0; t < n; t++) {
            const vf step = vf_set1(x[t]->step);
            PANEL_UNROLL
            for (int r = 0; r < PANEL_TILES; r++) {
                float * sum = sums + t * PANEL_ROWS + r * TILE_ROWS;
                vf_store(sum, vf_fma(vf_of_vi(whole[r][t]), vf_mul(p->scales[r][half], step), vf_load(sum)));
            }
        }
    }
}

// PANEL_ROWS rows, n <= PANEL_CHUNK tokens: sums f32 [n][PANEL_ROWS]. `ahead`: PANEL_ROWS rows of this kind.
TILE_INLINE void product_many(int32_t type, int32_t n, const uint8_t * w, int64_t stride, int32_t n_blocks, const activations * const * x,
                              int64_t x_stride, const uint8_t * ahead, float * sums) {
    memset(sums, 0, sizeof(float) * PANEL_ROWS * (size_t) n);
    for (int64_t b = 0; b < n_blocks; b++) {
        panel p;
        panel_load(type, w, stride, b, &p);
        product_fetch(ahead, b, PANEL_ROWS * tile_block_bytes(type));
        int32_t i = 0;
        const activations * at[PRODUCT_TOKENS];
#define PANEL_STEP(count)                                         \
    for (; i + (count) <= n; i += (count)) {                      \
        for (int t = 0; t < (count); t++) {                       \
            at[t] = x[i + t] + b * x_stride;                      \
        }                                                         \
        panel_add(type, (count), &p, at, sums + i * PANEL_ROWS);  \
    }
        PANEL_STEP(PRODUCT_TOKENS)
        PANEL_STEP(4)
        PANEL_STEP(2)
        PANEL_STEP(1)
#undef PANEL_STEP
    }
}

// The same tokens in any number: rows `w` .. of a matrix with n <= PANEL_CHUNK tokens.
TILE_INLINE void product_rows(int32_t type, int32_t n, const uint8_t * w, int64_t stride, int32_t n_blocks, const activations * const * x,
                              int64_t x_stride, const uint8_t * ahead, float * sums) {
    if (n <= 0) {
        return;
    }
    if (n > PRODUCT_TOKENS) {
        product_many(type, n, w, stride, n_blocks, x, x_stride, ahead, sums);
        return;
    }
    const activations * all[PRODUCT_TOKENS];
    for (int t = 0; t < PRODUCT_TOKENS; t++) {
        all[t] = t < n ? x[t] : x[0];  // its sums are not used
    }
    for (int r = 0; r < PANEL_TILES; r++) {
        const int64_t skip = r * TILE_ROWS * stride;
        vf            sum[PRODUCT_TOKENS];
        if (n == 1) {
            product_few(type, 1, w + skip, stride, n_blocks, all, x_stride, ahead + skip, sum);
        } else if (n == 2) {
            product_few(type, 2, w + skip, stride, n_blocks, all, x_stride, ahead + skip, sum);
        } else if (n <= 4) {
            product_few(type, 4, w + skip, stride, n_blocks, all, x_stride, ahead + skip, sum);
        } else {
            product_few(type, PRODUCT_TOKENS, w + skip, stride, n_blocks, all, x_stride, ahead + skip, sum);
        }
        for (int t = 0; t < n; t++) {
            vf_store(sums + t * PANEL_ROWS + r * TILE_ROWS, sum[t]);
        }
    }
}
