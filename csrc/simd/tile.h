// A tile: VF_LANES rows of weights by 32 columns, as eight vectors of bytes. Lane r of vector g holds columns 4g..4g+3 of row r,
// so that a multiply-add of bytes against four broadcast activations advances every row at once, the sum of a
// block is a whole number, and no sum crosses lanes.
//
// GGUF's rows are not interleaved: 16 bytes of each row are loaded and transposed in groups of four bytes, which costs half
// of what summing across lanes would.
#pragma once

#include "../ops/numbers.h"
#include "../ops/types.h"
#include "vec.h"

#define TILE_INLINE static inline __attribute__((always_inline))
#define TILE_ROWS VF_LANES

// 32 activations as they meet 4- and 8-bit weights: step * q.
typedef struct activations {
    int8_t  q[32];
    float   step;
    int32_t start[2];  // what sums of whole numbers begin with (tile_start). Two: one for each half
} activations;

// What is added to the codes of weights so that they are unsigned bytes, as the instructions want them.
#if defined(FATHOM_FOR_AVX512)
#define TILE_FP4_OFFSET 12
#define TILE_Q8_OFFSET 128
#elif defined(FATHOM_FOR_AVX2)
#define TILE_FP4_OFFSET 12
#define TILE_Q8_OFFSET 0  // with 128 a sum of two products would not fit 16 bits
#else
#define TILE_FP4_OFFSET 0
#define TILE_Q8_OFFSET 0
#endif

TILE_INLINE int32_t tile_offset(int32_t type) {
    return type == FATHOM_TYPE_Q8_0 ? TILE_Q8_OFFSET : TILE_FP4_OFFSET;
}

// Two scales for 32 columns?
TILE_INLINE int tile_has_halves(int32_t type) {
    return type == FATHOM_TYPE_NVFP4;
}

// Where columns 32b.. of a row begin, and the bytes between two of them.
TILE_INLINE int32_t tile_block_bytes(int32_t type) {
    return type == FATHOM_TYPE_Q8_0 ? 34 : type == FATHOM_TYPE_MXFP4 ? 17 : 18;
}

// A place in every row of a tile: one pointer for four rows, so that all addresses fit the registers. The empty statement keeps
// a compiler from making sixteen pointers of them, which it would then have to spill.
typedef struct tile_place {
    const uint8_t * rows4[VF_LANES / 4];
    int64_t         stride, stride3;
} tile_place;

TILE_INLINE tile_place tile_at(const uint8_t * w, int64_t stride) {
    tile_place place = { .stride = stride, .stride3 = 3 * stride };
    for (int i = 0; i < VF_LANES / 4; i++) {
        place.rows4[i] = w + 4 * i * stride;
        __asm__("" : "+r"(place.rows4[i]));
    }
    return place;
}

TILE_INLINE const uint8_t * tile_row(const tile_place * at, int r) {
    const uint8_t * p = at->rows4[r / 4];
    return r % 4 == 3 ? p + at->stride3 : p + (r % 4) * at->stride;
}

// ---- per instruction set: load 16 bytes of every row, transposed; one byte of every row; codes to bytes; multiply-add

#if defined(FATHOM_FOR_AVX512) || defined(FATHOM_FOR_AVX2)

#if defined(FATHOM_FOR_AVX512)
#define TILE_OP(name) _mm512_##name
// 16 bytes of rows r, r+4, r+8, r+12.
TILE_INLINE vi tile_rows4(const tile_place * at, int r, int32_t offset) {
    __m512i v = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *) (tile_row(at, r) + offset)));
    v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *) (tile_row(at, r + 4) + offset)), 1);
    v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *) (tile_row(at, r + 8) + offset)), 2);
    return _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *) (tile_row(at, r + 12) + offset)), 3);
}
TILE_INLINE vi tile_and(vi a, vi b) { return _mm512_and_si512(a, b); }
TILE_INLINE vi tile_table(const int8_t * table) { return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *) table)); }
#else
#define TILE_OP(name) _mm256_##name
TILE_INLINE vi tile_rows4(const tile_place * at, int r, int32_t offset) {
    const __m128i low = _mm_loadu_si128((const __m128i *) (tile_row(at, r) + offset));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), _mm_loadu_si128((const __m128i *) (tile_row(at, r + 4) + offset)), 1);
}
TILE_INLINE vi tile_and(vi a, vi b) { return _mm256_and_si256(a, b); }
TILE_INLINE vi tile_table(const int8_t * table) { return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *) table)); }
#endif

