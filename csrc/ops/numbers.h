// Number formats, one value at a time: the plain truth that references use and that kernels are tested against.
// Formats are described in docs/gguf.md and crates/gguf/src/block.
#pragma once

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

// Half of an E8M0 scale, 2^(e-128): it goes with the doubled codes. ggml's choice: byte 255 is not NaN.
static inline float fathom_e8m0_half(uint8_t e) {
    return fathom_exp2i((int32_t) e - 128);
}

// Half of a UE4M3 scale; codes 0 and 127 (NaN) are zero, as in ggml.
static inline float fathom_ue4m3_half(uint8_t code) {
    if (code == 0 || (code & 127) == 127) {
        return 0.0f;
    }
    const int32_t exponent = code >> 3 & 15;
    const int32_t fraction = code & 7;
    return exponent == 0 ? (float) fraction * 0x1p-10f : (float) (8 + fraction) * fathom_exp2i(exponent - 11);
}
