/* The 16550 UART of QEMU's `virt` machines, whose baud rate does not matter. */
#include "port.h"

enum { DATA = 0, INTERRUPTS = 1, FIFO = 2, LINE_STATUS = 5 };
static volatile uint8_t *const UART = (volatile uint8_t *)UART_AT;

void uart_start(void) {
    UART[FIFO] = 1;
    UART[INTERRUPTS] = 1; /* when something has come */
}

void uart_interrupt(void) {
    while (UART[LINE_STATUS] & 1) port_received(UART[DATA]);
}

void uart_write(uint8_t byte) {
    while (!(UART[LINE_STATUS] & 1u << 5)) {
    }
    UART[DATA] = byte;
}