TILE_INLINE void tile_load16(const tile_place * at, int32_t offset, vi d[4]) {
    const vi r0 = tile_rows4(at, 0, offset), r1 = tile_rows4(at, 1, offset);
    const vi r2 = tile_rows4(at, 2, offset), r3 = tile_rows4(at, 3, offset);
    const vi a = TILE_OP(unpacklo_epi32)(r0, r1), b = TILE_OP(unpackhi_epi32)(r0, r1);
    const vi c = TILE_OP(unpacklo_epi32)(r2, r3), e = TILE_OP(unpackhi_epi32)(r2, r3);
    d[0] = TILE_OP(unpacklo_epi64)(a, c);
    d[1] = TILE_OP(unpackhi_epi64)(a, c);
    d[2] = TILE_OP(unpacklo_epi64)(b, e);
    d[3] = TILE_OP(unpackhi_epi64)(b, e);
}

#if defined(FATHOM_FOR_AVX512)
// vpermb takes six bits of an index, so four copies of the table make the bits above a nibble harmless.
TILE_INLINE void tile_codes(vi d, vi * low, vi * high) {
    static const int8_t values[16] = { 12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0 };
    const vi table = tile_table(values);
    *low  = _mm512_permutexvar_epi8(d, table);
    *high = _mm512_permutexvar_epi8(_mm512_srli_epi16(d, 4), table);
}
#else
TILE_INLINE void tile_codes(vi d, vi * low, vi * high) {
    static const int8_t values[16] = { 12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0 };
    const vi table = tile_table(values), nibble = TILE_OP(set1_epi8)(15);
    *low  = TILE_OP(shuffle_epi8)(table, tile_and(d, nibble));
    *high = TILE_OP(shuffle_epi8)(table, tile_and(TILE_OP(srli_epi16)(d, 4), nibble));
}
#endif

TILE_INLINE vi tile_x4(const int8_t * x) {
    int32_t four;
    memcpy(&four, x, 4);
    return vi_set1(four);
}

// One byte of four rows.
TILE_INLINE __m128i tile_bytes4(const tile_place * at, int r, int32_t offset) {
    __m128i v = _mm_loadu_si32(tile_row(at, r) + offset);
    v = _mm_insert_epi8(v, *(tile_row(at, r + 1) + offset), 1);
    v = _mm_insert_epi8(v, *(tile_row(at, r + 2) + offset), 2);
    return _mm_insert_epi8(v, *(tile_row(at, r + 3) + offset), 3);
}

TILE_INLINE __m128i tile_bytes8(const tile_place * at, int r, int32_t offset) {
    return _mm_unpacklo_epi32(tile_bytes4(at, r, offset), tile_bytes4(at, r + 4, offset));
}

TILE_INLINE uint16_t tile_half(const tile_place * at, int r, int32_t offset) {
    uint16_t half;
    memcpy(&half, tile_row(at, r) + offset, 2);
    return half;
}

// Two bytes of eight rows.
TILE_INLINE __m128i tile_halves8(const tile_place * at, int r, int32_t offset) {
    __m128i v = _mm_cvtsi32_si128(tile_half(at, r, offset));
    __m128i w = _mm_cvtsi32_si128(tile_half(at, r + 4, offset));
    v = _mm_insert_epi16(v, tile_half(at, r + 1, offset), 1);
    w = _mm_insert_epi16(w, tile_half(at, r + 5, offset), 1);
    v = _mm_insert_epi16(v, tile_half(at, r + 2, offset), 2);
    w = _mm_insert_epi16(w, tile_half(at, r + 6, offset), 2);
    v = _mm_insert_epi16(v, tile_half(at, r + 3, offset), 3);
    w = _mm_insert_epi16(w, tile_half(at, r + 7, offset), 3);
    return _mm_unpacklo_epi64(v, w);
}

#if defined(FATHOM_FOR_AVX512)

TILE_INLINE vi tile_bytes(const tile_place * at, int32_t offset) {
    return _mm512_cvtepu8_epi32(_mm_unpacklo_epi64(tile_bytes8(at, 0, offset), tile_bytes8(at, 8, offset)));
}

TILE_INLINE vf tile_f16(const tile_place * at, int32_t offset) {
    return _mm512_cvtph_ps(_mm256_set_m128i(tile_halves8(at, 8, offset), tile_halves8(at, 0, offset)));
}

TILE_INLINE vf tile_half_of_e8m0(vi e) {
    const vi usual = _mm512_slli_epi32(_mm512_sub_epi32(e, vi_set1(1)), 23);
    return _mm512_castsi512_ps(_mm512_mask_sllv_epi32(usual, _mm512_cmplt_epu32_mask(e, vi_set1(2)), vi_set1(0x00200000), e));
}

