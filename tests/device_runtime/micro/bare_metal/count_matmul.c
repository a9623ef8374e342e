/* Instructions of one int8 matmul of ROWS by COLUMNS, or with BLOCKS of one whose weights are int4 in blocks, its rows'
 * ends included, in QEMU with -icount shift=0: a nanosecond each, and SysTick counts at CLOCK_HZ. Weights are whatever
 * lies at WEIGHTS_AT. */
#include "graph.h"
#include "measure.h"
#include "semihosting.h"

static uint8_t arena[5 * COLUMNS + ROWS] __attribute__((aligned(16)));

int main(void) {
#ifdef BLOCKS
    enum { TABLES = ROWS * COLUMNS / 2, MULTIPLIERS = TABLES + 12 * ROWS, SCRATCH = (COLUMNS + ROWS + 15) / 16 * 16 };
    const uint32_t call[SC_MATMUL_BLOCKS_WORDS] = {
        SC_CALL_MATMUL_BLOCKS_S8 | SC_MATMUL_BLOCKS_WORDS << 16, 0, 0, ROWS, COLUMNS, COLUMNS, 0,
        TABLES, TABLES + 4 * ROWS, TABLES + 8 * ROWS, SCRATCH, MULTIPLIERS};
#else
    enum { TABLES = ROWS * COLUMNS }; /* behind the weights: multipliers, bias, shifts */
    const uint32_t call[SC_MATMUL_WORDS] = {
        SC_CALL_MATMUL_S8 | SC_MATMUL_WORDS << 16, 0, 0, ROWS, COLUMNS, 3 * COLUMNS, 0,
        TABLES, TABLES + 4 * ROWS, TABLES + 8 * ROWS, COLUMNS};
#endif
    const sc_memory memory = {(const uint8_t *)WEIGHTS_AT, arena, arena, 0, 0};
    uint32_t from;
    start_clock();
    from = now();
#ifdef BLOCKS
    sc_run_matmul_blocks_s8(call, &memory);
#else
    sc_run_matmul_s8(call, &memory);
#endif
    print_number(instructions(from, now()));
    return 0;
}
