/* Start-up of a Cortex-M: vectors, memory, the floating-point and vector units, a clock of milliseconds. */
#include "port.h"

extern uint32_t data_from[], data_start[], data_end[], bss_start[], bss_end[], stack_top[];

static volatile uint32_t *const SYSTICK = (volatile uint32_t *)0xe000e010;
static volatile uint32_t *const NVIC_ENABLE = (volatile uint32_t *)0xe000e100;
#define VTOR (*(volatile uint32_t *)0xe000ed08)
#define AIRCR (*(volatile uint32_t *)0xe000ed0c)
#define CPACR (*(volatile uint32_t *)0xe000ed88)

static volatile uint32_t milliseconds;

static void tick(void) { milliseconds++; }

uint32_t port_now_ms(void) { return milliseconds; }

void clock_start(void) {
    milliseconds = 0;
    SYSTICK[1] = CLOCK_HZ / 1000 - 1;
    SYSTICK[2] = 0;
    SYSTICK[0] = 7; /* on, with its interrupt, at the clock of the core */
}

void interrupts_start(void) {
    NVIC_ENABLE[UART_IRQ / 32] = 1u << UART_IRQ % 32;
    __asm__ volatile("cpsie i");
}

void interrupts_off(void) { __asm__ volatile("cpsid i"); }
void interrupts_on(void) { __asm__ volatile("cpsie i"); }
void sleep_until_interrupt(void) { __asm__ volatile("wfi"); }

void port_restart(uint32_t cause) {
    kept.cause = cause;
    __asm__ volatile("dsb");
    AIRCR = 0x05fa0004;
    for (;;) {
    }
}

static void fault(void) { port_restart(PORT_UNKNOWN); }

void start_program(const void *at) {
    const uint32_t *vectors = (const uint32_t *)at;
    __asm__ volatile("cpsid i");
    SYSTICK[0] = 0;
    NVIC_ENABLE[32 + UART_IRQ / 32] = 1u << UART_IRQ % 32; /* the register that disables */
    VTOR = (uint32_t)at;
    __asm__ volatile("dsb\n\tisb\n\tmsr msp, %0\n\tbx %1" : : "r"(vectors[0]), "r"(vectors[1]));
    for (;;) {
    }
}

void start(void);
void start(void) {
    CPACR |= 0xfu << 20;
    __asm__ volatile("dsb\n\tisb");
    for (uint32_t *to = data_start, *from = data_from; to < data_end; to++, from++) *to = *from;
    for (uint32_t *to = bss_start; to < bss_end; to++) *to = 0;
    main();
    fault();
}

#define EIGHT uart_interrupt, uart_interrupt, uart_interrupt, uart_interrupt, uart_interrupt, uart_interrupt, \
    uart_interrupt, uart_interrupt

typedef struct {
    uint32_t *stack;
    void (*handlers[15])(void);
    void (*interrupts[64])(void); /* only the UART's is on */
} vector_table;

__attribute__((section(".vectors"), used, aligned(512))) static const vector_table vectors = {
    stack_top,
    {start, watchdog_interrupt, fault, fault, fault, fault, fault, 0, 0, 0, fault, fault, 0, fault, tick},
    {EIGHT, EIGHT, EIGHT, EIGHT, EIGHT, EIGHT, EIGHT, EIGHT}};