TILE_INLINE vf tile_half_of_ue4m3(vi code) {
    const __mmask16 number = _mm512_cmpneq_epu32_mask(code, vi_set1(127));
    const __m256i   halves = _mm512_cvtepi32_epi16(_mm512_slli_epi32(_mm512_and_si512(code, vi_set1(127)), 7));
    return _mm512_maskz_mul_ps(number, _mm512_cvtph_ps(halves), vf_set1(128.0f));  // a half's exponent is 8 larger
}

// Whole numbers: start + sum over `n` vectors of w * x.
TILE_INLINE vi tile_dot(int32_t type, const vi * w, int n, const int8_t * x, int32_t start) {
    (void) type;
    vi sum = vi_set1(start);
    for (int g = 0; g < n; g++) {
        sum = vi_dot4(sum, w[g], tile_x4(x + 4 * g));
    }
    return sum;
}

TILE_INLINE vi tile_q8(vi d) { return _mm512_xor_si512(d, _mm512_set1_epi8((char) 0x80)); }

#else

TILE_INLINE vi tile_bytes(const tile_place * at, int32_t offset) {
    return _mm256_cvtepu8_epi32(tile_bytes8(at, 0, offset));
}

TILE_INLINE vf tile_f16(const tile_place * at, int32_t offset) {
    return _mm256_cvtph_ps(tile_halves8(at, 0, offset));
}

TILE_INLINE vf tile_half_of_e8m0(vi e) {
    const vi usual = _mm256_slli_epi32(_mm256_sub_epi32(e, vi_set1(1)), 23);
    const vi small = _mm256_sllv_epi32(vi_set1(0x00200000), e);
    return _mm256_castsi256_ps(_mm256_blendv_epi8(usual, small, _mm256_cmpgt_epi32(vi_set1(2), e)));
}

TILE_INLINE vf tile_half_of_ue4m3(vi code) {
    const vi     bits   = _mm256_andnot_si256(_mm256_cmpeq_epi32(code, vi_set1(127)), _mm256_slli_epi32(_mm256_and_si256(code, vi_set1(127)), 7));
    const vi     packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(bits, bits), 0x08);
    return _mm256_mul_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(packed)), vf_set1(128.0f));  // a half's exponent is 8 larger
}

TILE_INLINE vi tile_dot(int32_t type, const vi * w, int n, const int8_t * x, int32_t start) {
    if (type == FATHOM_TYPE_Q8_0) {
        vi sum = vi_zero();
        for (int g = 0; g < n; g++) {
            sum = vi_dot4(sum, w[g], tile_x4(x + 4 * g));
        }
        return sum;
    }
    // Sums of 16 bits may go beyond them on the way: with the offset taken back, 16 products of at most 12 * 127 fit.
    vi sums = vi_set1(start);
    for (int g = 0; g < n; g++) {
        sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(w[g], tile_x4(x + 4 * g)));
    }
    return _mm256_madd_epi16(sums, _mm256_set1_epi16(1));
}

TILE_INLINE vi tile_q8(vi d) { return d; }

#endif

#else  // four rows; NEON's multiply-add comes through vi_dot4

TILE_INLINE void tile_load16(const tile_place * at, int32_t offset, vi d[4]) {
    int32_t columns[4][4];
    for (int r = 0; r < 4; r++) {
        memcpy(columns[r], tile_row(at, r) + offset, 16);
    }
    for (int k = 0; k < 4; k++) {
        d[k] = (vi) { columns[0][k], columns[1][k], columns[2][k], columns[3][k] };
    }
}

TILE_INLINE void tile_codes(vi d, vi * low, vi * high) {
#if defined(FATHOM_FOR_NEON)
    static const int8_t values[16] = { 0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12 };
    const int8x16_t     table      = vld1q_s8(values);
    *low  = (vi) vqtbl1q_s8(table, vandq_u8((uint8x16_t) d, vdupq_n_u8(15)));
    *high = (vi) vqtbl1q_s8(table, vshrq_n_u8((uint8x16_t) d, 4));
#else
    uint8_t codes[16];
    int8_t  bytes[2][16];
    memcpy(codes, &d, 16);
    for (int i = 0; i < 16; i++) {
        bytes[0][i] = fathom_e2m1_doubled[codes[i] & 15];
        bytes[1][i] = fathom_e2m1_doubled[codes[i] >> 4];
    }
    memcpy(low, bytes[0], 16);
    memcpy(high, bytes[1], 16);
#endif
}

