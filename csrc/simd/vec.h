// Vectors of floats and of 32-bit integers of the instruction set that this compilation is for. Everything that depends on
// the set in the ops' float kernels is in this file; kernels are written once, with VF_LANES lanes.
//
// Of two operands vf_max and vf_min return the second one if either is no number.
// Sums over lanes have a fixed order, so that a result depends on the set in use and on nothing else.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "isa.h"

#if defined(FATHOM_FOR_AVX512)

#include <immintrin.h>

#define VF_LANES 16
#define VF_REGISTERS 32
typedef __m512  vf;
typedef __m512i vi;

static inline vf vf_set1(float x) { return _mm512_set1_ps(x); }
static inline vf vf_load(const float * p) { return _mm512_loadu_ps(p); }
static inline void vf_store(float * p, vf x) { _mm512_storeu_ps(p, x); }
static inline vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
static inline vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
static inline vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
static inline vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
static inline vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
static inline vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
static inline vf vf_round(vf a) { return _mm512_roundscale_ps(a, 0); }
static inline vf vf_abs(vf a) { return _mm512_abs_ps(a); }
static inline vf vf_sqrt(vf a) { return _mm512_sqrt_ps(a); }
static inline vf vf_swap_pairs(vf a) { return _mm512_permute_ps(a, 0xb1); }
static inline vf vf_load_f16(const uint16_t * p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) p)); }
static inline void vf_store_f16(uint16_t * p, vf x) { _mm256_storeu_si256((__m256i *) p, _mm512_cvtps_ph(x, 0)); }
static inline vf vf_load_bf16(const uint16_t * p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *) p)), 16));
}
static inline vf vf_load_e4m3(const uint8_t * p) {
    const __m256i codes = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *) p));
    const __m256i sign = _mm256_slli_epi16(_mm256_and_si256(codes, _mm256_set1_epi16(0x80)), 8);
    const __m256i magnitude = _mm256_slli_epi16(_mm256_and_si256(codes, _mm256_set1_epi16(0x7f)), 7);
    return _mm512_cvtph_ps(_mm256_or_si256(sign, magnitude));
}
// Bit i: a > b in lane i, or one of them is no number.
static inline uint32_t vf_mask_not_le(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLE_UQ); }
static inline vf vf_of_vi(vi a) { return _mm512_cvtepi32_ps(a); }
static inline vf vf_times_power_of_two(vf a, vf n) {
    return _mm512_mul_ps(a, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23)));
}
static inline void vf_reduce4(float * out, vf a, vf b, vf c, vf d) {
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const __m512 abcd = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}

static inline vi vi_zero(void) { return _mm512_setzero_si512(); }
static inline vi vi_load(const void * p) { return _mm512_loadu_si512(p); }
static inline vi vi_set1(int32_t x) { return _mm512_set1_epi32(x); }
static inline vi vi_relu(vi a) { return _mm512_max_epi32(a, _mm512_setzero_si512()); }
static inline vi vi_abs(vi a) { return _mm512_abs_epi32(a); }
static inline vi vi_add(vi a, vi b) { return _mm512_add_epi32(a, b); }
static inline vi vi_sub(vi a, vi b) { return _mm512_sub_epi32(a, b); }
static inline vi vi_and(vi a, vi b) { return _mm512_and_si512(a, b); }
static inline vi vi_or(vi a, vi b) { return _mm512_or_si512(a, b); }
static inline vi vi_max(vi a, vi b) { return _mm512_max_epi32(a, b); }
static inline vi vi_shl(vi a, int bits) { return _mm512_slli_epi32(a, (unsigned) bits); }
static inline vi vi_shr(vi a, int bits) { return _mm512_srli_epi32(a, (unsigned) bits); }
static inline void vi_store(int32_t * p, vi a) { _mm512_storeu_si512(p, a); }
static inline vi vi_of_vf(vf a) { return _mm512_cvtps_epi32(a); }
static inline vi vi_bits(vf a) { return _mm512_castps_si512(a); }
static inline vf vf_from_bits(vi a) { return _mm512_castsi512_ps(a); }
// Four products of bytes are added to each lane: a holds signed bytes plus VI_DOT4_OFFSET, b signed bytes.
#define VI_DOT4_OFFSET 128
// Not the intrinsic: GCC 12 copies each accumulator of a tile before and after it, which halves the speed.
static inline vi vi_dot4(vi acc, vi a, vi b) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
    return acc;
}
// Whole numbers |x| <= 127 as bytes plus VI_DOT4_OFFSET.
static inline void vf_store_bytes(uint8_t * p, vf x) {
    _mm_storeu_si128((__m128i *) p, _mm_xor_si128(_mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)), _mm_set1_epi8((char) 0x80)));
}
#define VI_SHORT_IS_FAST 1

