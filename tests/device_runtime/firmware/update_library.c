/* Updates over a flash that is memory, whose power goes at any operation; for tests in Python. */
#include <setjmp.h>
#include <string.h>

#include "signature.h"
#include "smp.h"
#include "update.h"

enum { SECTOR = 4096 };

static jmp_buf power_gone;
static uint32_t cut, operations, part_of_256;
static sc_flash flash;
static sc_update_layout layout;
static sc_update update;
static sc_smp smp;
static uint8_t trusted[32];

static uint32_t done_of(uint32_t size) {
    operations++;
    return cut != 0 && operations == cut ? (uint32_t)((uint64_t)size * part_of_256 / 256) : size;
}

static int erase(void *context, uint32_t offset) {
    const uint32_t done = done_of(SECTOR);
    memset((uint8_t *)context + offset, 0xff, done);
    if (cut != 0 && operations == cut) longjmp(power_gone, 1);
    return 0;
}

static int write_bytes(void *context, uint32_t offset, const uint8_t *bytes, uint32_t size) {
    const uint32_t done = done_of(size);
    for (uint32_t i = 0; i < done; i++) ((uint8_t *)context)[offset + i] &= bytes[i];
    if (cut != 0 && operations == cut) longjmp(power_gone, 1);
    return 0;
}

void test_layout(uint8_t *memory, uint32_t firmware_bytes, uint32_t model_bytes, const uint8_t *key) {
    const uint32_t first = 65536;
    flash.context = memory;
    flash.bytes = memory;
    flash.sector_bytes = SECTOR;
    flash.erase = erase;
    flash.write = write_bytes;
    layout.state_at = 0;
    layout.slot_at[0][0] = first;
    layout.slot_at[0][1] = first + firmware_bytes;
    layout.slot_at[1][0] = first + 2 * firmware_bytes;
    layout.slot_at[1][1] = first + 2 * firmware_bytes + model_bytes;
    layout.slot_bytes[0] = firmware_bytes;
    layout.slot_bytes[1] = model_bytes;
    layout.board = "host";
    if (key != NULL) memcpy(trusted, key, 32);
    layout.key = key != NULL ? trusted : NULL;
}

/* The power comes (back): what boot loader and firmware choose. Returns slot of firmware | slot of model << 8, or -1
 * where it went again. */
int32_t test_start(uint32_t cut_at, uint32_t share) {
    cut = cut_at;
    part_of_256 = share;
    operations = 0;
    if (setjmp(power_gone) != 0) return -1;
    sc_update_open(&update, &flash, &layout);
    sc_update_choose(&update, SC_FIRMWARE);
    sc_update_choose(&update, SC_MODEL);
    memset(&smp, 0, sizeof smp);
    smp.update = &update;
    return update.running[0] | update.running[1] << 8;
}

/* Upload, test, restart, confirm. Returns operations of the flash that it took, or -1 where the power went, -2 where the
 * image was refused, or -3 where the board did not start it. */
int32_t test_update(uint32_t kind, const uint8_t *image, uint32_t size, uint32_t chunk, uint32_t cut_at,
                    uint32_t share) {
    uint32_t slot;
    cut = cut_at;
    part_of_256 = share;
    operations = 0;
    if (setjmp(power_gone) != 0) return -1;
    int64_t at = sc_update_begin_upload(&update, kind, size, NULL, 0);
    if (at < 0) return -2;
    slot = update.upload_slot;
    while (update.upload_slot != SC_NO_SLOT) {
        const uint32_t left = size - update.upload_at;
        if (sc_update_upload(&update, image + update.upload_at, left < chunk ? left : chunk) != 0) return -2;
    }
    if (sc_update_test(&update, kind, slot) != SC_IMAGE_GOOD) return -2;
    sc_update_open(&update, &flash, &layout);
    sc_update_choose(&update, SC_FIRMWARE);
    sc_update_choose(&update, SC_MODEL);
    if (update.running[kind] != slot) return -3;
    if (sc_update_confirm(&update, kind) != 0) return -2;
    return (int32_t)operations;
}

/* As far as the restart into the trial. */
int32_t test_trial(uint32_t kind, const uint8_t *image, uint32_t size) {
    cut = 0;
    if (sc_update_begin_upload(&update, kind, size, NULL, 0) < 0) return -1;
    const uint32_t slot = update.upload_slot;
    if (sc_update_upload(&update, image, size) != 0) return -1;
    return (int32_t)sc_update_test(&update, kind, slot) == SC_IMAGE_GOOD ? (int32_t)slot : -2;
}

uint32_t test_reject(uint32_t kind) { return sc_update_reject(&update, kind); }
uint32_t test_confirm(uint32_t kind) { return (uint32_t)sc_update_confirm(&update, kind); }
uint32_t test_verdict(uint32_t kind, uint32_t slot) { return sc_update_slot(&update, kind, slot)->verdict; }

/* The payload of a slot. */
uint32_t test_payload(uint32_t kind, uint32_t slot, uint32_t *at) {
    *at = sc_update_slot(&update, kind, slot)->payload_at;
    return sc_update_slot(&update, kind, slot)->payload_bytes;
}

uint32_t test_answer(const uint8_t *request, uint32_t size, uint8_t *answer) {
    cut = 0;
    return sc_smp_answer(&smp, request, size, answer, SC_SMP_BYTES);
}

int test_signature(const uint8_t *signature, const uint8_t *key, const uint8_t *message, uint32_t bytes) {
    return sc_signature_is_good(signature, key, message, bytes);
}

void test_sha512(const uint8_t *first, uint32_t first_bytes, const uint8_t *second, uint32_t bytes, uint8_t *digest) {
    sc_sha512(first, first_bytes, second, bytes, digest);
}
