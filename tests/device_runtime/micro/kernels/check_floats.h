/* Holds the loops of floats.h, as they are compiled for this processor, against those for any: the same bits for numbers
 * of every kind, at the ends of what rounds up, and for lengths that are no multiple of four. */
#include <string.h>

#include "floats.h"

enum { LENGTH = 67, ROUNDS = 400 };

static uint32_t random_state = 1;

static uint32_t random_word(void) {
    random_state = random_state * 1664525u + 1013904223u;
    return random_state ^ random_state >> 15;
}

/* Mostly of a size that activations have; of each 16, one below what is normal, one of any bits, a few of halves. */
static float random_float(int any) {
    uint32_t kind = random_word() & 15, word = random_word();
    if (kind == 0 && any) {
        return sc_float_of(word & 0x80ffffffu); /* denormal, or the smallest normal ones */
    }
    if (kind == 1 && any) {
        return sc_float_of(word);
    }
    if (kind < 5) { /* a half, and the floats beside it */
        return sc_float_of(sc_bits_of((float)(int32_t)(word % 512 - 256) + 0.5f) + word / 512 % 3 - 1);
    }
    return ((float)(int32_t)word) * 0x1p-25f;
}

/* As floats: what is not a number has no bits that it must have. */
static int same(const float *a, const float *b, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        if (sc_bits_of(a[i]) != sc_bits_of(b[i]) && (a[i] == a[i] || b[i] == b[i])) {
            return 0;
        }
    }
    return 1;
}

static int softmax_is_exact(void) {
    static int16_t scores[LENGTH + 1], shares[LENGTH + 1], expected_shares[LENGTH + 1];
    static float exps[LENGTH + 1], expected[LENGTH + 1];
    static const float steps[] = {0x1p-64f, 0x1p-40f, 1e-7f, 1.3e-3f, 0.0071f, 0.02f, 0.4f, 0x1p90f};
    for (unsigned round = 0; round < ROUNDS; round++) {
        uint32_t count = 1 + random_word() % LENGTH, filled = (count + 3) & ~3u;
        float step = steps[round % 8], sum, expected_sum, most;
        float share_step = round % 3 == 0 ? 0x1p-15f : round % 3 == 1 ? 0x1.0002p-16f : 0.003f;
        for (uint32_t i = 0; i < count; i++) {
            scores[i] = (int16_t)(random_word() >> (16 + round % 5));
            if (round % 3 == 1) { /* with a largest of 0, nothing is lost of a product */
                scores[i] = (int16_t)(i == 0 ? 0 : -(scores[i] & 0x7fff));
            }
        }
        if (sc_largest(scores, count) != sc_largest_exact(scores, count)) {
            return 0;
        }
        most = (float)sc_largest(scores, count) * step;
        memset(exps, 0, sizeof exps), memset(expected, 0, sizeof expected);
        sum = sc_exps_below(scores, step, most, exps, count);
        expected_sum = sc_exps_below_exact(scores, step, most, expected, count);
        for (uint32_t i = 0; i < count; i++) {
            if (sc_bits_of(exps[i]) != sc_bits_of(sc_exp((float)scores[i] * step - most))) {
                return 0;
            }
        }
        if (!same(exps, expected, LENGTH + 1) || sc_bits_of(sum) != sc_bits_of(expected_sum)) {
            return 0;
        }
        sc_shares(exps, sum, share_step, shares, filled);
        sc_shares_exact(expected, sum, share_step, expected_shares, filled);
        for (uint32_t i = 0; i < filled; i += 4) {
            int16_t *e = expected_shares + i, *s = shares + i;
#ifdef SC_SHARES_ORDERED /* 0 2 1 3 */
            int16_t second = s[1];
            s[1] = s[2], s[2] = second;
#endif
            if (memcmp(e, s, 4 * sizeof *s) != 0) {
                return 0;
            }
        }
    }
    return 1;
}