#elif defined(FATHOM_FOR_AVX2)

#include <immintrin.h>

#define VF_LANES 8
#define VF_REGISTERS 16
typedef __m256  vf;
typedef __m256i vi;

static inline vf vf_set1(float x) { return _mm256_set1_ps(x); }
static inline vf vf_load(const float * p) { return _mm256_loadu_ps(p); }
static inline void vf_store(float * p, vf x) { _mm256_storeu_ps(p, x); }
static inline vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
static inline vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
static inline vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
static inline vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
static inline vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
static inline vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
static inline vf vf_round(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline vf vf_abs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
static inline vf vf_sqrt(vf a) { return _mm256_sqrt_ps(a); }
static inline vf vf_swap_pairs(vf a) { return _mm256_permute_ps(a, 0xb1); }
static inline vf vf_load_f16(const uint16_t * p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) p)); }
static inline void vf_store_f16(uint16_t * p, vf x) { _mm_storeu_si128((__m128i *) p, _mm256_cvtps_ph(x, 0)); }
static inline vf vf_load_bf16(const uint16_t * p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *) p)), 16));
}
static inline vf vf_load_e4m3(const uint8_t * p) {
    const __m128i codes = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i *) p));
    const __m128i sign = _mm_slli_epi16(_mm_and_si128(codes, _mm_set1_epi16(0x80)), 8);
    const __m128i magnitude = _mm_slli_epi16(_mm_and_si128(codes, _mm_set1_epi16(0x7f)), 7);
    return _mm256_cvtph_ps(_mm_or_si128(sign, magnitude));
}
static inline uint32_t vf_mask_not_le(vf a, vf b) { return (uint32_t) _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_NLE_UQ)); }
static inline vf vf_of_vi(vi a) { return _mm256_cvtepi32_ps(a); }
static inline vf vf_times_power_of_two(vf a, vf n) {
    return _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23)));
}
static inline void vf_reduce4(float * out, vf a, vf b, vf c, vf d) {
    const __m256 ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    const __m256 cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    const __m256 abcd = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1)));
}

