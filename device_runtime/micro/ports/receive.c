/* The receive buffer: filled by the interrupt of the UART, whatever the model is computing; and what survives a restart. */
#include "line.h"
#include "port.h"

enum { MAGIC = 0x53434b50 };

static uint8_t ring[SC_LINE_WINDOW];
static volatile uint32_t head, tail, overruns;
port_kept kept __attribute__((section(".kept")));

void port_received(uint8_t byte) {
    if (head - tail == SC_LINE_WINDOW) {
        overruns++;
        return;
    }
    ring[head % SC_LINE_WINDOW] = byte;
    head++;
}

int port_read(void) {
    if (head == tail) return -1;
    const uint8_t byte = ring[tail % SC_LINE_WINDOW];
    tail++;
    return byte;
}

void port_wait(void) {
    interrupts_off(); /* a byte that comes after the look must not be slept over */
    if (head == tail) sleep_until_interrupt();
    interrupts_on();
}

uint32_t port_overruns(void) { return overruns; }

void port_write(const uint8_t *bytes, uint32_t size) {
    for (uint32_t i = 0; i < size; i++) uart_write(bytes[i]);
}

void port_start(void) {
    if (kept.magic != MAGIC || kept.boots_inverted != ~kept.boots || kept.cause > PORT_WATCHDOG) {
        kept.magic = MAGIC;
        kept.boots = 0;
        kept.cause = PORT_UNKNOWN;
    }
    kept.boots_inverted = ~kept.boots;
    clock_start();
    uart_start();
    interrupts_start();
    watchdog_start();
}
