/* int8 or int16 activations by int4 weights in blocks: each block of 32 columns has a multiplier of its own, each row
 * a scale. Beyond the sums it is matmul_s8.c and matmul_s16.c. */
#include "blocks.h"
#include "dot.h"
#include "numbers.h"

enum { GROUP = 16 }; /* rows whose sums are made before they are scaled, all at once */

static const uint8_t *constants_at(const uint32_t *call, const sc_memory *m, unsigned word) {
    return m->constants + call[word];
}

void sc_run_matmul_blocks_s8(const uint32_t *call, const sc_memory *m) {
    const uint8_t *weights = constants_at(call, m, SC_MATMUL_WEIGHTS);
    const uint8_t *multipliers = constants_at(call, m, SC_MATMUL_MULTIPLIERS);
    const int32_t *scales = (const int32_t *)(const void *)constants_at(call, m, SC_MATMUL_SCALES);
    const int8_t *shifts = (const int8_t *)constants_at(call, m, SC_MATMUL_SHIFTS);
    const int32_t *bias = NULL;
    const int8_t *x = (const int8_t *)(m->arena + call[SC_MATMUL_X]);
    int8_t *out = (int8_t *)(m->arena + call[SC_MATMUL_OUT]);
    uint32_t rows = call[SC_MATMUL_ROWS], columns = call[SC_MATMUL_COLUMNS], blocks = columns / SC_BLOCK;
    int16_t *scratch = (int16_t *)(void *)(m->arena + call[SC_MATMUL_SCRATCH]);
    int32_t *starts = (int32_t *)(void *)(scratch + columns);
    const sc_block_x *ordered;
    if (call[SC_MATMUL_BIAS] != SC_NOTHING) {
        bias = (const int32_t *)(const void *)constants_at(call, m, SC_MATMUL_BIAS);
    }
    for (uint32_t b = 0; b < blocks; b++) {
        int32_t sum = 0;
        for (uint32_t i = 0; i < SC_BLOCK; i++) {
            sum += x[b * SC_BLOCK + i];
        }
        starts[b] = -8 * sum;
    }
    ordered = sc_block_ordered_s8(x, scratch, columns);
    for (uint32_t row = 0; row < rows; row += GROUP) {
        int32_t sums[GROUP];
        uint32_t count = rows - row < GROUP ? rows - row : GROUP;
        for (uint32_t r = 0; r < count; r += SC_BLOCK_ROWS) { /* the last four may be partly beyond the rows */
            sc_block_sums_s8(ordered, starts, weights, multipliers, blocks, sums + r);
            weights += (size_t)blocks * SC_GROUP_BYTES;
            multipliers += (size_t)blocks * SC_BLOCK_ROWS;
        }
        sc_requantize_s8(sums, bias != NULL ? bias + row : NULL, scales + row, shifts + row,
                         (int32_t)call[SC_MATMUL_ZERO_POINT], out + row, count);
    }
}

void sc_run_matmul_blocks_s16(const uint32_t *call, const sc_memory *m) {
    const uint8_t *weights = constants_at(call, m, SC_MATMUL_WEIGHTS);
    const uint8_t *multipliers = constants_at(call, m, SC_MATMUL_MULTIPLIERS);
    const uint32_t *scales = (const uint32_t *)(const void *)constants_at(call, m, SC_MATMUL_SCALES);
    const int64_t *bias = NULL;
    const int16_t *x = (const int16_t *)(const void *)(m->arena + call[SC_MATMUL_X]);
    int16_t *out = (int16_t *)(void *)(m->arena + call[SC_MATMUL_OUT]);
    uint32_t rows = call[SC_MATMUL_ROWS], columns = call[SC_MATMUL_COLUMNS], blocks = columns / SC_BLOCK;
    int16_t *scratch = (int16_t *)(void *)(m->arena + call[SC_MATMUL_SCRATCH]);
    int32_t *starts = (int32_t *)(void *)(scratch + columns);
    const int16_t *ordered;
    if (call[SC_MATMUL_BIAS] != SC_NOTHING) {
        bias = (const int64_t *)(const void *)constants_at(call, m, SC_MATMUL_BIAS);
    }
    for (uint32_t b = 0; b < blocks; b++) {
        int32_t sum = 0;
        for (uint32_t i = 0; i < SC_BLOCK; i++) {
            sum += x[b * SC_BLOCK + i];
        }
        starts[b] = -8 * sum;
    }
    ordered = sc_block_ordered_s16(x, scratch, columns);
    for (uint32_t row = 0; row < rows; row += SC_BLOCK_ROWS) {
        int64_t sums[SC_BLOCK_ROWS];
        uint32_t count = rows - row < SC_BLOCK_ROWS ? rows - row : SC_BLOCK_ROWS;
        sc_block_sums_s16(ordered, starts, weights, multipliers, blocks, sums);
        weights += (size_t)blocks * SC_GROUP_BYTES;
        multipliers += (size_t)blocks * SC_BLOCK_ROWS;
        for (uint32_t r = 0; r < count; r++) {
            out[row + r] = sc_requantized_row(sums[r], bias != NULL ? bias[row + r] : 0, scales[row + r]);
        }
    }
}