static inline vi vi_zero(void) { return _mm256_setzero_si256(); }
static inline vi vi_load(const void * p) { return _mm256_loadu_si256((const __m256i *) p); }
static inline vi vi_set1(int32_t x) { return _mm256_set1_epi32(x); }
static inline vi vi_relu(vi a) { return _mm256_max_epi32(a, _mm256_setzero_si256()); }
static inline vi vi_abs(vi a) { return _mm256_abs_epi32(a); }
static inline vi vi_add(vi a, vi b) { return _mm256_add_epi32(a, b); }
static inline vi vi_sub(vi a, vi b) { return _mm256_sub_epi32(a, b); }
static inline vi vi_and(vi a, vi b) { return _mm256_and_si256(a, b); }
static inline vi vi_or(vi a, vi b) { return _mm256_or_si256(a, b); }
static inline vi vi_max(vi a, vi b) { return _mm256_max_epi32(a, b); }
static inline vi vi_shl(vi a, int bits) { return _mm256_slli_epi32(a, bits); }
static inline vi vi_shr(vi a, int bits) { return _mm256_srli_epi32(a, bits); }
static inline void vi_store(int32_t * p, vi a) { _mm256_storeu_si256((__m256i *) p, a); }
static inline vi vi_of_vf(vf a) { return _mm256_cvtps_epi32(a); }
static inline vi vi_bits(vf a) { return _mm256_castps_si256(a); }
static inline vf vf_from_bits(vi a) { return _mm256_castsi256_ps(a); }
// Neither may be -128; sums of two products must fit 16 bits: one of the two at most 127, the other at most 128.
#define VI_DOT4_OFFSET 0
static inline vi vi_dot4(vi acc, vi a, vi b) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(a), _mm256_sign_epi8(b, a));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
static inline void vf_store_bytes(uint8_t * p, vf x) {
    const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(x), _mm256_setzero_si256());
    const __m128i halves = _mm_unpacklo_epi64(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storel_epi64((__m128i *) p, _mm_packs_epi16(halves, halves));
}
// Sums of 16 bits: the first two and the last two of the four products have one each.
#define VI_SHORT_IS_FAST 1
#define VI_SHORT_HAS_LIMIT
#define VI_SHORT_OFFSET 64
#define VI_SHORT_LARGEST 63
// Not the intrinsic: GCC 12 moves accumulators of a tile around the addition, some of them through memory.
static inline vi vi_short4(vi acc, vi a, vi b) {
    __asm__("vpaddw %1, %0, %0" : "+x"(acc) : "x"(_mm256_maddubs_epi16(a, b)));
    return acc;
}
static inline vi vi_short_sum(vi acc) { return _mm256_madd_epi16(acc, _mm256_set1_epi16(1)); }
static inline int32_t vi_short_bias(int32_t first, int32_t last) {
    return (int32_t) ((uint32_t) (-VI_SHORT_OFFSET * last) << 16 | ((uint32_t) (-VI_SHORT_OFFSET * first) & 0xffff));
}
static inline float vf_short_squares(vf squares) {
    const __m128 quads = _mm_add_ps(_mm256_castps256_ps128(squares), _mm256_extractf128_ps(squares, 1));
    const __m128 pairs = _mm_add_ps(quads, _mm_movehdup_ps(quads));
    return _mm_cvtss_f32(_mm_max_ss(pairs, _mm_movehl_ps(pairs, pairs)));
}
static inline void vf_store_short(uint8_t * p, const vf * x) {
    const __m256i low = _mm256_packs_epi32(_mm256_cvtps_epi32(x[0]), _mm256_cvtps_epi32(x[1]));
    const __m256i high = _mm256_packs_epi32(_mm256_cvtps_epi32(x[2]), _mm256_cvtps_epi32(x[3]));
    const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *) p, _mm256_add_epi8(bytes, _mm256_set1_epi8(VI_SHORT_OFFSET)));
}
// Two products of 16-bit numbers are added to each lane.
#define VI_DOT2_IS_FAST 1
static inline vi vi_dot2(vi acc, vi a, vi b) {
    __asm__("vpaddd %1, %0, %0" : "+x"(acc) : "x"(_mm256_madd_epi16(a, b)));
    return acc;
}

#else  // four lanes, by the compiler's vector types; NEON where they would be slow

#include "../ops/numbers.h"

#if defined(FATHOM_FOR_NEON)
#include <arm_neon.h>
#define VF_REGISTERS 32
#else
#define VF_REGISTERS 16
#endif

#define VF_LANES 4
typedef float   vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));
typedef uint32_t vu __attribute__((vector_size(16)));

