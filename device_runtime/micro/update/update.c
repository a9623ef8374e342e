#include "update.h"

#include <string.h>

#include "sha256.h"
#include "signature.h"

#define IMAGE_MAGIC 0x96f3b83du
enum { HEADER_BYTES = 32, MAGIC = 0x50554353, TAGS = 0x6907, PROTECTED_TAGS = 0x6908 };
enum { SIGNATURES = 8 };
enum { TAG_SHA256 = 0x10, TAG_ED25519 = 0x24, TAG_COUNTER = 0x50, TAG_KIND = 0xa0, TAG_BOARD = 0xa1 };

static uint32_t u16(const uint8_t *p) { return (uint32_t)p[0] | (uint32_t)p[1] << 8; }
static uint32_t u32(const uint8_t *p) { return u16(p) | u16(p + 2) << 16; }

/* -- the record ------------------------------------------------------------------------------------------- */

static uint32_t check_of(const sc_update_state *state) {
    uint32_t sum = 2166136261u; /* FNV-1a: what it guards against is a cut, whose rest is FF */
    const uint8_t *bytes = (const uint8_t *)state;
    for (uint32_t i = 0; i < sizeof *state - 4; i++) sum = (sum ^ bytes[i]) * 16777619u;
    return sum;
}

static int is_slot(uint8_t slot) { return slot < 2 || slot == SC_NO_SLOT; }

static int read_state(const sc_update *u, uint32_t copy, sc_update_state *state) {
    memcpy(state, u->flash->bytes + u->layout->state_at + copy * u->flash->sector_bytes, sizeof *state);
    if (state->magic != MAGIC || state->crc != check_of(state)) return 0;
    for (uint32_t kind = 0; kind < SC_KINDS; kind++)
        if (!is_slot(state->kinds[kind].active) || !is_slot(state->kinds[kind].trial)) return 0;
    return 1;
}

/* The record goes to the sector that does not have the newest one. */
static int write_state(sc_update *u) {
    sc_update_state found;
    const uint32_t other = read_state(u, 0, &found) && found.sequence == u->state.sequence ? 1 : 0;
    const uint32_t at = u->layout->state_at + other * u->flash->sector_bytes;
    u->state.magic = MAGIC;
    u->state.sequence++;
    u->state.crc = check_of(&u->state);
    if (u->flash->erase(u->flash->context, at) != 0) return -1;
    return u->flash->write(u->flash->context, at, (const uint8_t *)&u->state, sizeof u->state);
}

void sc_update_open(sc_update *u, const sc_flash *flash, const sc_update_layout *layout) {
    sc_update_state copies[2];
    memset(u, 0, sizeof *u);
    u->flash = flash;
    u->layout = layout;
    u->upload_slot = SC_NO_SLOT;
    const int first = read_state(u, 0, &copies[0]), second = read_state(u, 1, &copies[1]);
    const int newer = (int32_t)(copies[1].sequence - copies[0].sequence) > 0;
    if (first || second) {
        u->state = copies[second && (!first || newer)];
    } else {
        for (uint32_t kind = 0; kind < SC_KINDS; kind++)
            u->state.kinds[kind].active = u->state.kinds[kind].trial = SC_NO_SLOT;
    }
    for (uint32_t kind = 0; kind < SC_KINDS; kind++) u->running[kind] = SC_NO_SLOT;
}

/* -- images ----------------------------------------------------------------------------------------------- */

typedef struct {
    uint32_t at, end; /* offsets in flash */
} tags;

/* The next tag and its value; 0 where there is none. */
static uint32_t next_tag(const uint8_t *flash, tags *t, const uint8_t **value, uint32_t *size) {
    if (t->end - t->at < 4) return 0;
    const uint32_t tag = u16(flash + t->at);
    *size = u16(flash + t->at + 2);
    if (*size > t->end - t->at - 4) return 0;
    *value = flash + t->at + 4;
    t->at += 4 + *size;
    return tag;
}

