/* Cortex-M4, M7, M33 …: two products an instruction (SMLAD). A word of four bytes has eight halves; masked with
 * 0x000f000f, and shifted by 4, 8 and 12 on the way, they are four pairs of halfwords: of bytes i to i + 3 the columns
 * i and i + 2, 16 + i and 18 + i, i + 1 and i + 3, 17 + i and 19 + i. The vector is stored in that order. */
typedef int16_t sc_block_x;

static inline const int16_t *sc_block_ordered_s16(const int16_t *x, int16_t *scratch, uint32_t columns) {
    for (int16_t *to = scratch, *end = scratch + columns; to < end; to += SC_BLOCK, x += SC_BLOCK) {
        int16_t block[SC_BLOCK];
        memcpy(block, x, sizeof block); /* scratch may be x */
        for (unsigned i = 0; i < SC_BLOCK_BYTES; i += 4) {
            const int16_t *low = block + i, *high = low + SC_BLOCK_BYTES;
            int16_t *eight = to + 2 * i;
            eight[0] = low[0], eight[1] = low[2], eight[2] = high[0], eight[3] = high[2];
            eight[4] = low[1], eight[5] = low[3], eight[6] = high[1], eight[7] = high[3];
        }
    }
    return scratch;
}

static inline const sc_block_x *sc_block_ordered_s8(const int8_t *x, int16_t *scratch, uint32_t columns) {
    for (uint32_t c = 0; c < columns; c++) {
        scratch[c] = x[c];
    }
    return sc_block_ordered_s16(scratch, scratch, columns);
}

/* Eight columns of one row: %6 is the word, and then a pair at a time is masked out of it. */
#define SC_BLOCK_ROW(offset, dot)                                                    \
    "ldr %6, [%7, #" offset "]\n\t"                                                  \
    "and %5, %8, %6\n\tsmlad " dot ", %5, r1, " dot "\n\t"                          \
    "and %5, %8, %6, lsr #4\n\tsmlad " dot ", %5, r2, " dot "\n\t"                  \
    "and %5, %8, %6, lsr #8\n\tsmlad " dot ", %5, r3, " dot "\n\t"                  \
    "and %5, %8, %6, lsr #12\n\tsmlad " dot ", %5, r4, " dot "\n\t"
#define SC_BLOCK_EIGHT(first, second, third, fourth)                                 \
    "ldm %4!, {r1, r2, r3, r4}\n\t" SC_BLOCK_ROW(first, "%0") SC_BLOCK_ROW(second, "%1") \
        SC_BLOCK_ROW(third, "%2") SC_BLOCK_ROW(fourth, "%3")

/* Dots of a block with four rows. With 13 registers in use, no compiler keeps it out of memory by itself. */
static inline const int16_t *sc_block_dots(const int16_t *x, const uint8_t *w, int32_t start,
                                           int32_t dots[SC_BLOCK_ROWS]) {
    int32_t d0 = start, d1 = start, d2 = start, d3 = start;
    uint32_t part, word;
    __asm__(SC_BLOCK_EIGHT("0", "16", "32", "48") SC_BLOCK_EIGHT("4", "20", "36", "52")
                SC_BLOCK_EIGHT("8", "24", "40", "56") SC_BLOCK_EIGHT("12", "28", "44", "60")
            : "+&r"(d0), "+&r"(d1), "+&r"(d2), "+&r"(d3), "+&r"(x), "=&r"(part), "=&r"(word)
            : "r"(w), "r"(0x000f000fu)
            : "r1", "r2", "r3", "r4", "memory");
    dots[0] = d0, dots[1] = d1, dots[2] = d2, dots[3] = d3;
    return x;
}

static inline void sc_block_sums_s8(const sc_block_x *x, const int32_t *starts, const uint8_t *w,
                                    const uint8_t *multipliers, uint32_t blocks, int32_t sums[SC_BLOCK_ROWS]) {
    memset(sums, 0, SC_BLOCK_ROWS * sizeof *sums);
    for (; blocks > 0; blocks--, w += SC_GROUP_BYTES, multipliers += SC_BLOCK_ROWS) {
        int32_t dots[SC_BLOCK_ROWS];
        x = sc_block_dots(x, w, *starts++, dots);
        for (unsigned r = 0; r < SC_BLOCK_ROWS; r++) {
            sums[r] += dots[r] * multipliers[r];
        }
    }
}

static inline void sc_block_sums_s16(const int16_t *x, const int32_t *starts, const uint8_t *w,
                                     const uint8_t *multipliers, uint32_t blocks, int64_t sums[SC_BLOCK_ROWS]) {
    memset(sums, 0, SC_BLOCK_ROWS * sizeof *sums);
    for (; blocks > 0; blocks--, w += SC_GROUP_BYTES, multipliers += SC_BLOCK_ROWS) {
        int32_t dots[SC_BLOCK_ROWS];
        x = sc_block_dots(x, w, *starts++, dots);
        for (unsigned r = 0; r < SC_BLOCK_ROWS; r++) {
            sums[r] += (int64_t)dots[r] * multipliers[r];
        }
    }
}
