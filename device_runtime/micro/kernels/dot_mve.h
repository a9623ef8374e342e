/* Cortex-M55, M85: Helium. Six rows a pass, 32 columns a round: 192 products of int8 in 27 instructions. */
#include <arm_mve.h>
#include <string.h>

enum { SC_ROWS = 6 };
typedef int8_t sc_wide;

static inline const sc_wide *sc_widened(const int8_t *x, int16_t *scratch, uint32_t columns) {
    (void)scratch, (void)columns;
    return x;
}

static inline const int16_t *sc_ordered(const int16_t *x, int16_t *scratch, uint32_t columns) {
    (void)scratch, (void)columns;
    return x;
}

/* What a pass works on. */
typedef struct {
    const void *x;
    const int8_t *w[SC_ROWS];
    uint32_t rounds;
    int32_t sums[SC_ROWS];
} sc_pass;

#define SC_ROW(pointer, sum) "vldrb.8 q1, [" pointer "], #16\n\tvmladava.s8 " sum ", q0, q1\n\t"

/* 16 columns of six rows. */
#define SC_S8                                                                                                  \
    "vldrb.8 q0, [r12], #16\n\t" SC_ROW("r1", "r0") SC_ROW("r3", "r2") SC_ROW("r5", "r4") SC_ROW("r7", "r6")   \
        SC_ROW("r9", "r8") SC_ROW("r11", "r10")