/* exp of what is just above the least whose exp is not 0, of that, and of what is below. */
static int exp_ends_where_it_must(void) {
    const uint32_t least = sc_bits_of(87.33654f);
    for (uint32_t bits = least - 200; bits < least + 200; bits++) {
        static const int16_t scores[4] = {0, -1, 0, -1};
        float exps[4], x = sc_float_of(bits);
        (void)sc_exps_below(scores, x, 0.0f, exps, 4);
        if (sc_bits_of(exps[1]) != sc_bits_of(sc_exp(-x)) || exps[3] != exps[1] || exps[0] != 1.0f) {
            return 0;
        }
    }
    return 1;
}

/* Numbers in order, so that a vector has some on one side of a limit only; then some that are none among them. */
static int logistic_is_exact(void) {
    static float x[16], r[16], expected[16];
    for (uint32_t round = 0; round < 6000; round++) {
        for (uint32_t i = 0; i < 16; i++) {
            x[i] = -18.0f + (float)(16 * round + i) * 0.0004f;
        }
        if (round % 8 == 7) {
            x[round / 8 % 16] = NAN;
        }
        sc_flags_clear();
        sc_each(SC_OP_LOGISTIC, r, x, x, 16);
        if (sc_flags_set()) {
            if (round % 8 != 7) { /* the exact way is not for these */
                return 0;
            }
            continue;
        }
        sc_each_exact(SC_OP_LOGISTIC, expected, x, x, 16);
        if (!same(r, expected, 16)) {
            return 0;
        }
    }
    return 1;
}

/* Every half is rounded up, what is just below it down; in shares too. */
static int halves_are_rounded(void) {
    for (uint32_t whole = 0; whole < 65536; whole++) {
        float half = (float)whole + 0.5f, below = sc_float_of(sc_bits_of(half) - 1);
        if ((uint32_t)(half + SC_BELOW_HALF) != whole + 1 || (uint32_t)(below + SC_BELOW_HALF) != whole) {
            return 0;
        }
        if (whole < 32766) {
            float exps[4] = {half * 0x1p-15f, below * 0x1p-15f, below * 0x1p-15f, half * 0x1p-15f};
            int16_t shares[4];
            sc_shares(exps, 1.0f, 0x1p-15f, shares, 4); /* the same in the order 0 2 1 3 */
            if (shares[0] != (int32_t)whole + 1 || shares[1] != (int32_t)whole || shares[2] != (int32_t)whole ||
                shares[3] != (int32_t)whole + 1) {
                return 0;
            }
        }
    }
    return 1;
}

#ifdef SC_HAS_QUOTIENT
/* Division where it is hardest: quotients as near to the middle between two floats as those of 24 bits come. With
 * (2q + 1) b = 1 modulo 2^25, x = ((2q + 1) b - 1) / 2^25 makes x / b the middle after q less 2^-25 / b; with -1 for 1,
 * more. Then some of any size. */
static int quotients_are_exact(void) {
    for (uint32_t round = 0; round < 20000; round++) {
        uint32_t b = random_word() >> 8 | 0x800001u, inverse = b, middle;
        float x[4], by = (float)b, quotients[4];
        for (int i = 0; i < 4; i++) {
            inverse *= 2 - b * inverse; /* Newton, modulo 2^32 */
        }
        middle = inverse & 0x1ffffff;
        x[0] = (float)(((uint64_t)(middle >= 0x1000000 ? middle : 0x2000000 - middle) * b +
                        (middle >= 0x1000000 ? (uint64_t)-1 : 1)) >> 25);
        x[1] = -x[0], x[2] = (float)(random_word() >> 8 | 0x800000u), x[3] = x[2] * 0x1p-20f;
        by *= round % 3 == 0 ? 0x1p-70f : round % 3 == 1 ? 0x1p-24f : 0x1p30f;
        vstrwq_f32(quotients, sc_quotient(vldrwq_f32(x), sc_divisor_of(by)));
        for (int i = 0; i < 4; i++) {
            if (sc_bits_of(quotients[i]) != sc_bits_of(x[i] / by)) {
                return 0;
            }
        }
    }
    return 1;
}
#else
static int quotients_are_exact(void) { return 1; }
#endif

