// Number formats, one value at a time: the plain truth that references use and that kernels are tested against.
// Formats are described in docs/gguf.md and crates/gguf/src/block.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

static inline float fathom_f32_from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t fathom_f32_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

// 2^n for the exponents that floats have, subnormal ones included.
static inline float fathom_exp2i(int32_t n) {
    return n > 127    ? fathom_f32_from_bits(0x7F800000u)
           : n >= -126 ? fathom_f32_from_bits((uint32_t) (n + 127) << 23)
           : n >= -149 ? fathom_f32_from_bits(1u << (n + 149))
                       : 0.0f;
}

static inline float fathom_f32_from_bf16(uint16_t bits) {
    return fathom_f32_from_bits((uint32_t) bits << 16);
}

static inline float fathom_f32_from_f16(uint16_t bits) {
    const uint32_t sign     = (uint32_t) (bits & 0x8000u) << 16;
    const uint32_t exponent = bits >> 10 & 31;
    const uint32_t fraction = bits & 1023;
    if (exponent == 0) {
        return fathom_f32_from_bits(sign | fathom_f32_bits((float) fraction * 0x1p-24f));
    }
    return fathom_f32_from_bits(sign | (exponent == 31 ? 0x7F800000u : (exponent + 112) << 23) | fraction << 13);
}

// Twice the value of an e2m1 code; negative zero is zero.
static const int8_t fathom_e2m1_doubled[16] = { 0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12 };

// Half of an E8M0 scale, 2^(e-128): it goes with the doubled codes. ggml's choice: byte 255, the standard's NaN, is a number.
static inline float fathom_e8m0_half(uint8_t e) {
    return fathom_exp2i((int32_t) e - 128);
}

// Half of a UE4M3 scale. ggml's choice: the sign bit is ignored, and 127, which the format calls NaN, is zero.
static inline float fathom_ue4m3_half(uint8_t code) {
    const int32_t exponent = code >> 3 & 15;
    const int32_t fraction = code & 7;
    if (code == 127) {
        return 0.0f;
    }
    return exponent == 0 ? (float) fraction * 0x1p-10f : (float) (8 + fraction) * fathom_exp2i(exponent - 11);
}

// To nearest, ties to even, as are all that follow.
static inline uint16_t fathom_f16_from_f32(float x) {
    const uint32_t bits = fathom_f32_bits(x);
    const uint16_t sign = (uint16_t) (bits >> 16 & 0x8000);
    uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) {
        return sign | 0x7e00 | (uint16_t) (magnitude >> 13 & 0x3ff);
    }
    if (magnitude >= 0x47800000) {  // 2^16 and more
        return sign | 0x7c00;
    }
    if (magnitude < 0x38800000) {  // below 2^-14: adding 0.5 leaves the multiple of 2^-24 in the low bits
        return sign | (uint16_t) (fathom_f32_bits(fathom_f32_from_bits(magnitude) + 0.5f) - 0x3f000000);
    }
    magnitude += 0xfff + (magnitude >> 13 & 1);
    return sign | (uint16_t) ((magnitude - ((127 - 15) << 23)) >> 13);
}

static inline uint16_t fathom_bf16_from_f32(float x) {
    const uint32_t bits = fathom_f32_bits(x);
    if ((bits & 0x7fffffff) > 0x7f800000) {
        return (uint16_t) (bits >> 16) | 0x40;
    }
    return (uint16_t) ((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// 2^(byte - 127). Byte 0 is a subnormal.
static inline float fathom_f32_from_e8m0(uint8_t byte) {
    return fathom_f32_from_bits(byte == 0 ? 0x00400000 : (uint32_t) byte << 23);
}

// 2^(127 - byte), byte <= 254.
static inline float fathom_e8m0_inverse(uint8_t byte) {
    return fathom_f32_from_bits(byte == 254 ? 0x00400000 : (uint32_t) (254 - byte) << 23);
}

// e4m3fn of |x| <= 448; a NaN becomes the format's NaN.
static inline uint8_t fathom_e4m3_from_f32(float x) {
    const uint32_t bits = fathom_f32_bits(x);
    const uint8_t sign = (uint8_t) (bits >> 24 & 0x80);
    uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude >= 0x43e80000) {  // 464 and more would round beyond 448
        return sign | (magnitude > 0x7f800000 ? 0x7f : 0x7e);
    }
    if (magnitude < 0x3c800000) {  // below 2^-6: adding 2^14 leaves the multiple of 2^-9 in the low bits
        return sign | (uint8_t) (fathom_f32_bits(fathom_f32_from_bits(magnitude) + 0x1p14f) - 0x46800000);
    }
    magnitude += 0x7ffff + (magnitude >> 20 & 1);
    return sign | (uint8_t) ((magnitude - ((127 - 7) << 23)) >> 20);
}

static inline float fathom_f32_from_e4m3(uint8_t code) {
    const uint32_t sign = (uint32_t) (code & 0x80) << 24;
    const uint32_t magnitude = code & 0x7f;
    if (magnitude == 0x7f) {
        return fathom_f32_from_bits(sign | 0x7fc00000);
    }
    if (magnitude < 8) {
        const float value = (float) magnitude * 0x1p-9f;
        return sign ? -value : value;
    }
    return fathom_f32_from_bits(sign | ((magnitude << 20) + ((127 - 7) << 23)));
}

// e2m1 of |x| <= 6: 0, .5, 1, 1.5, 2, 3, 4, 6. Ties go to the even code.
static inline uint8_t fathom_e2m1_from_f32(float x) {
    const uint32_t bits = fathom_f32_bits(x);
    const float magnitude = fabsf(x);
    const uint8_t code = (uint8_t) ((magnitude > 0.25f) + (magnitude >= 0.75f) + (magnitude > 1.25f) + (magnitude >= 1.75f) +
                                    (magnitude > 2.5f) + (magnitude >= 3.5f) + (magnitude > 5.0f));
    return (uint8_t) (bits >> 28 & 8) | code;
}

// Blocks of 32 as 4- and 8-bit weights meet activations: step = largest magnitude / 127, ties to even. In double, for references.
static inline void fathom_round_to_bytes(double * x, int32_t n) {
    for (int32_t at = 0; at < n; at += 32) {
        const int32_t end = at + 32 < n ? at + 32 : n;
        double largest = 0;
        for (int32_t i = at; i < end; i++) {
            largest = fmax(largest, fabs(x[i]));
        }
        const double step = largest / 127;
        for (int32_t i = at; i < end; i++) {
            x[i] = step > 0 ? nearbyint(x[i] / step) * step : 0;
        }
    }
}
