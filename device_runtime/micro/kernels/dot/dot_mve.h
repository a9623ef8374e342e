/* Cortex-M55, M85: Helium. Six rows a pass, 64 columns a round: 384 products of int8 in 53 instructions. */
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
    const int8_t *w;
    uint32_t stride;
    uint32_t rounds, more; /* of the longer and the shorter body */
    int32_t *sums;
} sc_pass;

#define SC_ROW(pointer, sum) "vldrb.8 q1, [" pointer "], #16\n\tvmladava.s8 " sum ", q0, q1\n\t"

/* 16 columns of six rows. */
#define SC_S8                                                                                                  \
    "vldrb.8 q0, [r12], #16\n\t" SC_ROW("r1", "r0") SC_ROW("r3", "r2") SC_ROW("r5", "r4") SC_ROW("r7", "r6")   \
        SC_ROW("r9", "r8") SC_ROW("r11", "r10")

/* Eight weights are widened as they are loaded, which needs a row's pointer in r0 to r7. */
#define SC_WIDE_ROW(pointer, sum)                                                              \
    "vldrb.s16 q2, [" pointer "], #8\n\tvmladava.s16 " sum ", q0, q2\n\t"                      \
    "vldrb.s16 q3, [" pointer "], #8\n\tvmladava.s16 " sum ", q1, q3\n\t"
#define SC_S16                                                                                 \
    "vldrh.16 q0, [r11], #16\n\tvldrh.16 q1, [r11], #16\n\t" SC_WIDE_ROW("r1", "r0")           \
        SC_WIDE_ROW("r3", "r2") SC_WIDE_ROW("r4", "r8") SC_WIDE_ROW("r5", "r10")               \
        SC_WIDE_ROW("r6", "r12") SC_WIDE_ROW("r7", "lr")

