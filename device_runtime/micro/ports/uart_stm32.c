/* USART of an STM32F4. Clocks and pins are as after reset: enough for QEMU; a real part needs both set up before. */
#include "port.h"

enum { STATUS, DATA, RATE, CONTROL };
static volatile uint32_t *const UART = (volatile uint32_t *)UART_AT;

void uart_start(void) {
    UART[RATE] = 139;                             /* 115,200 baud at 16 MHz */
    UART[CONTROL] = 1u << 13 | 1u << 5 | 3u << 2; /* on, an interrupt for what has come, send and receive */
}

void uart_interrupt(void) {
    while (UART[STATUS] & 1u << 5) port_received((uint8_t)UART[DATA]);
}

void uart_write(uint8_t byte) {
    while (!(UART[STATUS] & 1u << 7)) {
    }
    UART[DATA] = byte;
}
