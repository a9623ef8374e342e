#include "numbers.h"

/* 2^(i/32) with 31 bits behind the point */
static const uint32_t POWERS[32] = {
    0x80000000, 0x82cd8699, 0x85aac368, 0x88980e81, 0x8b95c1e4, 0x8ea4398b, 0x91c3d374, 0x94f4efa9,
    0x9837f052, 0x9b8d39ba, 0x9ef53261, 0xa2704303, 0xa5fed6aa, 0xa9a15ab5, 0xad583eea, 0xb123f582,
    0xb504f334, 0xb8fbaf47, 0xbd08a39f, 0xc12c4cca, 0xc5672a11, 0xc9b9bd86, 0xce248c15, 0xd2a81d92,
    0xd744fccb, 0xdbfbb798, 0xe0ccdeec, 0xe5b906e7, 0xeac0c6e8, 0xefe4b99c, 0xf5257d15, 0xfa83b2db,
};

static uint32_t high_product(uint32_t a, uint32_t b) { return (uint32_t)((uint64_t)a * b >> 32); }

float sc_exp(float x) {
    const uint64_t log2_e = UINT64_C(793129986396); /* 39 bits behind the point */
    const uint32_t ln_2 = UINT32_C(2977044472);         /* 32 bits behind the point */
    uint32_t bits = sc_bits_of(x), exponent = bits >> 23 & 255;
    uint64_t product;
    int64_t power; /* x / ln 2, 32 bits behind the point */
    uint32_t z, y, term;
    if (!(x > -87.33654f)) { /* also what is not a number */
        return x != x ? x : 0.0f;
    }
    if (x > 88.72283f) {
        return INFINITY;
    }
    if (exponent < 127 - 32) {
        return 1.0f;
    }
    product = ((bits & 0x7fffff) | 0x800000) * log2_e;
    product = ((product >> (156 - exponent)) + 1) >> 1; /* exponent is 95 … 133 */
    power = bits >> 31 ? -(int64_t)product : (int64_t)product;
    /* 2^power = 2^whole * 2^(i/32) * e^z */
    z = (uint32_t)((uint64_t)((uint32_t)power & 0x7ffffff) * ln_2 >> 27); /* below 0.0217; 37 bits behind the point */
    term = 0x80000000u + (z >> 8);                                        /* 1 + z/4, 31 bits */
    term = 0x80000000u + (high_product(high_product(z, term), 0x55555556u) >> 5); /* 1 + z/3 (…) */
    term = 0x80000000u + (high_product(z, term) >> 6);                             /* 1 + z/2 (…) */
    y = POWERS[(uint32_t)power >> 27];
    y += high_product(y, high_product(z, term)) >> 4;
    return sc_float_of(((uint32_t)((int32_t)(power >> 32) + 126) << 23) + (y >> 8) + (y >> 7 & 1));
}
