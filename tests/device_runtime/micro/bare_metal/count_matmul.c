/* Instructions of one int8 matmul of ROWS by COLUMNS, its rows' ends included, in QEMU with -icount shift=0: a
 * nanosecond each, and SysTick counts at CLOCK_HZ. Weights are whatever lies at WEIGHTS_AT. */
#include "graph.h"
#include "semihosting.h"

static uint8_t arena[4 * COLUMNS + ROWS] __attribute__((aligned(16)));
static volatile uint32_t *const SYSTICK = (volatile uint32_t *)0xe000e010; /* control, reload, value */

int main(void) {
    enum { TABLES = ROWS * COLUMNS }; /* behind the weights: multipliers, bias, shifts */
    const uint32_t call[SC_MATMUL_WORDS] = {
        SC_CALL_MATMUL_S8 | SC_MATMUL_WORDS << 16, 0, 0, ROWS, COLUMNS, 3 * COLUMNS, 0,
        TABLES, TABLES + 4 * ROWS, TABLES + 8 * ROWS, COLUMNS};
    const sc_memory memory = {(const uint8_t *)WEIGHTS_AT, arena, arena, 0, 0};
    char text[24];
    int at = sizeof text - 1;
    uint64_t count;
    uint32_t from;
    SYSTICK[1] = 0xffffff;
    SYSTICK[2] = 0;
    SYSTICK[0] = 5;
    from = SYSTICK[2];
    sc_run_matmul_s8(call, &memory);
    count = (uint64_t)((from - SYSTICK[2]) & 0xffffff) * (1000000000u / CLOCK_HZ);
    text[at] = 0;
    do {
        text[--at] = (char)('0' + count % 10);
        count /= 10;
    } while (count > 0);
    semi_print(text + at);
    return 0;
}
