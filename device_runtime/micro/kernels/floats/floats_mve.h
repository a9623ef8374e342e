/* Cortex-M55, M85: Helium, four floats at a time. Its vectors take numbers that are too small to be normal for 0, scalar
 * instructions do not: sc_flags_set finds that it happened. A vector's elements are scalar registers too: what has to
 * be done one after the other, or what vectors cannot do, divisions among it, takes an instruction an element. */
#include <arm_mve.h>

#define SC_HAS_FLAGS
enum { SC_FLAGS = 0x89 }; /* of FPSCR: a subnormal operand, a result too small, no number */

static inline void sc_flags_clear(void) {
    uint32_t word;
    __asm__ volatile("vmrs %0, fpscr\n\tbic %0, %0, %1\n\tvmsr fpscr, %0" : "=&r"(word) : "i"(SC_FLAGS) : "memory");
}

static inline int sc_flags_set(void) {
    uint32_t word;
    __asm__ volatile("vmrs %0, fpscr" : "=r"(word) : : "memory");
    return (word & SC_FLAGS) != 0;
}

static inline float32x4_t sc_divided(float32x4_t a, float32x4_t b) {
    register float32x4_t x __asm__("q0") = a;
    register float32x4_t y __asm__("q1") = b;
    __asm__("vdiv.f32 s0, s0, s4\n\tvdiv.f32 s1, s1, s5\n\tvdiv.f32 s2, s2, s6\n\tvdiv.f32 s3, s3, s7" : "+w"(x) : "w"(y));
    return x;
}

static inline float sc_added(float sum, float32x4_t four) {
    register float s __asm__("s16") = sum;
    register float32x4_t x __asm__("q0") = four;
    __asm__("vadd.f32 s16, s16, s0\n\tvadd.f32 s16, s16, s1\n\tvadd.f32 s16, s16, s2\n\tvadd.f32 s16, s16, s3" : "+t"(s) : "w"(x));
    return s;
}

/* Division by one number for many: 1 / by in two floats, whose product with x is less than a unit in the last place
 * off; what is left of x then rounds it as a division does (Markstein). Exact unless something is too small to be
 * normal: by is 2^-60 to 2^60, and a quotient below 2^-40 need not be right. */
#define SC_HAS_QUOTIENT
typedef struct {
    float by, high, low;
} sc_divisor;

static inline sc_divisor sc_divisor_of(float by) {
    sc_divisor d = {by, 1.0f / by, 0.0f};
    d.low = fmaf(-by, d.high, 1.0f) * d.high;
    return d;
}

static inline float32x4_t sc_quotient(float32x4_t x, sc_divisor d) {
    float32x4_t q = vfmaq_n_f32(vmulq_n_f32(x, d.low), x, d.high);
    return vfmaq_n_f32(q, vfmaq_n_f32(x, q, -d.by), d.high);
}

/* -- softmax ---------------------------------------------------------------------------------------------- */

static inline int16_t sc_largest(const int16_t *scores, uint32_t count) {
    int16_t largest = scores[0];
    for (; count >= 8; count -= 8, scores += 8) {
        largest = vmaxvq_s16(largest, vldrhq_s16(scores));
    }
    return count > 0 ? vmaxvq_p_s16(largest, vldrhq_z_s16(scores, vctp16q(count)), vctp16q(count)) : largest;
}

static inline uint32x4_t sc_highs(uint32x4_t a, uint32x4_t b) { return vmulhq_u32(a, b); }

/* sc_split: whole and fraction. The sign may be set: of a shift, the lowest byte counts. */
static inline uint32x4_t sc_four_split(uint32x4_t bits, uint32x4_t *fraction) {
    const uint32x4_t log2_e = vdupq_n_u32(SC_LOG2_E);
    uint32x4_t mantissa = vorrq_n_u32(vshlq_n_u32(bits, 8), 0x80000000u), high = sc_highs(mantissa, log2_e);
    /* to the left, so below 0; where it is beyond a byte, nothing is left either */
    int32x4_t by = vreinterpretq_s32_u32(vsubq_n_u32(vshrq_n_u32(bits, 23), 157));
    *fraction = vorrq_u32(vshlq_u32(vmulq_u32(mantissa, log2_e), by), vshlq_u32(high, vaddq_n_s32(by, 32)));
    return vshlq_u32(high, by);
}

