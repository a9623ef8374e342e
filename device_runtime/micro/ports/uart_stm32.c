/* USART of an STM32F4. Clocks and pins are as after reset: enough for QEMU; a real part needs both set up before. */
#include "port.h"

enum { STATUS, DATA, RATE, CONTROL };
static volatile uint32_t *const UART = (volatile uint32_t *)UART_AT;

void port_start(void) {
    UART[RATE] = 139;          /* 115,200 baud at 16 MHz */
    UART[CONTROL] = 1u << 13 | 3u << 2; /* on, send and receive */
}

uint8_t port_read(void) {
    while (!(UART[STATUS] & 1u << 5)) {
    }
    return (uint8_t)UART[DATA];
}

void port_write(uint8_t byte) {
    while (!(UART[STATUS] & 1u << 7)) {
    }
    UART[DATA] = byte;
}
