/* Cortex-M4F, M7, M33 with a floating-point unit. It has no vectors: this saves what lies between its operations. */

static inline int16_t sc_largest(const int16_t *scores, uint32_t count) {
    uint32_t most = (uint16_t)scores[0] * 0x10001u; /* the even ones in the lower half, the odd ones in the upper one */
    int16_t first, second;
    for (const int16_t *end = (scores += count % 2) + (count & ~1u); scores < end; scores += 2) {
        uint32_t pair, difference;
        memcpy(&pair, scores, sizeof pair);
        __asm__("ssub16 %1, %0, %2\n\tsel %0, %0, %2" : "+r"(most), "=&r"(difference) : "r"(pair) : "cc");
    }
    first = (int16_t)most, second = (int16_t)(most >> 16);
    return first > second ? first : second;
}

/* x, which is not below 0, in whole 2^-24 and 2^-32, towards 0 and saturating. */
static inline uint32_t sc_fixed_24(float x) {
    __asm__("vcvt.u32.f32 %0, %0, #24" : "+t"(x));
    return sc_bits_of(x);
}

static inline uint32_t sc_fixed_32(float x) {
    __asm__("vcvt.u32.f32 %0, %0, #32" : "+t"(x));
    return sc_bits_of(x);
}

/* What a compiler would load again in each round stays in a register. */
#define SC_KEEP(x) __asm__("" : "+r"(x))

/* sc_split's product is shifted by a number of bits that x decides. Here x is a fixed point first, so that it is not: exact
 * from 0.5 on, and with more bits from 2^-9 on. */
static inline float sc_exps_below(const int16_t *scores, float step, float most, float *exps, uint32_t count) {
    const uint32_t *powers = sc_powers;
    uint32_t log2_e = SC_LOG2_E, ln_2 = SC_LN_2, third = SC_THIRD, one = 0x80000000u, bias = 126;
    float sum = 0.0f;
    SC_KEEP(powers);
    SC_KEEP(log2_e);
    SC_KEEP(ln_2);
    SC_KEEP(third);
    SC_KEEP(one);
    SC_KEEP(bias);
    for (const int16_t *end = scores + count; scores < end; scores++, exps++) {
        float below = most - (float)*scores * step, power = 0.0f;
        uint32_t x = sc_fixed_24(below), whole, fraction, z, term;
        uint64_t product;
        if (x < 0x57562780u) { /* 87.33654 */
            if (x >= 0x800000u) {
                product = (uint64_t)x * log2_e; /* 24 + 31 bits after the point */
                fraction = (uint32_t)(product >> 23);
                whole = (uint32_t)(product >> 32) >> 23;
            } else if ((x = sc_fixed_32(below)) >= 0x800000u) {
                product = (uint64_t)x * log2_e;
                fraction = (uint32_t)(product >> 31);
                whole = 0;
            } else {
                fraction = (uint32_t)sc_split(sc_bits_of(below));
                whole = 0;
            }
            /* 126 - whole - fraction */
            __asm__("rsbs %0, %0, #0\n\tsbc %1, %2, %1" : "+r"(fraction), "+r"(whole) : "r"(bias) : "cc");
            z = sc_high(fraction << 5, ln_2); /* sc_power_of_rest, with a register for its 1 */
            term = one + (z >> 8);
            term = one + (sc_high(sc_high(z, term), third) >> 5);
            term = one + (sc_high(z, term) >> 6);
            term = sc_high(z, term);
            z = powers[fraction >> 27];
            z += sc_high(z, term) >> 4;
            /* the bit that is shifted out last rounds */
            __asm__("lsrs %0, %0, #8\n\tadc %0, %0, %1, lsl #23" : "+r"(z) : "r"(whole) : "cc");
            power = sc_float_of(z);
        }
        *exps = power;
        sum += power;
    }
    return sum;
}

