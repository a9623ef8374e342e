/* Two slots each for firmware and for the model. An update goes into the slot that is not in use; it is started once for
 * a test, and stays when it is confirmed, or else the old one comes back. What is to be started is kept in a record that
 * two sectors hold in turn, so that a cut leaves the old record or the new one.
 *
 * An image is one of MCUboot's: header, payload, tags (docs.mcuboot.com, "Image format"). Its SHA-256 is always checked;
 * where the layout has a key, its Ed25519 signature over that hash and its security counter too. Two tags are stonechat's own, among the protected ones:
 * 0x00a0 says that it is a model (1), without it an image is firmware; 0x00a1 says for which board it is. */
#ifndef SC_UPDATE_H
#define SC_UPDATE_H

#include <stdint.h>

#include "flash.h"

enum { SC_FIRMWARE = 0, SC_MODEL = 1, SC_KINDS = 2 };
enum { SC_NO_SLOT = 0xff };

typedef struct {
    uint32_t state_at;             /* two sectors */
    uint32_t slot_at[SC_KINDS][2]; /* at multiples of a sector */
    uint32_t slot_bytes[SC_KINDS];
    const uint8_t *key;            /* 32 bytes; NULL: images need no signature */
    const char *board;             /* an image that says another board is not taken */
} sc_update_layout;

/* Why an image is not taken. */
typedef enum {
    SC_IMAGE_GOOD,
    SC_IMAGE_NONE,      /* no header of an image */
    SC_IMAGE_DAMAGED,   /* sizes or hash do not fit */
    SC_IMAGE_UNSIGNED,  /* no signature, or not the key's */
    SC_IMAGE_DOWNGRADED /* its security counter is lower than that of an image that was confirmed */
} sc_image_verdict;

typedef struct {
    uint8_t known, verdict;
    uint8_t major, minor;
    uint16_t revision;
    uint32_t build, counter;
    uint32_t payload_at, payload_bytes; /* offsets in flash */
    uint8_t hash[32];
} sc_slot;

typedef struct {
    uint8_t active, trial, tried, reserved; /* slots or SC_NO_SLOT; tried: the trial has been started */
    uint32_t counter;                       /* the highest of confirmed images */
} sc_kind_state;

typedef struct {
    uint32_t magic, sequence;
    sc_kind_state kinds[SC_KINDS];
    uint32_t crc;
} sc_update_state;

typedef struct {
    const sc_flash *flash;
    const sc_update_layout *layout;
    sc_update_state state;
    sc_slot slots[SC_KINDS][2];
    uint8_t running[SC_KINDS]; /* slots, by sc_update_choose; SC_NO_SLOT: none */
    /* the upload that is under way */
    uint8_t upload_kind, upload_slot; /* SC_NO_SLOT: none */
    uint32_t upload_bytes, upload_at, erased_to;
    uint8_t upload_sha[32], tail[4];
    uint8_t upload_sha_bytes;
} sc_update;

/* Read the record; nothing is written. */
void sc_update_open(sc_update *u, const sc_flash *flash, const sc_update_layout *layout);

/* What is in a slot, checked in full at the first call after a change. */
const sc_slot *sc_update_slot(sc_update *u, uint32_t kind, uint32_t slot);

/* Which slot to start: a trial once, then what was confirmed, then whatever is whole. SC_NO_SLOT: none is. At a device's
 * start, and once for each kind. Returns SC_NO_SLOT too where the record could not be written. */
uint32_t sc_update_choose(sc_update *u, uint32_t kind);

/* As sc_update_choose found it, for a program that was started by it; nothing is written. */
uint32_t sc_update_running(sc_update *u, uint32_t kind);

/* The slot that runs does not work: the other one is to run. Returns it, or SC_NO_SLOT. */
uint32_t sc_update_reject(sc_update *u, uint32_t kind);

/* What runs stays. Returns 0 when the record was written, or did not need to be. */
int sc_update_confirm(sc_update *u, uint32_t kind);

/* Start this slot at the next start, for a test. Returns a verdict; SC_IMAGE_NONE where the record cannot be written. */
sc_image_verdict sc_update_test(sc_update *u, uint32_t kind, uint32_t slot);

/* Whether a trial waits for its start, or for its confirmation. */
int sc_update_is_pending(const sc_update *u, uint32_t kind, uint32_t slot);
int sc_update_is_trial(const sc_update *u, uint32_t kind);

/* An upload of so many bytes begins, or goes on where the same one was broken off: the offset is returned, or -1 (no
 * slot is free, or it is too small). */
int64_t sc_update_begin_upload(sc_update *u, uint32_t kind, uint32_t bytes, const uint8_t *sha, uint32_t sha_bytes);

/* The next bytes. Returns 0, or -1 where the flash fails. sc_update.upload_at says how far it is. */
int sc_update_upload(sc_update *u, const uint8_t *bytes, uint32_t size);

#endif
