/* Cortex-M4, M7, M33 …: two products an instruction (SMLAD). SXTB16 widens bytes 0 and 2 of a word, and rotated by 8 bits
 * bytes 1 and 3, so the vector is stored with its elements in that order: 0 2 1 3. Three rows a pass, 192 columns a
 * round: 576 products in 675 instructions, with every core register in use, which no compiler manages. */
#include <string.h>

enum { SC_ROWS = 3 };
typedef int16_t sc_wide;

static inline uint32_t sc_even_bytes(uint32_t word) {
    uint32_t result;
    __asm__("sxtb16 %0, %1" : "=r"(result) : "r"(word));
    return result;
}

static inline uint32_t sc_odd_bytes(uint32_t word) {
    uint32_t result;
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(result) : "r"(word));
    return result;
}

static inline int32_t sc_two_products(uint32_t x, uint32_t w, int32_t sum) {
    __asm__("smlad %0, %1, %2, %0" : "+r"(sum) : "r"(x), "r"(w));
    return sum;
}

static inline uint32_t sc_word_at(const void *p) {
    uint32_t word;
    memcpy(&word, p, sizeof word);
    return word;
}

static inline const sc_wide *sc_widened(const int8_t *x, int16_t *scratch, uint32_t columns) {
    for (uint32_t c = 0; c < columns; c += 4) {
        uint32_t word = sc_word_at(x + c), pairs[2];
        pairs[0] = sc_even_bytes(word);
        pairs[1] = sc_odd_bytes(word);
        memcpy(scratch + c, pairs, sizeof pairs);
    }
    return scratch;
}

static inline const int16_t *sc_ordered(const int16_t *x, int16_t *scratch, uint32_t columns) {
    for (uint32_t c = 0; c < columns; c += 4) {
        int16_t second = x[c + 1]; /* scratch may be x */
        scratch[c] = x[c];
        scratch[c + 1] = x[c + 2];
        scratch[c + 2] = second;
        scratch[c + 3] = x[c + 3];
    }
    return scratch;
}

/* What a pass works on. */
typedef struct {
    const int16_t *x;
    const int8_t *w;
    uint32_t stride;
    const int16_t *end_192, *end; /* of the rounds of 192 columns, and of all */
    int32_t *sums;
} sc_pass;

/* Four weights of one row: r12 has two of them, and then the register itself the other two. */
#define SC_FOUR(w, x_even, x_odd, sum) \
    "sxtb16 r12, " w "\n\t"            \
    "sxtb16 " w ", " w ", ror #8\n\t"  \
    "smlad " sum ", r12, " x_even ", " sum "\n\t" \
    "smlad " sum ", " w ", " x_odd ", " sum "\n\t"

#define SC_ROW(pointer, sum)                   \
    "ldrd r5, r6, [" pointer "], #8\n\t"       \
    SC_FOUR("r5", "r1", "r2", sum) SC_FOUR("r6", "r3", "r4", sum)

/* Eight columns of three rows. */
#define SC_EIGHT \
    "ldm r9!, {r1, r2, r3, r4}\n\t" SC_ROW("r10", "r0") SC_ROW("r11", "r8") SC_ROW("r7", "lr")

#define SC_SIXTY_FOUR SC_EIGHT SC_EIGHT SC_EIGHT SC_EIGHT SC_EIGHT SC_EIGHT SC_EIGHT SC_EIGHT

/* The rows of a pass by the vector, into its sums. */
void sc_add_columns(sc_pass *pass);

