/* Arm's CMSDK UART, on the MPS2 and MPS3 boards. */
#include "port.h"

enum { DATA, STATE, CONTROL, DIVIDER = 4 };
static volatile uint32_t *const UART = (volatile uint32_t *)UART_AT;

void port_start(void) {
    UART[DIVIDER] = 217; /* 115,200 baud at 25 MHz */
    UART[CONTROL] = 3;   /* send and receive */
}

uint8_t port_read(void) {
    while (!(UART[STATE] & 2)) {
    }
    return (uint8_t)UART[DATA];
}

void port_write(uint8_t byte) {
    while (UART[STATE] & 1) {
    }
    UART[DATA] = byte;
}
