/* int8 activations by int8 weights with a scale for each row. Zero points of activations are in the bias. */
#include "dot.h"
#include "graph.h"
#include "numbers.h"

enum { GROUP = 4 * SC_ROWS }; /* rows whose sums are made before they are scaled, all at once */

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
        for (uint32_t done = 0; done < count; done += SC_ROWS) {
            const int8_t *w[SC_ROWS];
            for (uint32_t r = 0; r < SC_ROWS; r++) { /* past the last row, the last one again */
                w[r] = weights + (size_t)(done + r < count ? row + done + r : rows - 1) * columns;
            }
            sc_dot_s8(x, w, columns, sums + done);
        }
        sc_requantize_s8(sums, bias != NULL ? bias + row : NULL, scales + row, shifts + row, zero_point, out + row,
                         count);
    }
}
