/* Arithmetic that gives the same bits on every target: integers, and single float operations that IEEE 754 rounds in
 * one way. The engine is compiled with -ffp-contract=off, so no compiler joins two of them. */
#ifndef SC_NUMBERS_H
#define SC_NUMBERS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* SMLAD and its like in assembly that takes every core register. Cortex-A has them too, but NEON instead, and a register
 * fewer in position-independent code. */
#if defined(__ARM_FEATURE_DSP) && defined(__ARM_ARCH_PROFILE) && __ARM_ARCH_PROFILE == 'M' && !defined(SC_SCALAR)
#define SC_USES_DSP
#endif

static inline float sc_float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t sc_bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* The upper half of a product. */
static inline uint32_t sc_high(uint32_t a, uint32_t b) { return (uint32_t)((uint64_t)a * b >> 32); }

/* exp(x) in integers: at most 0.68 units in the last place off, 0.52 for x up to 10. 0 below -87.3, where a float is not
 * normal any more, and infinity above 88.7. */
float sc_exp(float x);

/* 1 / (1 + exp(-x)), cut off where TensorFlow Lite's reference kernel cuts it off. */
static inline float sc_logistic(float x) {
    if (x > 16.619047164916992188f) {
        return 1.0f;
    }
    return x < -9.0f ? sc_exp(x) : 1.0f / (1.0f + sc_exp(-x));
}

static inline float sc_tanh(float x) {
    float size = x < 0 ? -x : x, y;
    if (size > 9.1f) {
        y = 1.0f;
    } else if (size < 0.02f) { /* where 1 - exp would lose digits: two terms of the series */
        return x - x * x * x / 3.0f;
    } else {
        float e = sc_exp(-2.0f * size);
        y = (1.0f - e) / (1.0f + e);
    }
    return x < 0 ? -y : y;
}

/* Round to the nearest, halves away from zero, held within low … high, which a float has exactly. What is not a number
 * becomes low. There is no branch in it, so compilers make vectors of it. */
static inline int32_t sc_rounded(float x, int32_t low, int32_t high) {
    float held = x > (float)low ? x : (float)low, rest;
    int32_t whole;
    held = held < (float)high ? held : (float)high;
    whole = (int32_t)held;
    rest = held - (float)whole; /* exact */
    return whole + (int32_t)(rest + rest); /* 1 from a half on */
}

/* x * multiplier * 2^(shift - 31) as TensorFlow Lite rounds it: once after the product, once after the shift to the
 * right. */
static inline int32_t sc_requantized_s8(int32_t x, int32_t multiplier, int32_t shift) {
    int32_t left = shift > 0 ? shift : 0, right = shift > 0 ? 0 : -shift;
    int64_t product = (int64_t)(int32_t)((uint32_t)x << left) * multiplier;
    int32_t high = (int32_t)((product + (1 << 30)) >> 31);
    int32_t mask = (int32_t)((1u << right) - 1), rest = high & mask;
    return (high >> right) + (rest > (mask >> 1) + (high < 0 ? 1 : 0));
}

/* The same for sums of int16 products: a multiplier of 16 bits, rounded once. */
static inline int32_t sc_requantized_s16(int64_t x, uint32_t multiplier, uint32_t shift) {
    int64_t product = (int64_t)((uint64_t)x * multiplier + ((uint64_t)1 << (shift - 1))) >> shift;
    return product < -32768 ? -32768 : product > 32767 ? 32767 : (int32_t)product;
}

/* The same for one scale and many sums that fit 32 bits. Where the shift allows it, the multiplier is shifted up, so
 * that the upper half of the product is all that is needed. */
typedef struct {
    uint32_t multiplier, shift; /* as in the image */
    int32_t high_multiplier;    /* 0: the shift is too small or too large */
    uint32_t high_shift;        /* of the upper half; at least 1 */
} sc_scale;

static inline sc_scale sc_scale_of(uint32_t packed) {
    sc_scale scale = {packed & 0xffff, packed >> 16, 0, 1};
    if (scale.multiplier < 0x8000 && scale.shift >= 17 && scale.shift <= 46) {
        scale.high_multiplier = (int32_t)(scale.multiplier << 16);
        scale.high_shift = scale.shift - 16;
    }
    return scale;
}

static inline int32_t sc_scaled(int32_t sum, const sc_scale *scale) {
    int32_t y;
    if (scale->high_multiplier == 0) { /* rare */
        return sc_requantized_s16(sum, scale->multiplier, scale->shift);
    }
    y = (int32_t)((int64_t)sum * scale->high_multiplier >> 32);
    y = (y + (1 << (scale->high_shift - 1))) >> scale->high_shift;
    return y < -32768 ? -32768 : y > 32767 ? 32767 : y;
}

/* The same for a scale, packed as in the image, that serves one sum. */
static inline int32_t sc_scaled_once(int32_t sum, uint32_t packed) {
    uint32_t shift = packed >> 16;
    int32_t y;
    if (packed & 0x8000 || shift - 17 > 29) {
        return sc_requantized_s16(sum, packed & 0xffff, shift);
    }
    y = (int32_t)((int64_t)sum * (int32_t)(packed << 16) >> 32);
    y = (y + (1 << (shift - 17))) >> (shift - 16);
    return y < -32768 ? -32768 : y > 32767 ? 32767 : y;
}

/* A sum of int16 products with its bias as the stored result. */
static inline int16_t sc_requantized_row(int64_t sum, int64_t bias, uint32_t packed) {
    sum = (int64_t)((uint64_t)sum + (uint64_t)bias);
    return (int16_t)(sum == (int32_t)sum ? sc_scaled_once((int32_t)sum, packed)
                                         : sc_requantized_s16(sum, packed & 0xffff, packed >> 16));
}

#endif
