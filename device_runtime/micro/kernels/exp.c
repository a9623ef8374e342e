#include "power.h"

const uint32_t sc_powers[SC_POWERS] = {
    0x80000000, 0x82cd8699, 0x85aac368, 0x88980e81, 0x8b95c1e4, 0x8ea4398b, 0x91c3d374, 0x94f4efa9,
    0x9837f052, 0x9b8d39ba, 0x9ef53261, 0xa2704303, 0xa5fed6aa, 0xa9a15ab5, 0xad583eea, 0xb123f582,
    0xb504f334, 0xb8fbaf47, 0xbd08a39f, 0xc12c4cca, 0xc5672a11, 0xc9b9bd86, 0xce248c15, 0xd2a81d92,
    0xd744fccb, 0xdbfbb798, 0xe0ccdeec, 0xe5b906e7, 0xeac0c6e8, 0xefe4b99c, 0xf5257d15, 0xfa83b2db,
};

float sc_exp(float x) {
    uint64_t power;
    if (!(x > -87.33654f)) { /* also what is not a number */
        return x != x ? x : 0.0f;
    }
    if (x > 88.72283f) {
        return INFINITY;
    }
    power = sc_split(sc_bits_of(x));
    power = x < 0 ? 0 - power : power;
    return sc_power_of_two((int32_t)(power >> 32), (uint32_t)power);
}
