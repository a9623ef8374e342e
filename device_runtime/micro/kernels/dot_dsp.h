/* Cortex-M4, M7, M33 …: two products an instruction (SMLAD). SXTB16 widens bytes 0 and 2 of a word, and rotated by 8 bits
 * bytes 1 and 3, so the vector is stored with its elements in that order: 0 2 1 3. Three rows a pass, 64 columns a
 * round: 192 products in 228 instructions, with every core register in use, which no compiler manages. */
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
        int16_t second = x[c + 1]; /* scratch is not x, but that costs nothing */
        scratch[c] = x[c];
        scratch[c + 1] = x[c + 2];
        scratch[c + 2] = second;
        scratch[c + 3] = x[c + 3];
    }
    return scratch;
}

/* What a pass works on. */
typedef struct {
    const int16_t *x; /* 16 columns at a time */
    const int8_t *w[SC_ROWS];
    int32_t sums[SC_ROWS];
    uint32_t rounds;
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

#define SC_PASS(body)                                                                                            \
    __asm__ volatile(                                                                                            \
        "push {r0}\n\t"                                                                                          \
        "ldr r12, [r0, #28]\n\t"                                                                                 \
        "push {r12}\n\t"                                                                                         \
        "ldr r9, [r0]\n\t"                                                                                       \
        "ldr r10, [r0, #4]\n\t"                                                                                  \
        "ldr r11, [r0, #8]\n\t"                                                                                  \
        "ldr r7, [r0, #12]\n\t"                                                                                  \
        "ldr r8, [r0, #20]\n\t"                                                                                  \
        "ldr lr, [r0, #24]\n\t"                                                                                  \
        "ldr r0, [r0, #16]\n\t"                                                                                  \
        "1:\n\t" body                                                                                            \
        "ldr r12, [sp]\n\t"                                                                                      \
        "subs r12, r12, #1\n\t"                                                                                  \
        "str r12, [sp]\n\t"                                                                                      \
        "bne 1b\n\t"                                                                                             \
        "pop {r12}\n\t"                                                                                          \
        "pop {r12}\n\t"                                                                                          \
        "stm r12!, {r9, r10, r11}\n\t"                                                                           \
        "stm r12, {r7}\n\t"                                                                                      \
        "str r0, [r12, #4]\n\t"                                                                                  \
        "str r8, [r12, #8]\n\t"                                                                                  \
        "str lr, [r12, #12]\n\t"                                                                                 \
        : "+r"(p)                                                                                                \
        :                                                                                                        \
        : "r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "lr", "cc", "memory")

/* 16 and 64 columns a round; pointers and sums go on from where they are. */
__attribute__((noinline)) static void sc_rounds_of_16(sc_pass *pass) {
    register sc_pass *p __asm__("r0") = pass;
    SC_PASS(SC_EIGHT SC_EIGHT);
}

__attribute__((noinline)) static void sc_rounds_of_64(sc_pass *pass) {
    register sc_pass *p __asm__("r0") = pass;
    SC_PASS(SC_EIGHT SC_EIGHT SC_EIGHT SC_EIGHT SC_EIGHT SC_EIGHT SC_EIGHT SC_EIGHT);
}

static inline void sc_add_columns(sc_pass *pass, uint32_t columns) {
    pass->rounds = columns / 64;
    if (pass->rounds > 0) {
        sc_rounds_of_64(pass);
    }
    pass->rounds = columns % 64 / 16;
    if (pass->rounds > 0) {
        sc_rounds_of_16(pass);
    }
}

static inline void sc_dot_s8(const sc_wide *x, const int8_t *const w[SC_ROWS], uint32_t columns,
                             int32_t sums[SC_ROWS]) {
    sc_pass pass = {x, {w[0], w[1], w[2]}, {0, 0, 0}, 0};
    sc_add_columns(&pass, columns);
    memcpy(sums, pass.sums, sizeof pass.sums);
}

static inline void sc_dot_ordered(const int16_t *x, const int8_t *const w[SC_ROWS], uint32_t columns,
                                  int64_t sums[SC_ROWS]) {
    sc_pass pass = {x, {w[0], w[1], w[2]}, {0, 0, 0}, 0};
    sums[0] = sums[1] = sums[2] = 0;
    for (uint32_t start = 0; start < columns; start += 256) {
        sc_add_columns(&pass, columns - start < 256 ? columns - start : 256);
        for (unsigned r = 0; r < SC_ROWS; r++) {
            sums[r] += pass.sums[r];
            pass.sums[r] = 0;
        }
    }
}

/* Attention: the vector changes with every few rows, so it is not put in order first. */
static inline void sc_dot_short(const int16_t *x, const int8_t *const w[SC_ROWS], uint32_t columns,
                                int32_t sums[SC_ROWS]) {
    const int8_t *w0 = w[0], *w1 = w[1], *w2 = w[2], *end = w[0] + (columns & ~3u);
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