/* sc_power_of_two of exponent - 126 and a fraction. */
static inline float32x4_t sc_four_powers(uint32x4_t exponent, uint32x4_t fraction) {
    const uint32x4_t ln_2 = vdupq_n_u32(SC_LN_2);
    uint32x4_t z = sc_highs(vshlq_n_u32(fraction, 5), ln_2), y, term;
    term = vorrq_n_u32(vshrq_n_u32(z, 8), 0x80000000u);
    term = sc_highs(sc_highs(z, term), vdupq_n_u32(SC_THIRD));
    term = vorrq_n_u32(vshrq_n_u32(term, 5), 0x80000000u);
    term = vorrq_n_u32(vshrq_n_u32(sc_highs(z, term), 6), 0x80000000u);
    y = vldrwq_gather_shifted_offset_u32(sc_powers, vshrq_n_u32(fraction, 27));
    y = vaddq_u32(y, vshrq_n_u32(sc_highs(y, sc_highs(z, term)), 4));
    return vreinterpretq_f32_u32(vaddq_u32(vrshrq_n_u32(y, 8), vshlq_n_u32(exponent, 23)));
}

/* sc_exp_below, of the bits of four numbers of which none is above 0. */
static inline float32x4_t sc_four_exps(uint32x4_t bits) {
    uint32x4_t fraction, whole = sc_four_split(bits, &fraction), borrowed = vminq_u32(fraction, vdupq_n_u32(1));
    uint32x4_t exponent = vsubq_u32(vdupq_n_u32(126), vaddq_u32(whole, borrowed));
    fraction = vreinterpretq_u32_s32(vnegq_s32(vreinterpretq_s32_u32(fraction)));
    return vpselq_f32(vdupq_n_f32(0.0f), sc_four_powers(exponent, fraction), vcmpcsq_n_u32(bits, SC_EXP_IS_0));
}

static inline float sc_exps_below(const int16_t *scores, float step, float most, float *exps, uint32_t count) {
    float sum = 0.0f;
    for (; count >= 4; count -= 4, scores += 4, exps += 4) {
        float32x4_t x = vsubq_n_f32(vmulq_n_f32(vcvtq_f32_s32(vldrhq_s32(scores)), step), most);
        float32x4_t four = sc_four_exps(vreinterpretq_u32_f32(x));
        vstrwq_f32(exps, four);
        sum = sc_added(sum, four);
    }
    for (; count > 0; count--, exps++) {
        *exps = sc_exp_below(sc_bits_of((float)*scores++ * step - most));
        sum += *exps;
    }
    return sum;
}

static inline void sc_shares(const float *exps, float sum, float step, int16_t *shares, uint32_t count) {
    sc_divisor by_sum = sc_divisor_of(sum), by_step = sc_divisor_of(step);
    for (; count >= 4; count -= 4, exps += 4, shares += 4) {
        float32x4_t steps = sc_quotient(sc_quotient(vldrwq_f32(exps), by_sum), by_step);
        int32x4_t whole = vcvtq_s32_f32(vaddq_n_f32(steps, SC_BELOW_HALF));
        vstrhq_s32(shares, vminq_s32(whole, vdupq_n_s32(32767)));
    }
}

/* -- programs --------------------------------------------------------------------------------------------- */

static inline void sc_from_s8(const int8_t *stored, int32_t zero_point, float scale, float *x, uint32_t count) {
    for (; count >= 4; count -= 4, stored += 4, x += 4) {
        vstrwq_f32(x, vmulq_n_f32(vcvtq_f32_s32(vsubq_n_s32(vldrbq_s32(stored), zero_point)), scale));
    }
    sc_from_s8_exact(stored, zero_point, scale, x, count);
}

static inline void sc_from_s16(const int16_t *stored, int32_t zero_point, float scale, float *x, uint32_t count) {
    for (; count >= 4; count -= 4, stored += 4, x += 4) {
        vstrwq_f32(x, vmulq_n_f32(vcvtq_f32_s32(vsubq_n_s32(vldrhq_s32(stored), zero_point)), scale));
    }
    sc_from_s16_exact(stored, zero_point, scale, x, count);
}

static inline void sc_copy(float *to, const float *x, uint32_t count) {
    for (; count >= 4; count -= 4, x += 4, to += 4) {
        vstrwq_f32(to, vldrwq_f32(x));
    }
    sc_copy_exact(to, x, count);
}

static inline void sc_fill(float *to, float x, uint32_t count) {
    for (; count >= 4; count -= 4, to += 4) {
        vstrwq_f32(to, vdupq_n_f32(x));
    }
    sc_fill_exact(to, x, count);
}

/* Bounds of what is divided instead of the quotient's: they are halves away from the next whole number, so that no
 * rounding matters, and what is not a number becomes the lower one here too. */