static sc_image_verdict check_slot(const sc_update *u, uint32_t kind, uint32_t number, sc_slot *slot) {
    const uint8_t *flash = u->flash->bytes, *value, *hash = NULL;
    const uint32_t at = u->layout->slot_at[kind][number], room = u->layout->slot_bytes[kind];
    const uint8_t *header = flash + at;
    const char *board = u->layout->board;
    uint32_t size, tag, says_kind = SC_FIRMWARE;
    sc_sha256 sum;
    if (u32(header) != IMAGE_MAGIC) return SC_IMAGE_NONE;
    const uint32_t header_bytes = u16(header + 8), guarded = u16(header + 10), payload = u32(header + 12);
    if (header_bytes < HEADER_BYTES || header_bytes % 16 != 0 || header_bytes > room ||
        payload > room - header_bytes || guarded > room - header_bytes - payload)
        return SC_IMAGE_DAMAGED;
    const uint32_t hashed = header_bytes + payload + guarded;
    if (room - hashed < 4 || u16(flash + at + hashed) != TAGS) return SC_IMAGE_DAMAGED;
    const uint32_t tag_bytes = u16(flash + at + hashed + 2);
    if (tag_bytes < 4 || tag_bytes > room - hashed) return SC_IMAGE_DAMAGED;
    slot->payload_at = at + header_bytes;
    slot->payload_bytes = payload;
    slot->major = header[20];
    slot->minor = header[21];
    slot->revision = (uint16_t)u16(header + 22);
    slot->build = u32(header + 24);
    slot->counter = 0;
    if (guarded >= 4 && u16(flash + at + hashed - guarded) == PROTECTED_TAGS) {
        tags t = {at + hashed - guarded + 4, at + hashed};
        while ((tag = next_tag(flash, &t, &value, &size)) != 0)
        {
            if (tag == TAG_COUNTER && size == 4) slot->counter = u32(value);
            if (tag == TAG_KIND && size == 1) says_kind = value[0];
            if (tag == TAG_BOARD && (size != strlen(board) || memcmp(value, board, size) != 0)) return SC_IMAGE_DAMAGED;
        }
    } else if (guarded != 0) {
        return SC_IMAGE_DAMAGED;
    }
    if (says_kind != kind) return SC_IMAGE_DAMAGED;
    const tags all = {at + hashed + 4, at + hashed + tag_bytes};
    tags t = all;
    while ((tag = next_tag(flash, &t, &value, &size)) != 0)
        if (tag == TAG_SHA256 && size == 32) hash = value;
    sc_sha256_start(&sum);
    sc_sha256_add(&sum, header, hashed);
    sc_sha256_finish(&sum, slot->hash);
    if (hash == NULL || memcmp(hash, slot->hash, 32) != 0) return SC_IMAGE_DAMAGED;
    if (u->layout->key == NULL) return SC_IMAGE_GOOD;
    t = all; /* several may have signed: one of them is enough, and at most so many are looked at */
    for (uint32_t looked = 0; looked < SIGNATURES && (tag = next_tag(flash, &t, &value, &size)) != 0;) {
        if (tag != TAG_ED25519 || size != 64) continue;
        if (sc_signature_is_good(value, u->layout->key, slot->hash, 32)) return SC_IMAGE_GOOD;
        looked++;
    }
    return SC_IMAGE_UNSIGNED;
}

const sc_slot *sc_update_slot(sc_update *u, uint32_t kind, uint32_t number) {
    sc_slot *slot = &u->slots[kind][number];
    if (!slot->known) {
        memset(slot, 0, sizeof *slot);
        slot->verdict = (uint8_t)check_slot(u, kind, number, slot);
        slot->known = 1;
    }
    if (slot->verdict == SC_IMAGE_GOOD || slot->verdict == SC_IMAGE_DOWNGRADED)
        slot->verdict = slot->counter < u->state.kinds[kind].counter ? SC_IMAGE_DOWNGRADED : SC_IMAGE_GOOD;
    return slot;
}

