#include "numbers.h"

/* 2^(i/32) with 31 bits after the point */
static const uint32_t POWERS[32] = {
    0x80000000, 0x82cd8699, 0x85aac368, 0x88980e81, 0x8b95c1e4, 0x8ea4398b, 0x91c3d374, 0x94f4efa9,
    0x9837f052, 0x9b8d39ba, 0x9ef53261, 0xa2704303, 0xa5fed6aa, 0xa9a15ab5, 0xad583eea, 0xb123f582,
    0xb504f334, 0xb8fbaf47, 0xbd08a39f, 0xc12c4cca, 0xc5672a11, 0xc9b9bd86, 0xce248c15, 0xd2a81d92,
    0xd744fccb, 0xdbfbb798, 0xe0ccdeec, 0xe5b906e7, 0xeac0c6e8, 0xefe4b99c, 0xf5257d15, 0xfa83b2db,
};

/* 2^(r / 2^32) - 1 for r below 2^27, which is below 0.0219: 36 bits after the point. The series of e^z for z = r ln 2,
 * from its fourth term inwards; all products are the upper half of 32 by 32 bits, which vector units have too. */
static uint32_t power_of_rest(uint32_t r) {
    uint32_t z = sc_high(r << 5, 0xb17217f8u);                   /* r ln 2; 37 bits */
    uint32_t term = 0x80000000u + (z >> 8);                      /* 1 + z/4; 31 bits */
    term = 0x80000000u + (sc_high(sc_high(z, term), 0x55555556u) >> 5); /* 1 + z/3 (…) */
    term = 0x80000000u + (sc_high(z, term) >> 6);                /* 1 + z/2 (…) */
    return sc_high(z, term);
}

/* 2^(whole + fraction), 32 bits of fraction */
static inline float power_of_two(int32_t whole, uint32_t fraction) {
    uint32_t y = POWERS[fraction >> 27];
    y += sc_high(y, power_of_rest(fraction & 0x7ffffff)) >> 4;
    return sc_float_of(((uint32_t)(whole + 126) << 23) + (y >> 8) + (y >> 7 & 1));
}

/* |x| / ln 2 as a whole number and a fraction. */
static inline int32_t split(uint32_t bits, int32_t exponent, uint32_t *fraction) {
    /* 62 bits after the point, for an exponent of 0; log2(e) has 31 */
    uint64_t power = (uint64_t)(bits << 8 | 0x80000000u) * 0xb8aa3b29u;
    uint32_t high = (uint32_t)(power >> 32);
    if (exponent >= -1) {
        *fraction = high << (2 + exponent) | (uint32_t)power >> (30 - exponent);
        return (int32_t)(high >> (30 - exponent));
    }
    *fraction = high >> (-2 - exponent);
    return 0;
}

float sc_exp(float x) {
    uint32_t bits = sc_bits_of(x), fraction;
    int32_t exponent = (int32_t)(bits >> 23 & 255) - 127, whole;
    if (!(x > -87.33654f)) { /* also what is not a number */
        return x != x ? x : 0.0f;
    }
    if (x > 88.72283f) {
        return INFINITY;
    }
    if (exponent < -30) {
        return 1.0f;
    }
    whole = split(bits, exponent, &fraction);
    if (bits >> 31) { /* 2^-(whole + fraction) */
        whole = fraction != 0 ? -whole - 1 : -whole;
        fraction = 0u - fraction;
    }
    return power_of_two(whole, fraction);
}

/* As sc_exp, element by element, and their sum in that order. */
float sc_exps_below(const int16_t *scores, float step, float most, float *exps, uint32_t count) {
    float sum = 0.0f;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t bits = sc_bits_of((float)scores[i] * step - most), fraction;
        int32_t exponent = (int32_t)(bits >> 23 & 255) - 127, whole;
        float power;
        if (bits >= 0xc2aeac4fu) { /* -87.33654 and below */
            power = 0.0f;
        } else if (exponent < -30) {
            power = 1.0f;
        } else {
            whole = split(bits, exponent, &fraction);
            power = power_of_two(fraction != 0 ? -whole - 1 : -whole, 0u - fraction);
        }
        exps[i] = power;
        sum += power;
    }
    return sum;
}