#define SC_TO(low, high, put)                                                                                   \
    if (scale >= 0x1p-60f && scale <= 0x1p60f) {                                                                \
        const sc_divisor by = sc_divisor_of(scale);                                                             \
        const float32x4_t least = vdupq_n_f32((float)((low) - zero_point) * scale);                             \
        const float32x4_t most = vdupq_n_f32((float)((high) - zero_point) * scale);                             \
        for (; count >= 4; count -= 4, x += 4, to += 4) {                                                       \
            float32x4_t held = vminnmq_f32(vmaxnmq_f32(vldrwq_f32(x), least), most);                            \
            put(to, vaddq_n_s32(vcvtaq_s32_f32(sc_quotient(held, by)), zero_point));                            \
        }                                                                                                       \
    }

static inline void sc_to_s8(const float *x, float scale, int32_t zero_point, int8_t *to, uint32_t count) {
    SC_TO(-128, 127, vstrbq_s32)
    sc_to_s8_exact(x, scale, zero_point, to, count);
}

static inline void sc_to_s16(const float *x, float scale, int32_t zero_point, int16_t *to, uint32_t count) {
    SC_TO(-32768, 32767, vstrhq_s32)
    sc_to_s16_exact(x, scale, zero_point, to, count);
}

/* sc_exp, of the bits of four numbers at which exp is a normal number. */
static inline float32x4_t sc_four_exps_of_both(uint32x4_t bits) {
    uint32x4_t fraction, whole = sc_four_split(bits, &fraction), exponent;
    /* of numbers below 0, -(whole + fraction), as sc_four_exps; the others as they are */
    uint32x4_t negative = vreinterpretq_u32_s32(vshrq_n_s32(vreinterpretq_s32_u32(bits), 31));
    exponent = vaddq_n_u32(veorq_u32(whole, negative), 126);
    exponent = vaddq_u32(exponent, vandq_u32(negative, vqsubq_u32(vdupq_n_u32(1), fraction))); /* 1 of a fraction of 0 */
    return sc_four_powers(exponent, vsubq_u32(veorq_u32(fraction, negative), negative));
}

/* sc_logistic, where one of the four may be cut off; of what is no number, flags say so. */
__attribute__((noinline)) static float32x4_t sc_four_logistics_far(float32x4_t x) {
    mve_pred16_t low = vcmpltq_n_f32(x, -9.0f), one = vcmpgtq_n_f32(x, 16.619047164916992188f);
    uint32x4_t bits = vreinterpretq_u32_f32(vpselq_f32(x, vnegq_f32(x), low));
    float32x4_t power = sc_four_exps_of_both(bits), result;
    power = vpselq_f32(vdupq_n_f32(0.0f), power, vcmpcsq_n_u32(bits, SC_EXP_IS_0));
    result = sc_divided(vdupq_n_f32(1.0f), vaddq_n_f32(power, 1.0f));
    result = vpselq_f32(power, result, low);
    return vpselq_f32(vdupq_n_f32(1.0f), result, one);
}

/* Nearly all numbers are near 0. */
__attribute__((noinline)) static void sc_logistics(float *r, const float *a, uint32_t fours) {
    for (; fours > 0; fours--, a += 4, r += 4) {
        float32x4_t x = vldrwq_f32(a), power;
        if (vcmpgtq_n_f32(vabsq_f32(x), 9.0f)) {
            vstrwq_f32(r, sc_four_logistics_far(x));
        } else {
            power = sc_four_exps_of_both(vreinterpretq_u32_f32(vnegq_f32(x)));
            vstrwq_f32(r, sc_divided(vdupq_n_f32(1.0f), vaddq_n_f32(power, 1.0f)));
        }
    }
}

/* Operands have room for a multiple of four (SC_FOURS_ONLY); what lies in excess is computed too. */
#define SC_FOURS(expression)                                    \
    for (; fours > 0; fours--, a += 4, b += 4, r += 4) {        \
        float32x4_t x = vldrwq_f32(a), y = vldrwq_f32(b);       \
        vstrwq_f32(r, (expression));                            \
    }                                                           \
    break

#define SC_FOURS_ONLY
static inline void sc_each(uint32_t code, float *r, const float *a, const float *b, uint32_t count) {
    uint32_t fours = (count + 3) / 4;
    switch (code) {
    case SC_OP_ADD: SC_FOURS(vaddq_f32(x, y));
    case SC_OP_SUB: SC_FOURS(vsubq_f32(x, y));
    case SC_OP_MUL: SC_FOURS(vmulq_f32(x, y));
    case SC_OP_LOGISTIC: sc_logistics(r, a, fours); break;
    default: sc_each_exact(code, r, a, b, count); break;
    }
}

static inline float sc_sum(const float *x, float sum, uint32_t count) {
    for (; count >= 4; count -= 4, x += 4) {
        sum = sc_added(sum, vldrwq_f32(x));
    }
    return sc_sum_exact(x, sum, count);
}