static int is_good(sc_update *u, uint32_t kind, uint32_t number) {
    return number < 2 && sc_update_slot(u, kind, number)->verdict == SC_IMAGE_GOOD;
}

/* -- what runs -------------------------------------------------------------------------------------------- */

static uint32_t fallback(sc_update *u, uint32_t kind, uint32_t but) {
    const uint32_t active = u->state.kinds[kind].active;
    if (active != but && is_good(u, kind, active)) return active;
    for (uint32_t slot = 0; slot < 2; slot++)
        if (slot != but && is_good(u, kind, slot)) return slot;
    return SC_NO_SLOT;
}

uint32_t sc_update_choose(sc_update *u, uint32_t kind) {
    sc_kind_state *s = &u->state.kinds[kind];
    uint32_t chosen = SC_NO_SLOT;
    if (s->trial != SC_NO_SLOT) {
        if (!s->tried && is_good(u, kind, s->trial)) {
            s->tried = 1;
            chosen = s->trial;
        } else {
            const uint32_t refused = s->trial;
            s->trial = SC_NO_SLOT;
            s->tried = 0;
            chosen = fallback(u, kind, refused);
        }
        if (write_state(u) != 0) chosen = fallback(u, kind, SC_NO_SLOT);
    } else {
        chosen = fallback(u, kind, SC_NO_SLOT);
    }
    u->running[kind] = (uint8_t)chosen;
    return chosen;
}

uint32_t sc_update_running(sc_update *u, uint32_t kind) {
    const sc_kind_state *s = &u->state.kinds[kind];
    const uint32_t slot = s->trial != SC_NO_SLOT && s->tried ? s->trial : fallback(u, kind, SC_NO_SLOT);
    u->running[kind] = (uint8_t)slot;
    return slot;
}

uint32_t sc_update_reject(sc_update *u, uint32_t kind) {
    sc_kind_state *s = &u->state.kinds[kind];
    const uint32_t refused = u->running[kind];
    uint32_t chosen = SC_NO_SLOT;
    if (s->trial != SC_NO_SLOT && s->trial == refused) {
        s->trial = SC_NO_SLOT;
        s->tried = 0;
        (void)write_state(u); /* if it fails, the next start tries again, and rejects again */
    }
    if (refused != SC_NO_SLOT) chosen = fallback(u, kind, refused);
    u->running[kind] = (uint8_t)chosen;
    return chosen;
}

int sc_update_confirm(sc_update *u, uint32_t kind) {
    sc_kind_state *s = &u->state.kinds[kind];
    const uint32_t runs = u->running[kind];
    if (runs == SC_NO_SLOT) return 0;
    const uint32_t counter = sc_update_slot(u, kind, runs)->counter;
    if (s->active == runs && s->trial == SC_NO_SLOT && counter <= s->counter) return 0;
    if (s->trial == runs || s->trial == SC_NO_SLOT) {
        s->active = (uint8_t)runs;
        s->trial = SC_NO_SLOT;
        s->tried = 0;
        if (counter > s->counter) s->counter = counter;
        return write_state(u);
    }
    return 0; /* another one waits for its test */
}

sc_image_verdict sc_update_test(sc_update *u, uint32_t kind, uint32_t slot) {
    sc_kind_state *s = &u->state.kinds[kind];
    const sc_image_verdict verdict = (sc_image_verdict)sc_update_slot(u, kind, slot)->verdict;
    if (verdict != SC_IMAGE_GOOD) return verdict;
    if (u->running[kind] == slot && s->trial == SC_NO_SLOT) return SC_IMAGE_GOOD; /* it runs already */
    if (s->active == SC_NO_SLOT && u->running[kind] != SC_NO_SLOT) s->active = u->running[kind];
    s->trial = (uint8_t)slot;
    s->tried = 0;
    return write_state(u) == 0 ? SC_IMAGE_GOOD : SC_IMAGE_NONE;
}

int sc_update_is_pending(const sc_update *u, uint32_t kind, uint32_t slot) {
    return u->state.kinds[kind].trial == slot && !u->state.kinds[kind].tried;
}

