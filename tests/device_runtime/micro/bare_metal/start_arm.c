/* Start-up code for the Cortex-M boards that QEMU emulates: vectors, RAM, and the floating-point and vector units. */
#include <stdint.h>

#include "semihosting.h"

extern uint32_t data_from[], data_start[], data_end[], bss_start[], bss_end[], stack_top[];
int main(void);

static int call(int operation, const void *argument) {
    register int r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

void semi_print(const char *text) { call(0x04, text); }

void semi_exit(int status) {
    uint32_t arguments[2] = {0x20026, (uint32_t)status};
    call(0x20, arguments);
    for (;;) {
    }
}

static void fault(void) {
    semi_print("fault\n");
    semi_exit(99);
}

void start(void);
void on_tick(void);
void start(void) {
    *(volatile uint32_t *)0xe000ed88 |= 0xfu << 20; /* CPACR: floating point and vectors */
    __asm__ volatile("dsb\n\tisb");
    for (uint32_t *to = data_start, *from = data_from; to < data_end; to++, from++) {
        *to = *from;
    }
    for (uint32_t *to = bss_start; to < bss_end; to++) {
        *to = 0;
    }
    semi_exit(main());
}

__attribute__((weak)) void on_tick(void) { fault(); }

typedef struct {
    uint32_t *stack;
    void (*handlers[15])(void);
} vector_table;

__attribute__((section(".vectors"), used)) static const vector_table vectors = {
    stack_top, {start, fault, fault, fault, fault, fault, 0, 0, 0, 0, fault, fault, 0, fault, on_tick},
};
