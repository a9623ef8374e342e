/* Any processor. */
#include "blocks_as_they_are.h"

static inline void sc_block_sums_s8(const sc_block_x *x, const int32_t *starts, const uint8_t *w,
                                    const uint8_t *multipliers, uint32_t blocks, int32_t sums[SC_BLOCK_ROWS]) {
    for (unsigned r = 0; r < SC_BLOCK_ROWS; r++) {
        const uint8_t *bytes = w + r * SC_BLOCK_BYTES;
        int32_t sum = 0;
        for (uint32_t b = 0; b < blocks; b++, bytes += SC_GROUP_BYTES) {
            const sc_block_x *at = x + b * SC_BLOCK;
            int32_t dot = starts[b];
            for (unsigned i = 0; i < SC_BLOCK_BYTES; i++) {
                dot += at[i] * (bytes[i] & 15) + at[SC_BLOCK_BYTES + i] * (bytes[i] >> 4);
            }
            sum += dot * multipliers[b * SC_BLOCK_ROWS + r];
        }
        sums[r] = sum;
    }
}

static inline void sc_block_sums_s16(const int16_t *x, const int32_t *starts, const uint8_t *w,
                                     const uint8_t *multipliers, uint32_t blocks, int64_t sums[SC_BLOCK_ROWS]) {
    for (unsigned r = 0; r < SC_BLOCK_ROWS; r++) {
        const uint8_t *bytes = w + r * SC_BLOCK_BYTES;
        int64_t sum = 0;
        for (uint32_t b = 0; b < blocks; b++, bytes += SC_GROUP_BYTES) {
            const int16_t *at = x + b * SC_BLOCK;
            int32_t dot = starts[b];
            for (unsigned i = 0; i < SC_BLOCK_BYTES; i++) {
                dot += at[i] * (bytes[i] & 15) + at[SC_BLOCK_BYTES + i] * (bytes[i] >> 4);
            }
            sum += (int64_t)dot * multipliers[b * SC_BLOCK_ROWS + r];
        }
        sums[r] = sum;
    }
}
