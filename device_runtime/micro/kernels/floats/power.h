/* Powers of two in integers: what sc_exp and the loops of exps share. */
#ifndef SC_POWER_H
#define SC_POWER_H

#include "numbers.h"

#define SC_POWERS 32
extern const uint32_t sc_powers[SC_POWERS]; /* 2^(i/32) with 31 bits after the point */

#define SC_LOG2_E 0xb8aa3b29u   /* log2(e); 31 bits after the point */
#define SC_LN_2 0xb17217f8u     /* 32 bits */
#define SC_THIRD 0x55555556u    /* 32 bits */
#define SC_EXP_IS_0 0xc2aeac4fu /* bits of -87.33654: exp is 0 from there downwards */

/* x shifted to the right, 0 from 32 on. */
static inline uint32_t sc_right(uint32_t x, uint32_t by) { return by < 32 ? x >> by : 0; }

/* |x| / ln 2, 32 bits after the point, from the bits of x below 128. */
static inline uint64_t sc_split(uint32_t bits) {
    /* 62 bits after the point for an exponent of 0, whose bits are 127; a shift of 157 leaves nothing of 0 */
    uint64_t power = (uint64_t)(bits << 8 | 0x80000000u) * SC_LOG2_E;
    uint32_t high = (uint32_t)(power >> 32), shift = 157 - (bits >> 23 & 255);
    return shift < 32 ? power >> shift : sc_right(high, shift - 32);
}

/* 2^(r / 2^32) - 1 for r below 2^27, which is below 0.0219: 36 bits after the point. The series of e^z for z = r ln 2,
 * from its fourth term inwards; all products are the upper half of 32 by 32 bits, which vector units have too. */
static inline uint32_t sc_power_of_rest(uint32_t r) {
    uint32_t z = sc_high(r << 5, SC_LN_2);                             /* r ln 2; 37 bits */
    uint32_t term = 0x80000000u + (z >> 8);                            /* 1 + z/4; 31 bits */
    term = 0x80000000u + (sc_high(sc_high(z, term), SC_THIRD) >> 5);   /* 1 + z/3 (…) */
    term = 0x80000000u + (sc_high(z, term) >> 6);                      /* 1 + z/2 (…) */
    return sc_high(z, term);
}

/* 2^(whole + fraction), 32 bits of fraction */
static inline float sc_power_of_two(int32_t whole, uint32_t fraction) {
    uint32_t y = sc_powers[fraction >> 27];
    y += sc_high(y, sc_power_of_rest(fraction & 0x7ffffff)) >> 4;
    return sc_float_of(((uint32_t)(whole + 126) << 23) + (y >> 8) + (y >> 7 & 1));
}

#endif
