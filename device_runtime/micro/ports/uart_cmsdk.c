/* Arm's CMSDK UART, on the MPS2 and MPS3 boards. */
#include "port.h"

enum { DATA, STATE, CONTROL, INTERRUPTS, DIVIDER };
static volatile uint32_t *const UART = (volatile uint32_t *)UART_AT;

void uart_start(void) {
    UART[DIVIDER] = CLOCK_HZ / 115200;
    UART[CONTROL] = 1u | 2u | 8u; /* send, receive, and an interrupt for what has come */
}

void uart_interrupt(void) {
    UART[INTERRUPTS] = 2;
    while (UART[STATE] & 2) port_received((uint8_t)UART[DATA]);
}

void uart_write(uint8_t byte) {
    while (UART[STATE] & 1) {
    }
    UART[DATA] = byte;
}