static int stores_are_exact(void) {
    static float x[LENGTH];
    static int8_t s8[LENGTH], expected_s8[LENGTH];
    static int16_t s16[LENGTH], expected_s16[LENGTH];
    static const float scales[] = {1.0f, 0.0117f, 0x1p-7f, 3e-5f, 0x1.fffffep-9f, 2e-39f, 0x1p-61f, 5e30f};
    for (unsigned round = 0; round < ROUNDS; round++) {
        uint32_t count = 1 + random_word() % LENGTH;
        int32_t zero_point = (int32_t)(random_word() % 256) - 128;
        float scale = scales[round % 8];
        for (uint32_t i = 0; i < count; i++) {
            x[i] = random_float(1);
            x[i] = i % 3 != 0 ? x[i] * scale : x[i];
        }
        sc_to_s8(x, scale, zero_point, s8, count);
        sc_to_s8_exact(x, scale, zero_point, expected_s8, count);
        sc_to_s16(x, scale, zero_point, s16, count);
        sc_to_s16_exact(x, scale, zero_point, expected_s16, count);
        if (memcmp(s8, expected_s8, count) != 0 || memcmp(s16, expected_s16, count * sizeof *s16) != 0) {
            return 0;
        }
    }
    return 1;
}

/* An operation, and then exactly if it asks for that. */
static int operations_are_exact(void) {
    static float a[LENGTH + 1], b[LENGTH + 1], r[LENGTH + 1], expected[LENGTH + 1];
    static int8_t s8[LENGTH];
    static int16_t s16[LENGTH];
    unsigned again = 0;
    for (unsigned round = 0; round < ROUNDS; round++) {
        uint32_t count = 1 + random_word() % LENGTH;
        float scale = round % 16 == 0 ? 1e-40f : 0.0313f, sum;
        int any = round % 2 != 0;
        for (uint32_t i = 0; i <= LENGTH; i++) {
            a[i] = random_float(any), b[i] = random_float(any);
        }
        for (uint32_t i = 0; i < LENGTH; i++) {
            s8[i] = (int8_t)random_word(), s16[i] = (int16_t)random_word();
        }
        for (uint32_t code = SC_OP_ADD; code <= SC_OP_NEG; code++) {
            sc_flags_clear();
            sc_each(code, r, a, b, count);
            if (sc_flags_set()) {
                sc_each_exact(code, r, a, b, count);
                again++;
            }
            sc_each_exact(code, expected, a, b, count);
            if (!same(r, expected, count)) {
                return 0;
            }
        }
        sc_flags_clear();
        sc_from_s8(s8, 3, scale, r, count);
        if (!sc_flags_set()) {
            sc_from_s8_exact(s8, 3, scale, expected, count);
            if (!same(r, expected, count)) {
                return 0;
            }
        }
        sc_flags_clear();
        sc_from_s16(s16, -9, scale, r, count);
        if (!sc_flags_set()) {
            sc_from_s16_exact(s16, -9, scale, expected, count);
            if (!same(r, expected, count)) {
                return 0;
            }
        }
        sum = sc_sum(a, 0.0f, count), expected[0] = sc_sum_exact(a, 0.0f, count);
        if (!same(&sum, expected, 1)) {
            return 0;
        }
    }
    return again < ROUNDS * (SC_OP_NEG - SC_OP_ADD); /* else all went the exact way */
}

/* 0, or which of these failed. */
static int check_floats(void) {
    return !halves_are_rounded() ? 1 : !softmax_is_exact() ? 2 : !stores_are_exact() ? 3 : !operations_are_exact() ? 4
           : !quotients_are_exact() ? 5 : !logistic_is_exact() ? 6 : !exp_ends_where_it_must() ? 7 : 0;
}