/* The instruction adds into even registers only: sums there, rows in the odd ones. */
#define SC_PASS(body)                                                                                          \
    register sc_pass *p __asm__("r0") = pass;                                                                  \
    __asm__ volatile(                                                                                          \
        "push {r0}\n\t"                                                                                        \
        "ldr r12, [r0]\n\t"                                                                                    \
        "ldr r1, [r0, #4]\n\t"                                                                                 \
        "ldr r3, [r0, #8]\n\t"                                                                                 \
        "ldr r5, [r0, #12]\n\t"                                                                                \
        "ldr r7, [r0, #16]\n\t"                                                                                \
        "ldr r9, [r0, #20]\n\t"                                                                                \
        "ldr r11, [r0, #24]\n\t"                                                                               \
        "ldr lr, [r0, #28]\n\t"                                                                                \
        "ldrd r2, r4, [r0, #36]\n\t"                                                                           \
        "ldrd r6, r8, [r0, #44]\n\t"                                                                           \
        "ldr r10, [r0, #52]\n\t"                                                                               \
        "ldr r0, [r0, #32]\n\t"                                                                                \
        "dls lr, lr\n\t"                                                                                       \
        "1:\n\t" body                                                                                          \
        "le lr, 1b\n\t"                                                                                        \
        "mov lr, r12\n\t"                                                                                      \
        "pop {r12}\n\t"                                                                                        \
        "str lr, [r12]\n\t"                                                                                    \
        "str r1, [r12, #4]\n\t"                                                                                \
        "str r3, [r12, #8]\n\t"                                                                                \
        "str r5, [r12, #12]\n\t"                                                                               \
        "str r7, [r12, #16]\n\t"                                                                               \
        "str r9, [r12, #20]\n\t"                                                                               \
        "str r11, [r12, #24]\n\t"                                                                              \
        "strd r0, r2, [r12, #32]\n\t"                                                                          \
        "strd r4, r6, [r12, #40]\n\t"                                                                          \
        "strd r8, r10, [r12, #48]\n\t"                                                                         \
        : "+r"(p)                                                                                              \
        :                                                                                                      \
        : "r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "lr", "q0", "q1", "q2", "q3", "cc", \
          "memory")

/* The vector is loaded as its even and its odd elements, which is how VMOVL widens 16 weights. */
#define SC_WIDE_ROW(pointer, sum)                                                                              \
    "vldrb.8 q2, [" pointer "], #16\n\tvmovlb.s8 q3, q2\n\tvmladava.s16 " sum ", q0, q3\n\t"                   \
    "vmovlt.s8 q3, q2\n\tvmladava.s16 " sum ", q1, q3\n\t"
#define SC_S16                                                                                                 \
    "vld20.16 {q0, q1}, [r12]\n\tvld21.16 {q0, q1}, [r12]!\n\t" SC_WIDE_ROW("r1", "r0") SC_WIDE_ROW("r3", "r2") \
        SC_WIDE_ROW("r5", "r4") SC_WIDE_ROW("r7", "r6") SC_WIDE_ROW("r9", "r8") SC_WIDE_ROW("r11", "r10")

__attribute__((noinline)) static void sc_s8_rounds_of_32(sc_pass *pass) { SC_PASS(SC_S8 SC_S8); }
__attribute__((noinline)) static void sc_s8_rounds_of_16(sc_pass *pass) { SC_PASS(SC_S8); }
__attribute__((noinline)) static void sc_s16_rounds_of_16(sc_pass *pass) { SC_PASS(SC_S16); }

static inline void sc_start(sc_pass *pass, const void *x, const int8_t *const w[SC_ROWS]) {
    pass->x = x;
    memcpy(pass->w, w, sizeof pass->w);
    memset(pass->sums, 0, sizeof pass->sums);
}

static inline void sc_dot_s8(const sc_wide *x, const int8_t *const w[SC_ROWS], uint32_t columns,
                             int32_t sums[SC_ROWS]) {
    sc_pass pass;
    sc_start(&pass, x, w);
    pass.rounds = columns / 32;
    if (pass.rounds > 0) {
        sc_s8_rounds_of_32(&pass);
    }
    if (columns % 32 != 0) {
        pass.rounds = 1;
        sc_s8_rounds_of_16(&pass);
    }
    memcpy(sums, pass.sums, sizeof pass.sums);
}

static inline void sc_dot_ordered(const int16_t *x, const int8_t *const w[SC_ROWS], uint32_t columns,
                                  int64_t sums[SC_ROWS]) {
    sc_pass pass;
    sc_start(&pass, x, w);
    for (unsigned r = 0; r < SC_ROWS; r++) {
        sums[r] = 0;
    }
    for (uint32_t start = 0; start < columns; start += 256) {
        pass.rounds = (columns - start < 256 ? columns - start : 256) / 16;
        sc_s16_rounds_of_16(&pass);
        for (unsigned r = 0; r < SC_ROWS; r++) {
            sums[r] += pass.sums[r];
            pass.sums[r] = 0;
        }
    }
}

static inline void sc_dot_short(const int16_t *x, const int8_t *const w[SC_ROWS], uint32_t columns,
                                int32_t sums[SC_ROWS]) {
    uint32_t even = columns & ~15u;
    sc_pass pass;
    sc_start(&pass, x, w);
    if (even > 0) {
        pass.rounds = even / 16;
        sc_s16_rounds_of_16(&pass);
    }
    for (uint32_t c = even; c < columns; c += 8) {
        mve_pred16_t rest = vctp16q(columns - c);
        int16x8_t v = vldrhq_z_s16(x + c, rest);
        for (unsigned r = 0; r < SC_ROWS; r++) {
            pass.sums[r] = vmladavaq_s16(pass.sums[r], v, vldrbq_z_s16(w[r] + c, rest));
        }
    }
    memcpy(sums, pass.sums, sizeof pass.sums);
}

#define SC_HAS_REQUANTIZE
static inline void sc_requantize_s8(const int32_t *sums, const int32_t *bias, const int32_t *multipliers,
                                    const int8_t *shifts, int32_t zero_point, int8_t *out, uint32_t rows) {
    for (uint32_t r = 0; r < rows; r += 4) {
        mve_pred16_t rest = vctp32q(rows - r);
        int32x4_t y = vldrwq_z_s32(sums + r, rest), shift = vldrbq_z_s32(shifts + r, rest), right;
        if (bias != NULL) {
            y = vaddq_s32(y, vldrwq_z_s32(bias + r, rest));
        }
        y = vshlq_s32(y, vmaxq_s32(shift, vdupq_n_s32(0)));
        y = vqrdmulhq_s32(y, vldrwq_z_s32(multipliers + r, rest));
        right = vminq_s32(shift, vdupq_n_s32(0));
        /* VRSHL rounds halves up; the reference rounds them away from zero: take 1 from what is below it */
        y = vqaddq_s32(y, vshrq_n_s32(vandq_s32(y, right), 31));
        y = vqaddq_s32(vrshlq_s32(y, right), vdupq_n_s32(zero_point));
        y = vminq_s32(vmaxq_s32(y, vdupq_n_s32(-128)), vdupq_n_s32(127));
        vstrbq_p_s32(out + r, y, rest);
    }
}
