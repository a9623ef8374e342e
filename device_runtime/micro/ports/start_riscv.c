/* Start-up of a 32-bit RISC-V core that begins at `_start`, without control registers: they need an extension that old
 * compilers do not know by its name. */
#include "port.h"

extern uint32_t data_from[], data_start[], data_end[], bss_start[], bss_end[];

__asm__(".section .vectors, \"ax\"\n"
        ".globl _start\n"
        "_start:\n"
        "  la sp, stack_top\n"
        "  .option push\n"
        "  .option norelax\n"
        "  la gp, __global_pointer$\n"
        "  .option pop\n"
        "  call start\n"
        "1: j 1b\n");

void start(void);
void start(void) {
    for (uint32_t *to = data_start, *from = data_from; to < data_end; to++, from++) *to = *from;
    for (uint32_t *to = bss_start; to < bss_end; to++) *to = 0;
    main();
}
