/* The boot loader of a board whose firmware is copied to where it runs: chooses a slot, checks it, starts it. Where both
 * slots are bad it says so, and takes a new image over the Simple Management Protocol. */
#include <string.h>

#include "flash_port.h"
#include "layout.h"
#include "line.h"
#include "port.h"
#include "smp.h"

static const char TROUBLE[] =
    "stonechat: neither firmware slot has an image that may start; send one with `stonechat flash`\r\n> ";
static sc_update update;
static sc_smp smp;
static sc_line line;

static void send(void *context, const uint8_t *bytes, uint32_t size) {
    (void)context;
    port_write(bytes, size);
    port_feed_watchdog();
}

static void say(const char *text) { send(NULL, (const uint8_t *)text, (uint32_t)strlen(text)); }

static void start_slot(uint32_t number) {
    const sc_slot *slot = sc_update_slot(&update, SC_FIRMWARE, number);
    if (slot->payload_bytes > RUN_BYTES) return;
    memcpy((void *)RUN_AT, port_flash.bytes + slot->payload_at, slot->payload_bytes);
    port_feed_watchdog();
    start_program((const void *)RUN_AT);
}

int main(void) {
    port_start();
    sc_update_open(&update, &port_flash, &layout);
    port_feed_watchdog();
    const uint32_t slot = sc_update_choose(&update, SC_FIRMWARE);
    if (slot != SC_NO_SLOT) start_slot(slot);
    update.running[SC_FIRMWARE] = SC_NO_SLOT;
    smp.update = &update;
    smp.send = send;
    say(TROUBLE);
    for (;;) {
        int byte;
        port_feed_watchdog();
        while ((byte = port_read()) >= 0) {
            const sc_line_kind kind = sc_line_push(&line, (uint8_t)byte);
            if (kind == SC_LINE_PACKET) (void)sc_smp_line(&smp, line.bytes + line.start, line.size);
            if (kind == SC_LINE_TEXT) say(TROUBLE);
        }
        if (smp.reset_asked) port_restart(PORT_COMMAND);
        port_wait();
    }
}
