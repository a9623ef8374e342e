/* int8 activations by int8 weights with a scale for each row. Zero points of activations are in the bias. */
#include "dot.h"
#include "graph.h"
#include "numbers.h"

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
    for (uint32_t row = 0; row < rows; row += 4) {
        const int8_t *w[4];
        int32_t sums[4];
        for (uint32_t r = 0; r < 4; r++) { /* past the last row, the last one again */
            w[r] = weights + (size_t)(row + r < rows ? row + r : rows - 1) * columns;
        }
        sc_dot4_s8(x, w, columns, sums);
        for (uint32_t r = 0; r < 4 && row + r < rows; r++) {
            uint32_t sum = (uint32_t)sums[r] + (bias != NULL ? (uint32_t)bias[row + r] : 0);
            int32_t y = sc_requantized_s8((int32_t)sum, scales[row + r], shifts[row + r]);
            y = y < -65536 ? -65536 : y > 65536 ? 65536 : y; /* so that the zero point can be added to any number */
            y += zero_point;
            out[row + r] = (int8_t)(y < -128 ? -128 : y > 127 ? 127 : y);
        }
    }
}
