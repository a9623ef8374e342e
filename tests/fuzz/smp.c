/* Requests of the Simple Management Protocol, each after a byte pair with its size: whatever they are, the server answers
 * inside of its memory, and what runs stays what it is. */
#include <stdlib.h>
#include <string.h>

#include "smp.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { SECTOR = 4096, SLOT = 4 * SECTOR, FLASH = 2 * SECTOR + 4 * SLOT };

static uint8_t memory[FLASH];

static int erase(void *context, uint32_t offset) {
    (void)context;
    if (offset > FLASH - SECTOR) abort();
    memset(memory + offset, 0xff, SECTOR);
    return 0;
}

static int write_bytes(void *context, uint32_t offset, const uint8_t *bytes, uint32_t size) {
    (void)context;
    if (offset > FLASH || size > FLASH - offset) abort();
    for (uint32_t i = 0; i < size; i++) memory[offset + i] &= bytes[i];
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const uint32_t first = 2 * SECTOR;
    static const sc_flash flash = {NULL, memory, SECTOR, erase, write_bytes};
    static const sc_update_layout layout = {0, {{first, first + SLOT}, {first + 2 * SLOT, first + 3 * SLOT}},
                                            {SLOT, SLOT}, NULL, "host"};
    sc_update update;
    sc_smp smp;
    uint8_t answer[SC_SMP_BYTES];
    memset(memory, 0xff, sizeof memory);
    memset(&smp, 0, sizeof smp);
    sc_update_open(&update, &flash, &layout);
    (void)sc_update_choose(&update, SC_FIRMWARE);
    smp.update = &update;
    while (size >= 2) {
        size_t bytes = data[0] | (size_t)data[1] << 8;
        data += 2;
        size -= 2;
        if (bytes > size) bytes = size;
        uint8_t *request = malloc(bytes ? bytes : 1); /* of its own size, so that a sanitizer sees a read past its end */
        memcpy(request, data, bytes);
        const uint32_t said = sc_smp_answer(&smp, request, (uint32_t)bytes, answer, sizeof answer);
        if (said > sizeof answer) abort();
        free(request);
        data += bytes;
        size -= bytes;
    }
    return 0;
}
