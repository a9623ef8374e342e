/* For a machine that has no watchdog, or whose emulation has none. */
#include "port.h"

void watchdog_start(void) {}
void port_feed_watchdog(void) {}
void watchdog_interrupt(void) {}