static inline vf vf_set1(float x) { return (vf) {x, x, x, x}; }
static inline vf vf_load(const float * p) { vf x; memcpy(&x, p, sizeof x); return x; }
static inline void vf_store(float * p, vf x) { memcpy(p, &x, sizeof x); }
static inline vf vf_add(vf a, vf b) { return a + b; }
static inline vf vf_sub(vf a, vf b) { return a - b; }
static inline vf vf_mul(vf a, vf b) { return a * b; }
static inline vf vf_div(vf a, vf b) { return a / b; }
static inline vf vf_swap_pairs(vf a) { return (vf) {a[1], a[0], a[3], a[2]}; }
static inline vf vf_abs(vf a) { return (vf) ((vi) a & 0x7fffffff); }
static inline vf vf_sqrt(vf a) { return (vf) {sqrtf(a[0]), sqrtf(a[1]), sqrtf(a[2]), sqrtf(a[3])}; }
#if defined(FATHOM_FOR_NEON)
static inline vf vf_fma(vf a, vf b, vf c) { return (vf) vfmaq_f32((float32x4_t) c, (float32x4_t) a, (float32x4_t) b); }
static inline vf vf_round(vf a) { return (vf) vrndnq_f32((float32x4_t) a); }
static inline vf vf_load_f16(const uint16_t * p) { return (vf) vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
static inline void vf_store_f16(uint16_t * p, vf x) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t) x))); }
#else
static inline vf vf_fma(vf a, vf b, vf c) { return a * b + c; }
static inline vf vf_round(vf a) {  // |a| < 2^22
    const vf magic = vf_set1(12582912.0f);
    return (a + magic) - magic;
}
static inline vf vf_load_f16(const uint16_t * p) {
    return (vf) {fathom_f32_from_f16(p[0]), fathom_f32_from_f16(p[1]), fathom_f32_from_f16(p[2]), fathom_f32_from_f16(p[3])};
}
static inline void vf_store_f16(uint16_t * p, vf x) {
    for (int i = 0; i < 4; i++) {
        p[i] = fathom_f16_from_f32(x[i]);
    }
}
#endif
static inline vf vf_max(vf a, vf b) {
    const vi greater = a > b;
    return (vf) ((greater & (vi) a) | (~greater & (vi) b));
}
static inline vf vf_min(vf a, vf b) {
    const vi less = a < b;
    return (vf) ((less & (vi) a) | (~less & (vi) b));
}
static inline vf vf_load_bf16(const uint16_t * p) {
    return (vf) {fathom_f32_from_bf16(p[0]), fathom_f32_from_bf16(p[1]), fathom_f32_from_bf16(p[2]), fathom_f32_from_bf16(p[3])};
}
static inline vf vf_load_e4m3(const uint8_t * p) {
    uint16_t halves[4];
    for (int i = 0; i < 4; i++) {
        halves[i] = (uint16_t) ((p[i] & 0x80) << 8 | (p[i] & 0x7f) << 7);
    }
    return vf_load_f16(halves);
}
static inline uint32_t vf_mask_not_le(vf a, vf b) {
    const vi others = ~(a <= b);
    return (uint32_t) ((others[0] & 1) | (others[1] & 2) | (others[2] & 4) | (others[3] & 8));
}
static inline vf vf_of_vi(vi a) { return (vf) {(float) a[0], (float) a[1], (float) a[2], (float) a[3]}; }
static inline vf vf_times_power_of_two(vf a, vf n) {
    const vi exponents = {(int32_t) n[0] + 127, (int32_t) n[1] + 127, (int32_t) n[2] + 127, (int32_t) n[3] + 127};
    return a * (vf) (exponents << 23);
}
static inline void vf_reduce4(float * out, vf a, vf b, vf c, vf d) {
    out[0] = (a[0] + a[2]) + (a[1] + a[3]);
    out[1] = (b[0] + b[2]) + (b[1] + b[3]);
    out[2] = (c[0] + c[2]) + (c[1] + c[3]);
    out[3] = (d[0] + d[2]) + (d[1] + d[3]);
}