#define SC_SHARES_ORDERED
/* Four at a time: two divisions each, and one word for two of them. */
static inline void sc_shares(const float *exps, float sum, float step, int16_t *shares, uint32_t count) {
    float half = SC_BELOW_HALF;
    for (int16_t *end = shares + count; shares < end; shares += 4) {
        uint32_t first, second, third, fourth;
        __asm__(
            "vldmia %0!, {s0-s3}\n\t"
            "vdiv.f32 s0, s0, %5\n\tvdiv.f32 s1, s1, %5\n\tvdiv.f32 s2, s2, %5\n\tvdiv.f32 s3, s3, %5\n\t"
            "vdiv.f32 s0, s0, %6\n\tvdiv.f32 s1, s1, %6\n\tvdiv.f32 s2, s2, %6\n\tvdiv.f32 s3, s3, %6\n\t"
            "vadd.f32 s0, s0, %7\n\tvadd.f32 s1, s1, %7\n\tvadd.f32 s2, s2, %7\n\tvadd.f32 s3, s3, %7\n\t"
            "vcvt.s16.f32 s0, s0, #0\n\tvcvt.s16.f32 s1, s1, #0\n\t" /* towards 0, and saturating at 32767 */
            "vcvt.s16.f32 s2, s2, #0\n\tvcvt.s16.f32 s3, s3, #0\n\t"
            "vmov %1, %2, s0, s1\n\tvmov %3, %4, s2, s3\n\t"
            : "+r"(exps), "=&r"(first), "=&r"(second), "=&r"(third), "=&r"(fourth)
            : "t"(sum), "t"(step), "t"(half)
            : "s0", "s1", "s2", "s3", "memory");
        first |= third << 16, second |= fourth << 16; /* the order of sc_ordered: 0 2 1 3 */
        memcpy(shares, &first, sizeof first);
        memcpy(shares + 2, &second, sizeof second);
    }
}

#define SC_FROM(type, stored, zero_point, scale, x, count)          \
    for (const type *end = (stored) + (count); (stored) < end;) {   \
        *(x)++ = (float)(*(stored)++ - (zero_point)) * (scale);     \
    }

static inline void sc_from_s8(const int8_t *stored, int32_t zero_point, float scale, float *x, uint32_t count) {
#pragma GCC unroll 4
    SC_FROM(int8_t, stored, zero_point, scale, x, count)
}

static inline void sc_from_s16(const int16_t *stored, int32_t zero_point, float scale, float *x, uint32_t count) {
#pragma GCC unroll 4
    SC_FROM(int16_t, stored, zero_point, scale, x, count)
}

/* Four at a time, each in a register of its own. */
static inline void sc_copy(float *to, const float *x, uint32_t count) {
    for (; count >= 4; count -= 4) {
        __asm__("vldmia %1!, {s0-s3}\n\tvstmia %0!, {s0-s3}" : "+r"(to), "+r"(x) : : "s0", "s1", "s2", "s3", "memory");
    }
    sc_copy_exact(to, x, count);
}

#define sc_fill sc_fill_exact

/* Four quotients, and whether one of them is no number. */
static inline int sc_four_quotients(const float *x, float scale, float q[4]) {
    float sum;
    q[0] = x[0] / scale, q[1] = x[1] / scale, q[2] = x[2] / scale, q[3] = x[3] / scale;
    sum = (q[0] + q[1]) + (q[2] + q[3]);
    return sum != sum;
}

/* As sc_rounded within -2^31 … 2^31 - 1, and zero_point. */
static inline int32_t sc_whole(float q, int32_t zero_point) {
    float whole, back;
    int32_t result, more;
    __asm__("vcvt.s32.f32 %0, %1" : "=t"(whole) : "t"(q));
    __asm__("vcvt.f32.s32 %0, %1" : "=t"(back) : "t"(whole));
    q -= back;
    q += q;
    __asm__("vcvt.s32.f32 %0, %0" : "+t"(q));
    result = (int32_t)sc_bits_of(whole), more = (int32_t)sc_bits_of(q);
    __asm__("qadd %0, %0, %1" : "+r"(result) : "r"(more));
    __asm__("qadd %0, %0, %1" : "+r"(result) : "r"(zero_point));
    return result;
}