/* The instruction adds into even registers only: sums there, rows in the odd ones, the vector in r12. */
#define SC_PASS_S8(body, rest)                                                                                 \
    register sc_pass *p __asm__("r0") = pass;                                                                  \
    __asm__ volatile(                                                                                          \
        "push {r0}\n\t"                                                                                        \
        "ldr r12, [r0]\n\t"                                                                                    \
        "ldrd r1, r2, [r0, #4]\n\t"                                                                            \
        "ldr lr, [r0, #12]\n\t"                                                                                \
        "add r3, r1, r2\n\t"                                                                                   \
        "add r5, r3, r2\n\t"                                                                                   \
        "add r7, r5, r2\n\t"                                                                                   \
        "add r9, r7, r2\n\t"                                                                                   \
        "add r11, r9, r2\n\t"                                                                                  \
        "movs r0, #0\n\t"                                                                                      \
        "movs r2, #0\n\t"                                                                                      \
        "movs r4, #0\n\t"                                                                                      \
        "movs r6, #0\n\t"                                                                                      \
        "mov r8, r0\n\t"                                                                                       \
        "mov r10, r0\n\t"                                                                                      \
        "wls lr, lr, 2f\n\t"                                                                                   \
        "1:\n\t" body                                                                                          \
        "le lr, 1b\n\t"                                                                                        \
        "2:\n\t"                                                                                               \
        "ldr lr, [sp]\n\t"                                                                                     \
        "ldr lr, [lr, #16]\n\t"                                                                                \
        "wls lr, lr, 4f\n\t"                                                                                   \
        "3:\n\t" rest                                                                                          \
        "le lr, 3b\n\t"                                                                                        \
        "4:\n\t"                                                                                               \
        "pop {lr}\n\t"                                                                                         \
        "ldr lr, [lr, #20]\n\t"                                                                                \
        "strd r0, r2, [lr]\n\t"                                                                                \
        "strd r4, r6, [lr, #8]\n\t"                                                                            \
        "strd r8, r10, [lr, #16]\n\t"                                                                          \
        : "+r"(p)                                                                                              \
        :                                                                                                      \
        : "r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "lr", "q0", "q1", "q2", "q3", "cc", \
          "memory")

/* With all low registers taken, the sixth sum is lr, and r9 counts. */
#define SC_PASS_S16(body, rest)                                                                                \
    register sc_pass *p __asm__("r0") = pass;                                                                  \
    __asm__ volatile(                                                                                          \
        "push {r0}\n\t"                                                                                        \
        "ldm r0, {r11, r12}\n\t"                                                                               \
        "ldrd r2, r9, [r0, #8]\n\t"                                                                            \
        "mov r1, r12\n\t"                                                                                      \
        "add r3, r1, r2\n\t"                                                                                   \
        "add r4, r3, r2\n\t"                                                                                   \
        "add r5, r4, r2\n\t"                                                                                   \
        "add r6, r5, r2\n\t"                                                                                   \
        "add r7, r6, r2\n\t"                                                                                   \
        "movs r0, #0\n\t"                                                                                      \
        "movs r2, #0\n\t"                                                                                      \
        "mov r8, r0\n\t"                                                                                       \
        "mov r10, r0\n\t"                                                                                      \
        "mov r12, r0\n\t"                                                                                      \
        "mov lr, r0\n\t"                                                                                       \
        "cmp r9, #0\n\t"                                                                                       \
        "beq 2f\n\t"                                                                                           \
        "1:\n\t" body                                                                                          \
        "subs r9, #1\n\t"                                                                                      \
        "bne 1b\n\t"                                                                                           \
        "2:\n\t"                                                                                               \
        "ldr r9, [sp]\n\t"                                                                                     \
        "ldr r9, [r9, #16]\n\t"                                                                                \
        "cmp r9, #0\n\t"                                                                                       \
        "beq 4f\n\t"                                                                                           \
        "3:\n\t" rest                                                                                          \
        "subs r9, #1\n\t"                                                                                      \
        "bne 3b\n\t"                                                                                           \
        "4:\n\t"                                                                                               \
        "pop {r9}\n\t"                                                                                         \
        "ldr r9, [r9, #20]\n\t"                                                                                \
        "strd r0, r2, [r9]\n\t"                                                                                \
        "strd r8, r10, [r9, #8]\n\t"                                                                           \
        "strd r12, lr, [r9, #16]\n\t"                                                                          \
        : "+r"(p)                                                                                              \
        :                                                                                                      \
        : "r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "lr", "q0", "q1", "q2", "q3", "cc", \
          "memory")

/* Rounds of 64 columns and then of 16. */
void sc_pass_s8(sc_pass *pass);
void sc_pass_s16(sc_pass *pass);

#ifdef SC_DOT_BODIES
void sc_pass_s8(sc_pass *pass) { SC_PASS_S8(SC_S8 SC_S8 SC_S8 SC_S8, SC_S8); }
void sc_pass_s16(sc_pass *pass) { SC_PASS_S16(SC_S16 SC_S16 SC_S16 SC_S16, SC_S16); }
#endif

static inline void sc_dot_s8(const sc_wide *x, const int8_t *w, size_t stride, uint32_t columns,
                             int32_t sums[SC_ROWS]) {
    sc_pass pass = {x, w, stride, columns / 64, columns % 64 / 16, sums};
    sc_pass_s8(&pass);
}

static inline void sc_dot_short(const int16_t *x, const int8_t *w, size_t stride, uint32_t columns,
                                int32_t sums[SC_ROWS]) {
    uint32_t even = columns & ~15u;
    sc_pass pass = {x, w, stride, even / 64, even % 64 / 16, sums};
    sc_pass_s16(&pass);
    for (uint32_t c = even; c < columns; c += 8) {
        mve_pred16_t rest = vctp16q(columns - c);
        int16x8_t v = vldrhq_z_s16(x + c, rest);
        for (unsigned r = 0; r < SC_ROWS; r++) {
            sums[r] = vmladavaq_s16(sums[r], v, vldrbq_z_s16(w + r * stride + c, rest));
        }
    }
}

#define sc_dot_narrow sc_dot_short
#define SC_HAS_SCALE_MANY
/* sc_scaled of each sum */
static inline void sc_scale_many(const int32_t *sums, uint32_t count, const sc_scale *scale, int16_t *out) {
    const int32x4_t multiplier = vdupq_n_s32(scale->high_multiplier), least = vdupq_n_s32(-32768), most = vdupq_n_s32(32767);
    for (; count >= 4 && scale->high_multiplier != 0; count -= 4, sums += 4, out += 4) {
        int32x4_t y = vrshlq_n_s32(vmulhq_s32(vldrwq_s32(sums), multiplier), -(int32_t)scale->high_shift);
        vstrhq_s32(out, vminq_s32(vmaxq_s32(y, least), most));
    }
    for (; count > 0; count--) {
        *out++ = (int16_t)sc_scaled(*sums++, scale);
    }
}

#define SC_HAS_SCALE_EACH
/* sc_scaled_once of each sum */
static inline void sc_scale_each(const int32_t *sums, uint32_t count, const uint32_t *scales, int16_t *out) {
    const int32x4_t least = vdupq_n_s32(-32768), most = vdupq_n_s32(32767);
    for (uint32_t i = 0; i < count; i += 4) {
        mve_pred16_t rest = vctp32q(count - i);
        uint32x4_t packed = vldrwq_z_u32(scales + i, rest), shift = vshrq_n_u32(packed, 16);
        int32x4_t multiplier = vreinterpretq_s32_u32(vshlq_n_u32(packed, 16));
        int32x4_t y = vmulhq_s32(vldrwq_z_s32(sums + i, rest), multiplier);
        mve_pred16_t rare = vcmpltq_m_n_s32(multiplier, 0, rest) | vcmphiq_m_n_u32(vsubq_n_u32(shift, 17), 29, rest);
        if (rare) {
            for (uint32_t k = i; k < count && k < i + 4; k++) {
                out[k] = (int16_t)sc_scaled_once(sums[k], scales[k]);
            }
            continue;
        }
        y = vrshlq_s32(y, vreinterpretq_s32_u32(vsubq_u32(vdupq_n_u32(16), shift)));
        vstrhq_p_s32(out + i, vminq_s32(vmaxq_s32(y, least), most), rest);
    }
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
