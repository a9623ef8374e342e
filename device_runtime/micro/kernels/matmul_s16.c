/* int16 activations by int8 weights with a scale for each row, no zero points. */
#include "dot.h"
#include "graph.h"
#include "numbers.h"

void sc_run_matmul_s16(const uint32_t *call, const sc_memory *m) {
    const uint8_t *constants = m->constants;
    const int8_t *weights = (const int8_t *)(constants + call[SC_MATMUL_WEIGHTS]);
    const uint32_t *scales = (const uint32_t *)(const void *)(constants + call[SC_MATMUL_SCALES]);
    const int64_t *bias = NULL;
    int16_t *out = (int16_t *)(void *)(m->arena + call[SC_MATMUL_OUT]);
    uint32_t rows = call[SC_MATMUL_ROWS], columns = call[SC_MATMUL_COLUMNS];
    const int16_t *x = sc_ordered((const int16_t *)(const void *)(m->arena + call[SC_MATMUL_X]),
                                  (int16_t *)(void *)(m->arena + call[SC_MATMUL_SCRATCH]), columns);
    if (call[SC_MATMUL_BIAS] != SC_NOTHING) {
        bias = (const int64_t *)(const void *)(constants + call[SC_MATMUL_BIAS]);
    }
    if (columns <= SC_NARROW && bias == NULL) {
        SC_GROUPS(rows) {
            int32_t sums[SC_GROUP];
            sc_sums_narrow(x, weights + (size_t)first * columns, columns, columns, group_rows, sums);
            sc_scale_each(sums, group_rows, scales + first, out + first);
        }
        return;
    }
    SC_PASSES(rows, columns) {
        int64_t sums[SC_ROWS];
        sc_dot_ordered(x, weights + (size_t)first * columns, pitch, columns, sums);
        for (uint32_t r = 0; r < pass_rows; r++) {
            out[first + r] = sc_requantized_row(sums[r], bias != NULL ? bias[first + r] : 0, scales[first + r]);
        }
    }
}
