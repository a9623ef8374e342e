/* RAM in the place of flash, in QEMU: a file of the host keeps it. As in NOR flash, a write can only clear bits. */
#include <string.h>

#include "flash_port.h"

static int erase(void *context, uint32_t offset) {
    (void)context;
    memset((uint8_t *)FLASH_AT + offset, 0xff, FLASH_SECTOR_BYTES);
    return 0;
}

static int write_bytes(void *context, uint32_t offset, const uint8_t *bytes, uint32_t size) {
    uint8_t *to = (uint8_t *)FLASH_AT + offset;
    (void)context;
    for (uint32_t i = 0; i < size; i++) to[i] &= bytes[i];
    return 0;
}

const sc_flash port_flash = {0, (const uint8_t *)FLASH_AT, FLASH_SECTOR_BYTES, erase, write_bytes};