#ifdef SC_DOT_BODIES
/* x in r9, rows in r10, r11 and r7, sums in r0, r8 and lr; where x ends lies on the stack. */
void sc_add_columns(sc_pass *pass) {
    register sc_pass *p __asm__("r0") = pass;
    __asm__ volatile(
        "ldm r0, {r9, r10, r12}\n\t"
        "ldrd r5, r6, [r0, #12]\n\t"
        "push {r0, r5, r6}\n\t"
        "add r11, r10, r12\n\t"
        "add r7, r11, r12\n\t"
        "movs r0, #0\n\t"
        "mov r8, r0\n\t"
        "mov lr, r0\n\t"
        "cmp r9, r5\n\t"
        "beq 2f\n\t"
        "1:\n\t" SC_SIXTY_FOUR SC_SIXTY_FOUR SC_SIXTY_FOUR
        "ldr r12, [sp, #4]\n\t"
        "cmp r9, r12\n\t"
        "bne 1b\n\t"
        "2:\n\t"
        "ldr r12, [sp, #8]\n\t"
        "cmp r9, r12\n\t"
        "beq 4f\n\t"
        "3:\n\t" SC_EIGHT SC_EIGHT
        "ldr r12, [sp, #8]\n\t"
        "cmp r9, r12\n\t"
        "bne 3b\n\t"
        "4:\n\t"
        "pop {r12}\n\t"
        "add sp, sp, #8\n\t"
        "ldr r12, [r12, #20]\n\t"
        "stm r12, {r0, r8, lr}\n\t"
        : "+r"(p)
        :
        : "r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "lr", "cc", "memory");
}
#endif

static inline void sc_dot_s8(const sc_wide *x, const int8_t *w, size_t stride, uint32_t columns,
                             int32_t sums[SC_ROWS]) {
    sc_pass pass = {x, w, stride, x + columns / 192 * 192, x + columns, sums};
    sc_add_columns(&pass);
}

static inline void sc_dot_narrow(const int16_t *x, const int8_t *w, size_t stride, uint32_t columns,
                                 int32_t sums[SC_ROWS]) {
    sc_dot_s8(x, w, stride, columns, sums);
}

/* One key after the other: a head_dim is short, and what surrounds a pass of three would be most of the work. */
#define SC_HAS_SCORES
static inline int16_t sc_score(int32_t sum, int32_t multiplier, int32_t shift, int32_t half) {
    __asm__("smmla %0, %0, %1, %2" : "+r"(sum) : "r"(multiplier), "r"(half));
    __asm__("ssat %0, #16, %1" : "=r"(sum) : "r"(sum >> shift));
    return (int16_t)sum;
}

/* A head_dim of 8: the query stays in registers. */
static inline void sc_scores_of_8(const int16_t *ordered, const int8_t *keys, const sc_scale *scale, int16_t *scores,
                                  const int16_t *end) {
    const int32_t multiplier = scale->high_multiplier, shift = (int32_t)scale->high_shift, half = 1 << (shift - 1);
    const uint32_t x0 = sc_word_at(ordered), x1 = sc_word_at(ordered + 2);
    const uint32_t x2 = sc_word_at(ordered + 4), x3 = sc_word_at(ordered + 6);
    while (scores < end) {
        uint32_t four = sc_word_at(keys), more = sc_word_at(keys + 4);
        int32_t sum = sc_two_products(x0, sc_even_bytes(four), 0);
        sum = sc_two_products(x1, sc_odd_bytes(four), sum);
        sum = sc_two_products(x2, sc_even_bytes(more), sum);
        *scores++ = sc_score(sc_two_products(x3, sc_odd_bytes(more), sum), multiplier, shift, half);
        keys += 8;
    }
}

static inline void sc_scores(const int16_t *ordered, const int8_t *keys, uint32_t dim, uint32_t count,
                             const sc_scale *scale, int16_t *scores) {
    const int32_t multiplier = scale->high_multiplier, shift = (int32_t)scale->high_shift, half = 1 << (shift - 1);
    if (dim == 8) {
        sc_scores_of_8(ordered, keys, scale, scores, scores + count);
        return;
    }
    for (const int16_t *end = scores + count; scores < end; scores++) {
        const int16_t *x = ordered;
        uint32_t left = dim;
        int32_t sum = 0;
        __asm__ volatile(
            "1:\n\t"
            "ldm %0!, {r1, r2, r3, r4}\n\t" SC_ROW("%1", "%2")
            "subs %3, #8\n\t"
            "bne 1b\n\t"
            : "+&r"(x), "+&r"(keys), "+&r"(sum), "+&r"(left)
            :
            : "r1", "r2", "r3", "r4", "r5", "r6", "r12", "cc", "memory");
        *scores = sc_score(sum, multiplier, shift, half);
    }
}

/* For a head_dim that is no multiple of 16. */
static inline void sc_dot_short(const int16_t *x, const int8_t *w, size_t stride, uint32_t columns,
                                int32_t sums[SC_ROWS]) {
    const int8_t *w0 = w, *w1 = w + stride, *w2 = w1 + stride, *end = w + (columns & ~3u);
    int32_t s0 = 0, s1 = 0, s2 = 0;
    for (; w0 < end; w0 += 4, w1 += 4, w2 += 4, x += 4) {
        uint32_t low = sc_word_at(x), high = sc_word_at(x + 2), even, odd, a, b, d;
        __asm__("pkhbt %0, %1, %2, lsl #16" : "=r"(even) : "r"(low), "r"(high));
        __asm__("pkhtb %0, %1, %2, asr #16" : "=r"(odd) : "r"(high), "r"(low));
        a = sc_word_at(w0), b = sc_word_at(w1), d = sc_word_at(w2);
        s0 = sc_two_products(odd, sc_odd_bytes(a), sc_two_products(even, sc_even_bytes(a), s0));
        s1 = sc_two_products(odd, sc_odd_bytes(b), sc_two_products(even, sc_even_bytes(b), s1));
        s2 = sc_two_products(odd, sc_odd_bytes(d), sc_two_products(even, sc_even_bytes(d), s2));
    }
    for (uint32_t c = 0; c < (columns & 3u); c++) {
        s0 += x[c] * w0[c];
        s1 += x[c] * w1[c];
        s2 += x[c] * w2[c];
    }
    sums[0] = s0, sums[1] = s1, sums[2] = s2;
}

/* sc_requantized_s8 for a shift to the right: no sum reaches 2^30 (graph.c), so it can be doubled, and SMMULR rounds. */
static inline int32_t sc_scaled_down(int32_t sum, int32_t multiplier, int32_t shift) {
    int32_t high;
    __asm__("smmulr %0, %1, %2" : "=r"(high) : "r"((uint32_t)sum << 1), "r"(multiplier));
    high += high >> 31; /* halves away from zero */
    return ((high >> ~shift) + 1) >> 1;
}

static inline void sc_scale_rows(const int32_t *sums, const int32_t *bias, const int32_t *multipliers,
                                 const int8_t *shifts, int32_t zero_point, int8_t *out, const int8_t *end) {
    while (out < end) {
        int32_t sum = *sums++, multiplier = *multipliers++, shift = *shifts++;
        if (bias != NULL) {
            sum += *bias++;
        }
        if (shift < 0) {
            sum = sc_scaled_down(sum, multiplier, shift);
        } else {
            sum = sc_requantized_s8(sum, multiplier, shift);
            sum = sum < -65536 ? -65536 : sum > 65536 ? 65536 : sum;
        }
        __asm__("ssat %0, #8, %1" : "=r"(sum) : "r"(sum + zero_point));
        *out++ = (int8_t)sum;
    }
}

#define SC_HAS_REQUANTIZE
static inline void sc_requantize_s8(const int32_t *sums, const int32_t *bias, const int32_t *multipliers,
                                    const int8_t *shifts, int32_t zero_point, int8_t *out, uint32_t rows) {
    if (bias != NULL) { /* two loops, neither of which asks again */
        sc_scale_rows(sums, bias, multipliers, shifts, zero_point, out, out + rows);
    } else {
        sc_scale_rows(sums, NULL, multipliers, shifts, zero_point, out, out + rows);
    }
}
