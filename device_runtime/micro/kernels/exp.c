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

float sc_exp(float x) {
    uint32_t bits = sc_bits_of(x), mantissa = bits << 8 | 0x80000000u, fraction, y;
    int32_t exponent = (int32_t)(bits >> 23 & 255) - 127, whole;
    uint64_t power; /* |x| / ln 2: 62 bits after the point, for an exponent of 0 */
    uint32_t high;
    if (!(x > -87.33654f)) { /* also what is not a number */
        return x != x ? x : 0.0f;
    }
    if (x > 88.72283f) {
        return INFINITY;
    }
    if (exponent < -30) {
        return 1.0f;
    }
    power = (uint64_t)mantissa * 0xb8aa3b29u; /* log2(e), 31 bits */
    high = (uint32_t)(power >> 32);
    if (exponent >= -1) {
        whole = (int32_t)(high >> (30 - exponent));
        fraction = high << (2 + exponent) | (uint32_t)power >> (30 - exponent); /* 32 bits after the point */
    } else {
        whole = 0;
        fraction = high >> (-2 - exponent);
    }
    if (bits >> 31) { /* 2^-(whole + fraction) */
        whole = fraction != 0 ? -whole - 1 : -whole;
        fraction = 0u - fraction;
    }
    y = POWERS[fraction >> 27];
    y += sc_high(y, power_of_rest(fraction & 0x7ffffff)) >> 4;
    return sc_float_of(((uint32_t)(whole + 126) << 23) + (y >> 8) + (y >> 7 & 1));
}