static inline int32_t sc_saturated_8(int32_t x) {
    __asm__("ssat %0, #8, %0" : "+r"(x));
    return x;
}

static inline int32_t sc_saturated_16(int32_t x) {
    __asm__("ssat %0, #16, %0" : "+r"(x));
    return x;
}

static inline void sc_to_s8(const float *x, float scale, int32_t zero_point, int8_t *to, uint32_t count) {
    for (; count >= 4; count -= 4, x += 4, to += 4) {
        float q[4];
        if (sc_four_quotients(x, scale, q)) {
            sc_to_s8_exact(x, scale, zero_point, to, 4);
            continue;
        }
        for (unsigned i = 0; i < 4; i++) {
            to[i] = (int8_t)sc_saturated_8(sc_whole(q[i], zero_point));
        }
    }
    sc_to_s8_exact(x, scale, zero_point, to, count);
}

static inline void sc_to_s16(const float *x, float scale, int32_t zero_point, int16_t *to, uint32_t count) {
    for (; count >= 4; count -= 4, x += 4, to += 4) {
        float q[4];
        if (sc_four_quotients(x, scale, q)) {
            sc_to_s16_exact(x, scale, zero_point, to, 4);
            continue;
        }
        for (unsigned i = 0; i < 4; i++) {
            to[i] = (int16_t)sc_saturated_16(sc_whole(q[i], zero_point));
        }
    }
    sc_to_s16_exact(x, scale, zero_point, to, count);
}

/* Eight at a time. */
#define SC_EIGHTS(operation)                                                                                   \
    for (; count >= 8; count -= 8) {                                                                           \
        __asm__("vldmia %0!, {s0-s7}\n\tvldmia %1!, {s8-s15}\n\t"                                              \
                operation " s0, s0, s8\n\t" operation " s1, s1, s9\n\t" operation " s2, s2, s10\n\t"           \
                operation " s3, s3, s11\n\t" operation " s4, s4, s12\n\t" operation " s5, s5, s13\n\t"         \
                operation " s6, s6, s14\n\t" operation " s7, s7, s15\n\t"                                      \
                "vstmia %2!, {s0-s7}"                                                                          \
                : "+r"(a), "+r"(b), "+r"(r)                                                                    \
                :                                                                                              \
                : "s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s10", "s11", "s12", "s13",      \
                  "s14", "s15", "memory");                                                                     \
    }                                                                                                          \
    break

static inline void sc_each(uint32_t code, float *r, const float *a, const float *b, uint32_t count) {
    switch (code) {
    case SC_OP_ADD: SC_EIGHTS("vadd.f32");
    case SC_OP_SUB: SC_EIGHTS("vsub.f32");
    case SC_OP_MUL: SC_EIGHTS("vmul.f32");
    case SC_OP_DIV: SC_EIGHTS("vdiv.f32");
    default: break;
    }
    if (count > 0) {
        sc_each_exact(code, r, a, b, count);
    }
}

static inline float sc_sum(const float *x, float sum, uint32_t count) {
    for (; count >= 8; count -= 8) {
        __asm__(
            "vldmia %1!, {s0-s7}\n\t"
            "vadd.f32 %0, %0, s0\n\tvadd.f32 %0, %0, s1\n\tvadd.f32 %0, %0, s2\n\tvadd.f32 %0, %0, s3\n\t"
            "vadd.f32 %0, %0, s4\n\tvadd.f32 %0, %0, s5\n\tvadd.f32 %0, %0, s6\n\tvadd.f32 %0, %0, s7"
            : "+t"(sum), "+r"(x)
            :
            : "s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7", "memory");
    }
    return sc_sum_exact(x, sum, count);
}