TILE_INLINE vi tile_x4(const int8_t * x) {
    int32_t four;
    memcpy(&four, x, 4);
    return vi_set1(four);
}

TILE_INLINE vi tile_bytes(const tile_place * at, int32_t offset) {
    return (vi) { tile_row(at, 0)[offset], tile_row(at, 1)[offset], tile_row(at, 2)[offset], tile_row(at, 3)[offset] };
}

TILE_INLINE vf tile_f16(const tile_place * at, int32_t offset) {
    uint16_t halves[4];
    for (int r = 0; r < 4; r++) {
        memcpy(&halves[r], tile_row(at, r) + offset, 2);
    }
    return vf_load_f16(halves);
}

TILE_INLINE vf tile_half_of_e8m0(vi e) {
    return (vf) { fathom_e8m0_half((uint8_t) e[0]), fathom_e8m0_half((uint8_t) e[1]), fathom_e8m0_half((uint8_t) e[2]), fathom_e8m0_half((uint8_t) e[3]) };
}

TILE_INLINE vf tile_half_of_ue4m3(vi code) {
    return (vf) { fathom_ue4m3_half((uint8_t) code[0]), fathom_ue4m3_half((uint8_t) code[1]), fathom_ue4m3_half((uint8_t) code[2]), fathom_ue4m3_half((uint8_t) code[3]) };
}

TILE_INLINE vi tile_dot(int32_t type, const vi * w, int n, const int8_t * x, int32_t start) {
    (void) type;
    vi sum = vi_set1(start);
    for (int g = 0; g < n; g++) {
        sum = vi_dot4(sum, w[g], tile_x4(x + 4 * g));
    }
    return sum;
}

TILE_INLINE vi tile_q8(vi d) { return d; }

#endif

// ---- the same for all

// Columns 32b..32b+31 of the rows that begin at `w`, and their scales (two with halves).
TILE_INLINE void tile_load(int32_t type, const uint8_t * w, int64_t stride, int64_t b, vi tile[8], vf scales[2]) {
    vi d[4];
    if (type == FATHOM_TYPE_MXFP4) {
        const tile_place at = tile_at(w + 17 * b, stride);
        tile_load16(&at, 1, d);
        for (int k = 0; k < 4; k++) {
            tile_codes(d[k], &tile[k], &tile[4 + k]);
        }
        scales[0] = tile_half_of_e8m0(tile_bytes(&at, 0));
    } else if (type == FATHOM_TYPE_NVFP4) {
        // A block of 64 is two of ours; in each group of 16 the low nibbles are columns 0..7.
        const tile_place codes = tile_at(w + 36 * (b / 2) + 4 + 16 * (b % 2), stride);
        tile_load16(&codes, 0, d);
        tile_codes(d[0], &tile[0], &tile[2]);
        tile_codes(d[1], &tile[1], &tile[3]);
        tile_codes(d[2], &tile[4], &tile[6]);
        tile_codes(d[3], &tile[5], &tile[7]);
        const tile_place at = tile_at(w + 36 * (b / 2) + 2 * (b % 2), stride);
        scales[0] = tile_half_of_ue4m3(tile_bytes(&at, 0));
        scales[1] = tile_half_of_ue4m3(tile_bytes(&at, 1));
    } else {
        const tile_place at = tile_at(w + 34 * b, stride);
        tile_load16(&at, 2, d);
        for (int k = 0; k < 4; k++) {
            tile[k] = tile_q8(d[k]);
        }
        tile_load16(&at, 18, d);
        for (int k = 0; k < 4; k++) {
            tile[4 + k] = tile_q8(d[k]);
        }
        scales[0] = tile_f16(&at, 0);
    }
}

// Adds the products of one tile and one block of activations. The order of this sum, block after block, is the kernel's order of
// summation, whatever the number of tokens.
TILE_INLINE vf tile_add(int32_t type, vf sum, const vi tile[8], const vf scales[2], const activations * x) {
    const vf step = vf_set1(x->step);
    if (tile_has_halves(type)) {
        sum = vf_fma(vf_of_vi(tile_dot(type, tile, 4, x->q, x->start[0])), vf_mul(scales[0], step), sum);
        return vf_fma(vf_of_vi(tile_dot(type, tile + 4, 4, x->q + 16, x->start[1])), vf_mul(scales[1], step), sum);
    }
    return vf_fma(vf_of_vi(tile_dot(type, tile, 8, x->q, x->start[0])), vf_mul(scales[0], step), sum);
}