int sc_update_is_trial(const sc_update *u, uint32_t kind) {
    return u->state.kinds[kind].trial != SC_NO_SLOT && u->state.kinds[kind].tried;
}

/* -- uploads ---------------------------------------------------------------------------------------------- */

static uint32_t free_slot(sc_update *u, uint32_t kind) {
    const sc_kind_state *s = &u->state.kinds[kind];
    for (uint32_t slot = 0; slot < 2; slot++) {
        const int kept = slot == s->active && is_good(u, kind, slot);
        if (slot != u->running[kind] && slot != s->trial && !kept && u->layout->slot_at[kind][slot] != UINT32_MAX)
            return slot;
    }
    return SC_NO_SLOT;
}

int64_t sc_update_begin_upload(sc_update *u, uint32_t kind, uint32_t bytes, const uint8_t *sha, uint32_t sha_bytes) {
    const uint32_t kept = sha_bytes <= 32 ? sha_bytes : 0;
    if (u->upload_slot != SC_NO_SLOT && u->upload_kind == kind && u->upload_bytes == bytes && kept > 0 &&
        u->upload_sha_bytes == kept && memcmp(u->upload_sha, sha, kept) == 0)
        return u->upload_at;
    sc_kind_state *s = &u->state.kinds[kind];
    if (bytes == 0 || bytes > u->layout->slot_bytes[kind]) return -1;
    if (s->trial != SC_NO_SLOT && !s->tried) { /* a test that was ordered and has not begun is called off */
        s->trial = SC_NO_SLOT;
        if (write_state(u) != 0) return -1;
    }
    if (s->active == SC_NO_SLOT && u->running[kind] != SC_NO_SLOT) { /* never to be doubted which one is the old one */
        s->active = u->running[kind];
        if (write_state(u) != 0) return -1;
    }
    const uint32_t slot = free_slot(u, kind);
    if (slot == SC_NO_SLOT) return -1;
    u->upload_kind = (uint8_t)kind;
    u->upload_slot = (uint8_t)slot;
    u->upload_bytes = bytes;
    u->upload_at = 0;
    u->erased_to = 0;
    u->upload_sha_bytes = (uint8_t)kept;
    if (kept > 0) memcpy(u->upload_sha, sha, kept);
    u->slots[kind][slot].known = 0;
    return 0;
}

static int write_at(sc_update *u, uint32_t at, const uint8_t *bytes, uint32_t size) {
    const uint32_t slot_at = u->layout->slot_at[u->upload_kind][u->upload_slot];
    while (u->erased_to < at + size) {
        if (u->flash->erase(u->flash->context, slot_at + u->erased_to) != 0) return -1;
        u->erased_to += u->flash->sector_bytes;
    }
    return u->flash->write(u->flash->context, slot_at + at, bytes, size);
}

int sc_update_upload(sc_update *u, const uint8_t *bytes, uint32_t size) {
    if (u->upload_slot == SC_NO_SLOT || size > u->upload_bytes - u->upload_at) return -1;
    for (uint32_t done = 0; done < size;) { /* words of 4 bytes: the tail of one waits for its rest */
        const uint32_t have = u->upload_at % 4, left = size - done;
        uint32_t taken;
        if (have == 0 && left >= 4) {
            taken = left / 4 * 4;
            if (write_at(u, u->upload_at, bytes + done, taken) != 0) return -1;
        } else {
            taken = 4 - have < left ? 4 - have : left;
            memcpy(u->tail + have, bytes + done, taken);
            const int last = u->upload_at + taken == u->upload_bytes;
            if (have + taken == 4 || last) {
                memset(u->tail + have + taken, 0xff, 4 - have - taken);
                if (write_at(u, u->upload_at - have, u->tail, 4) != 0) return -1;
            }
        }
        u->upload_at += taken;
        done += taken;
    }
    if (u->upload_at == u->upload_bytes) {
        u->slots[u->upload_kind][u->upload_slot].known = 0;
        u->upload_slot = SC_NO_SLOT;
    }
    return 0;
}
