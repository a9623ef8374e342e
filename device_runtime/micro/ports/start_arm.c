/* Start-up of a Cortex-M: vectors, memory, the floating-point and vector units. */
#include "port.h"

extern uint32_t data_from[], data_start[], data_end[], bss_start[], bss_end[], stack_top[];

static void fault(void) {
    for (;;) {
    }
}

void start(void);
void start(void) {
    *(volatile uint32_t *)0xe000ed88 |= 0xfu << 20; /* CPACR */
    __asm__ volatile("dsb\n\tisb");
    for (uint32_t *to = data_start, *from = data_from; to < data_end; to++, from++) *to = *from;
    for (uint32_t *to = bss_start; to < bss_end; to++) *to = 0;
    main();
    fault();
}

typedef struct {
    uint32_t *stack;
    void (*handlers[15])(void);
} vector_table;

__attribute__((section(".vectors"), used)) static const vector_table vectors = {
    stack_top, {start, fault, fault, fault, fault, fault, 0, 0, 0, 0, fault, fault, 0, fault, fault}};
