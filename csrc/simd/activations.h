// Activations rounded to blocks of 32 signed bytes, as 4- and 8-bit weights meet them.
#pragma once

#include <float.h>

#include "tile.h"

// What sums of products with offset codes begin with, so that the offset is taken back.
TILE_INLINE void activations_start(int32_t type, activations * block) {
    block->start[0] = block->start[1] = 0;
#if defined(FATHOM_FOR_AVX512) || defined(FATHOM_FOR_AVX2)
    const __m256i q = _mm256_loadu_si256((const __m256i *) block->q);
#if defined(FATHOM_FOR_AVX512)
    // 32 bits: -offset times the sum of the columns.
    __m256i sums = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), q), _mm256_set1_epi16((short) -tile_offset(type)));
    sums = _mm256_add_epi32(sums, _mm256_shuffle_epi32(sums, 0x4e));
    sums = _mm256_add_epi32(sums, _mm256_shuffle_epi32(sums, 0xb1));
    const __m128i low = _mm256_castsi256_si128(sums), high = _mm256_extracti128_si256(sums, 1);
    const __m128i both = _mm_add_epi32(low, high);
#else
    // Two times 16 bits: of columns 4g and 4g+1, and of 4g+2 and 4g+3, where the sums of 16 bits are.
    __m256i sums = _mm256_sub_epi16(_mm256_setzero_si256(), _mm256_maddubs_epi16(_mm256_set1_epi8((char) tile_offset(type)), q));
    sums = _mm256_add_epi16(sums, _mm256_shuffle_epi32(sums, 0x4e));
    sums = _mm256_add_epi16(sums, _mm256_shuffle_epi32(sums, 0xb1));
    const __m128i low = _mm256_castsi256_si128(sums), high = _mm256_extracti128_si256(sums, 1);
    const __m128i both = _mm_add_epi16(low, high);
#endif
    block->start[0] = _mm_cvtsi128_si32(tile_has_halves(type) ? low : both);
    block->start[1] = _mm_cvtsi128_si32(high);
#else
    (void) type;
#endif
}

// Whole numbers of at most 127.
TILE_INLINE void activations_store(int8_t * q, const vi * whole) {
#if defined(FATHOM_FOR_AVX512)
    for (int i = 0; i < 2; i++) {
        _mm_storeu_si128((__m128i *) (q + 16 * i), _mm512_cvtepi32_epi8(whole[i]));
    }
#elif defined(FATHOM_FOR_AVX2)
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(whole[0], whole[1]), _mm256_packs_epi32(whole[2], whole[3]));
    _mm256_storeu_si256((__m256i *) q, _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
#else
    for (int i = 0; i < 32; i++) {
        q[i] = (int8_t) whole[i / VF_LANES][i % VF_LANES];
    }
#endif
}

// 32 numbers: step = largest magnitude / 127, ties to even. One that is not finite makes every product with the block NaN.
TILE_INLINE void activations_round(int32_t type, const float * x, activations * out) {
    vi most = vi_zero();
    for (int i = 0; i < 32; i += VF_LANES) {
        most = vi_max(most, vi_bits(vf_abs(vf_load(x + i))));  // bits of floats without sign are ordered like them, and NaN comes last
    }
    int32_t lanes[VF_LANES], bits = 0;
    vi_store(lanes, most);
    for (int i = 0; i < VF_LANES; i++) {
        bits = lanes[i] > bits ? lanes[i] : bits;
    }
    const float largest = fathom_f32_from_bits((uint32_t) bits);
    float       inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
    inverse   = inverse <= FLT_MAX ? inverse : 0.0f;
    out->step = largest <= FLT_MAX ? largest / 127.0f : NAN;
    vi whole[32 / VF_LANES];
    for (int i = 0; i < 32 / VF_LANES; i++) {
        const vf scaled = vf_mul(vf_load(x + i * VF_LANES), vf_set1(inverse));
        whole[i] = vi_of_vf(vf_max(vf_set1(-127.0f), vf_min(vf_set1(127.0f), scaled)));
    }
    activations_store(out->q, whole);
    activations_start(type, out);
}