static inline vi vi_zero(void) { return (vi) {0, 0, 0, 0}; }
static inline vi vi_load(const void * p) { vi x; memcpy(&x, p, sizeof x); return x; }
static inline vi vi_set1(int32_t x) { return (vi) {x, x, x, x}; }
static inline vi vi_relu(vi a) { return a & (a > 0); }
static inline vi vi_abs(vi a) {
    const vi negative = a < 0;
    return (a ^ negative) - negative;
}
static inline vi vi_add(vi a, vi b) { return a + b; }
static inline vi vi_sub(vi a, vi b) { return a - b; }
static inline vi vi_and(vi a, vi b) { return a & b; }
static inline vi vi_or(vi a, vi b) { return a | b; }
static inline vi vi_max(vi a, vi b) {
    const vi greater = a > b;
    return (greater & a) | (~greater & b);
}
static inline vi vi_shl(vi a, int bits) { return (vi) ((vu) a << (uint32_t) bits); }
static inline vi vi_shr(vi a, int bits) { return (vi) ((vu) a >> (uint32_t) bits); }
static inline void vi_store(int32_t * p, vi a) { memcpy(p, &a, sizeof a); }
static inline vi vi_of_vf(vf a) {
    const vf whole = vf_round(a);
    return (vi) {(int32_t) whole[0], (int32_t) whole[1], (int32_t) whole[2], (int32_t) whole[3]};
}
static inline vi vi_bits(vf a) { return (vi) a; }
static inline vf vf_from_bits(vi a) { return (vf) a; }
#define VI_DOT4_OFFSET 0
#define VI_SHORT_IS_FAST 0
static inline void vf_store_bytes(uint8_t * p, vf x) {
    for (int i = 0; i < 4; i++) {
        p[i] = (uint8_t) (int8_t) x[i];
    }
}
#if defined(FATHOM_FOR_NEON)
static inline vi vi_dot4(vi acc, vi a, vi b) {
    const int8x16_t x = (int8x16_t) a;
    const int8x16_t y = (int8x16_t) b;
    const int16x8_t low = vmull_s8(vget_low_s8(x), vget_low_s8(y));
    const int16x8_t high = vmull_s8(vget_high_s8(x), vget_high_s8(y));
    return acc + (vi) vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high));
}
#else
static inline vi vi_dot4(vi acc, vi a, vi b) {
    int8_t x[16], y[16];
    memcpy(x, &a, 16);
    memcpy(y, &b, 16);
    for (int i = 0; i < 16; i++) {
        acc[i / 4] += x[i] * y[i];
    }
    return acc;
}
#endif

#endif

// Dot products of numbers rounded to few bits, where they take less time than vf_fma (VI_SHORT_IS_FAST). vi_short4 adds four products
// of bytes to each lane: a holds whole numbers up to VI_SHORT_LARGEST plus VI_SHORT_OFFSET, b signed bytes up to 127; it begins at vi_short_bias
// of the sums of b's first and last two bytes of each four, which takes the offset out. vi_short_sum gives the sums.
// Where sums have 16 bits (VI_SHORT_HAS_LIMIT) the sums of squares that vf_short_squares finds in each of the two vectors may have a product
// of VI_SHORT_LENGTH^4 at most.
#define VI_SHORT_LENGTH 181.0f
#ifndef VI_SHORT_HAS_LIMIT
#define VI_SHORT_OFFSET VI_DOT4_OFFSET
#define VI_SHORT_LARGEST 127
static inline vi vi_short4(vi acc, vi a, vi b) { return vi_dot4(acc, a, b); }
static inline vi vi_short_sum(vi acc) { return acc; }
static inline int32_t vi_short_bias(int32_t first, int32_t last) { return -VI_SHORT_OFFSET * (first + last); }
// Of the squares of a vector's numbers, channel c in lane c % VF_LANES, those that one sum meets; 0: there is no limit.
static inline float vf_short_squares(vf squares) {
    (void) squares;
    return 0.0f;
}
// 32 whole numbers as a of vi_short4.
static inline void vf_store_short(uint8_t * p, const vf * x) {
    for (int i = 0; i < 32 / VF_LANES; i++) {
        vf_store_bytes(p + i * VF_LANES, x[i]);
    }
}
#endif

