/* int8 activations by int8 weights with a scale for each row. Zero points of activations are in the bias. */
#include "dot.h"
#include "graph.h"
#include "numbers.h"

enum { GROUP = 8 * SC_ROWS }; /* rows whose sums are made before they are scaled, all at once */

/* As SC_PASSES, with as little as can be done between two passes. */
static inline void sum_rows(const sc_wide *x, const int8_t *w, uint32_t columns, uint32_t rows, int32_t sums[GROUP]) {
    const int8_t *const rest = w + (size_t)(rows < SC_ROWS ? 0 : rows - SC_ROWS) * columns;
    int32_t *const end = sums + rows;
    for (; end - sums >= SC_ROWS; sums += SC_ROWS, w += (size_t)SC_ROWS * columns) {
        sc_dot_s8(x, w, columns, columns, sums);
    }
    if (sums < end && rows >= SC_ROWS) {
        sc_dot_s8(x, rest, columns, columns, end - SC_ROWS);
    } else {
        for (; sums < end; sums++, w += columns) { /* fewer rows than a pass has */
            sc_dot_s8(x, w, 0, columns, sums);
        }
    }
}

void sc_run_matmul_s8(const uint32_t *call, const sc_memory *m) {
    const uint8_t *constants = m->constants;
    const int8_t *weights = (const int8_t *)(constants + call[SC_MATMUL_WEIGHTS]);
    const int32_t *scales = (const int32_t *)(const void *)(constants + call[SC_MATMUL_SCALES]);
    const int8_t *shifts = (const int8_t *)(constants + call[SC_MATMUL_SHIFTS]);
    const int32_t *bias = NULL;
    int8_t *out = (int8_t *)(m->arena + call[SC_MATMUL_OUT]);
    uint32_t rows = call[SC_MATMUL_ROWS], columns = call[SC_MATMUL_COLUMNS];
    int32_t zero_point = (int32_t)call[SC_MATMUL_ZERO_POINT];
    const sc_wide *x = sc_widened((const int8_t *)(m->arena + call[SC_MATMUL_X]),
                                  (int16_t *)(void *)(m->arena + call[SC_MATMUL_SCRATCH]), columns);
    if (call[SC_MATMUL_BIAS] != SC_NOTHING) {
        bias = (const int32_t *)(const void *)(constants + call[SC_MATMUL_BIAS]);
    }
    for (uint32_t row = 0; row < rows; row += GROUP) {
        int32_t sums[GROUP];
        uint32_t count = rows - row < GROUP ? rows - row : GROUP;
        if (count < SC_ROWS && rows >= SC_ROWS) { /* too few for a pass: some of those before them again */
            count = SC_ROWS;
            row = rows - count;
        }
        sum_rows(x, weights + (size_t)row * columns, columns, count, sums);
        sc_requantize_s8(sums, bias != NULL ? bias + row : NULL, scales + row, shifts + row, zero_point, out + row,
                         count);
    }
}
