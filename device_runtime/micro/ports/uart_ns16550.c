/* The 16550 UART of QEMU's `virt` machines, whose baud rate does not matter. */
#include "port.h"

enum { DATA = 0, LINE_STATUS = 5 };
static volatile uint8_t *const UART = (volatile uint8_t *)UART_AT;

void port_start(void) {}

uint8_t port_read(void) {
    while (!(UART[LINE_STATUS] & 1)) {
    }
    return UART[DATA];
}

void port_write(uint8_t byte) {
    while (!(UART[LINE_STATUS] & 1u << 5)) {
    }
    UART[DATA] = byte;
}
