/* Start-up code for QEMU's 32-bit RISC-V machine `virt`: prints on its UART, and ends through its test device. */
#include <stdint.h>

#include "semihosting.h"

extern uint32_t bss_start[], bss_end[]; /* the program is loaded into RAM, data and all */
int main(void);

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

void semi_print(const char *text) {
    for (; *text != 0; text++) {
        *(volatile uint8_t *)0x10000000 = (uint8_t)*text;
    }
}

void semi_exit(int status) {
    *(volatile uint32_t *)0x100000 = status == 0 ? 0x5555 : (uint32_t)status << 16 | 0x3333;
    for (;;) {
    }
}

void start(void);
void start(void) {
    for (uint32_t *to = bss_start; to < bss_end; to++) {
        *to = 0;
    }
    semi_exit(main());
}
