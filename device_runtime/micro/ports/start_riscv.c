/* Start-up of a 32-bit RISC-V core that begins at `_start`, with the interrupt controller and the clock that QEMU's
 * `virt` and many chips have (PLIC and CLINT). */
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

/* Old compilers know the instructions of control registers by this only. */
#define CONTROL_REGISTERS ".option push\n\t.option arch, +zicsr, +zifencei\n\t"

static volatile uint32_t *const PLIC = (volatile uint32_t *)0x0c000000;
static volatile uint32_t *const MTIME = (volatile uint32_t *)0x0200bff8; /* 10 MHz */
enum { PLIC_ENABLE = 0x2000 / 4, PLIC_THRESHOLD = 0x200000 / 4, PLIC_CLAIM = 0x200004 / 4 };

static uint64_t started;

static uint64_t now(void) {
    uint32_t high, low;
    do {
        high = MTIME[1];
        low = MTIME[0];
    } while (high != MTIME[1]);
    return (uint64_t)high << 32 | low;
}

uint32_t port_now_ms(void) { return (uint32_t)((now() - started) / 10000); }

void clock_start(void) { started = now(); }

static void __attribute__((interrupt, aligned(4))) trap(void) {
    const uint32_t which = PLIC[PLIC_CLAIM];
    if (which == 0) port_restart(PORT_UNKNOWN); /* no interrupt: a fault of the program */
    uart_interrupt();
    PLIC[PLIC_CLAIM] = which;
}

void interrupts_start(void) {
    PLIC[UART_IRQ] = 1; /* priority */
    PLIC[PLIC_ENABLE] = 1u << UART_IRQ;
    PLIC[PLIC_THRESHOLD] = 0;
    __asm__ volatile(CONTROL_REGISTERS "csrw mtvec, %0\n\tcsrs mie, %1\n\tcsrs mstatus, %2\n\t.option pop"
                     : : "r"(trap), "r"(1u << 11), "r"(1u << 3));
}

void interrupts_off(void) { __asm__ volatile(CONTROL_REGISTERS "csrc mstatus, %0\n\t.option pop" : : "r"(1u << 3)); }
void interrupts_on(void) { __asm__ volatile(CONTROL_REGISTERS "csrs mstatus, %0\n\t.option pop" : : "r"(1u << 3)); }
void sleep_until_interrupt(void) { __asm__ volatile("wfi"); }

void port_restart(uint32_t cause) {
    kept.cause = cause;
    *(volatile uint32_t *)0x100000 = 0x7777; /* QEMU's test device */
    for (;;) {
    }
}

void start_program(const void *at) {
    __asm__ volatile(CONTROL_REGISTERS "csrw mie, zero\n\tfence.i\n\t.option pop\n\tjr %0" : : "r"(at));
    for (;;) {
    }
}

void start(void);
void start(void) {
    for (uint32_t *to = data_start, *from = data_from; to < data_end; to++, from++) *to = *from;
    for (uint32_t *to = bss_start; to < bss_end; to++) *to = 0;
    main();
}