#ifndef VI_DOT2_IS_FAST
#define VI_DOT2_IS_FAST 0
static inline vi vi_dot2(vi acc, vi a, vi b) {
    int16_t x[2 * VF_LANES], y[2 * VF_LANES];
    int32_t sums[VF_LANES];
    memcpy(x, &a, sizeof x);
    memcpy(y, &b, sizeof y);
    for (int i = 0; i < VF_LANES; i++) {
        sums[i] = x[2 * i] * y[2 * i] + x[2 * i + 1] * y[2 * i + 1];
    }
    return vi_add(acc, vi_load(sums));
}
#endif
// Whole numbers |x| <= 32767.
static inline void vf_store_words(int16_t * p, vf x) {
    int32_t wide[VF_LANES];
    vi_store(wide, vi_of_vf(x));
    for (int i = 0; i < VF_LANES; i++) {
        p[i] = (int16_t) wide[i];
    }
}

// A vector that stays in a register: compilers load again what several multiply-adds share, and then loads are the bottleneck.
static inline vf vf_keep(vf a) {
#if defined(FATHOM_FOR_AVX512)
    __asm__("" : "+v"(a));
#elif defined(FATHOM_FOR_AVX2)
    __asm__("" : "+x"(a));
#endif
    return a;
}

// 16 bytes of 4-bit codes to 32 bytes: table[code], the low nibble of a byte first.
static inline void vec_expand_codes(const uint8_t * codes, const uint8_t * table, uint8_t * out) {
#if defined(FATHOM_FOR_AVX512) || defined(FATHOM_FOR_AVX2)
    const __m128i values = _mm_loadu_si128((const __m128i *) table);
    const __m128i bytes = _mm_loadu_si128((const __m128i *) codes);
    const __m128i low = _mm_shuffle_epi8(values, _mm_and_si128(bytes, _mm_set1_epi8(15)));
    const __m128i high = _mm_shuffle_epi8(values, _mm_and_si128(_mm_srli_epi16(bytes, 4), _mm_set1_epi8(15)));
    _mm_storeu_si128((__m128i *) out, _mm_unpacklo_epi8(low, high));
    _mm_storeu_si128((__m128i *) (out + 16), _mm_unpackhi_epi8(low, high));
#else
    for (int i = 0; i < 16; i++) {
        out[2 * i] = table[codes[i] & 15];
        out[2 * i + 1] = table[codes[i] >> 4];
    }
#endif
}

// What a stored e4m3 code gives in vf_load_e4m3 is its value times 2^-8: the same bits as a half. The format's NaN, which
// is stored for numbers that are none, comes out as 480.
#define VF_E4M3_FACTOR 256.0f

static inline float vf_sum(vf a) {
    float out[4];
    vf_reduce4(out, a, a, a, a);
    return out[0];
}

static inline float vf_largest(vf a) {
#if defined(FATHOM_FOR_AVX512)
    return _mm512_reduce_max_ps(a);
#elif defined(FATHOM_FOR_AVX2)
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
#else
    const float x = a[0] > a[1] ? a[0] : a[1];
    const float y = a[2] > a[3] ? a[2] : a[3];
    return x > y ? x : y;
#endif
}

// e^x for x <= 88; 2^-126 for x below -87.3. Relative error below 2^-22: polynomial of Cephes' expf on [-ln 2 / 2, ln 2 / 2].
static inline vf vf_exp(vf x) {
    x = vf_max(vf_set1(-87.33654f), x);
    const vf n = vf_round(vf_mul(x, vf_set1(1.44269504088896341f)));
    vf r = vf_fma(n, vf_set1(-0.693359375f), x);
    r = vf_fma(n, vf_set1(2.12194440e-4f), r);
    vf p = vf_set1(1.9875691500e-4f);
    p = vf_fma(p, r, vf_set1(1.3981999507e-3f));
    p = vf_fma(p, r, vf_set1(8.3334519073e-3f));
    p = vf_fma(p, r, vf_set1(4.1665795894e-2f));
    p = vf_fma(p, r, vf_set1(1.6666665459e-1f));
    p = vf_fma(p, r, vf_set1(5.0000001201e-1f));
    p = vf_fma(vf_mul(p, r), r, vf_add(r, vf_set1(1.0f)));
    return vf_times_power_of_two(p, n);
}
