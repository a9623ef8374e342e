/* Arm's CMSDK watchdog: an interrupt when it has not been fed for WATCHDOG_MS, and a reset as long after that. */
#include "port.h"

enum { LOAD, VALUE, CONTROL, CLEAR, LOCK = 0xc00 / 4 };
static volatile uint32_t *const WATCHDOG = (volatile uint32_t *)WATCHDOG_AT;

void watchdog_start(void) {
    WATCHDOG[LOCK] = 0x1acce551;
    WATCHDOG[LOAD] = WATCHDOG_HZ / 1000 * WATCHDOG_MS;
    WATCHDOG[CONTROL] = 3; /* an interrupt, then a reset */
    WATCHDOG[LOCK] = 0;
}

void port_feed_watchdog(void) {
    WATCHDOG[LOCK] = 0x1acce551;
    WATCHDOG[CLEAR] = 1; /* loads it again */
    WATCHDOG[LOCK] = 0;
}

void watchdog_interrupt(void) { kept.cause = PORT_WATCHDOG; }
