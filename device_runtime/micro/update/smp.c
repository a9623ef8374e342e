#include "smp.h"

#include <string.h>

#include "cbor.h"

enum { HEADER = 8, READ = 0, WRITE = 2, LINE = 124 };
enum { OS = 0, IMAGE = 1, ECHO = 0, RESET = 5, PARAMETERS = 6, STATE = 0, UPLOAD = 1, ERASE = 5 };
/* Errors of the protocol, and of the image group in its second version. */
enum { OK = 0, UNKNOWN = 1, NO_MEMORY = 2, INVALID = 3, NO_ENTRY = 5, BAD_STATE = 6, UNSUPPORTED = 8 };
enum { IMAGE_INVALID_TLV = 5, IMAGE_HASH_NOT_FOUND = 8, IMAGE_NO_SLOT = 9, IMAGE_FLASH_FAILED = 12,
       IMAGE_INVALID_HASH = 24, IMAGE_DOWNGRADED = 27, IMAGE_NOT_CONFIRMED = 32 };

typedef struct {
    sc_cbor_value hash, data, sha, echo;
    uint64_t image, slot, length, offset;
    uint8_t has_offset, has_length, has_slot, confirm;
} fields;

static int is(const sc_cbor_value *name, const char *text) {
    return name->kind == SC_CBOR_TEXT && name->size == strlen(text) && memcmp(name->bytes, text, name->size) == 0;
}

static int read_fields(const uint8_t *bytes, uint32_t size, fields *f) {
    sc_cbor_reader r = {bytes, size, 1};
    memset(f, 0, sizeof *f);
    if (size == 0) return 1;
    const sc_cbor_value map = sc_cbor_next(&r);
    if (!r.good || map.kind != SC_CBOR_MAP) return 0;
    for (uint64_t i = 0; i < map.number; i++) {
        const sc_cbor_value name = sc_cbor_next(&r);
        if (!r.good) return 0;
        if (name.kind == SC_CBOR_SIMPLE && name.number == UINT64_MAX) return map.number == UINT64_MAX;
        const sc_cbor_value value = sc_cbor_next(&r);
        if (!r.good) return 0;
        const int number = value.kind == SC_CBOR_UNSIGNED, bytes_ = value.kind == SC_CBOR_BYTES;
        if (is(&name, "hash") && bytes_) f->hash = value;
        else if (is(&name, "data") && bytes_) f->data = value;
        else if (is(&name, "sha") && bytes_) f->sha = value;
        else if (is(&name, "d") && value.kind == SC_CBOR_TEXT) f->echo = value;
        else if (is(&name, "image") && number) f->image = value.number;
        else if (is(&name, "slot") && number) f->slot = value.number, f->has_slot = 1;
        else if (is(&name, "len") && number) f->length = value.number, f->has_length = 1;
        else if (is(&name, "off") && number) f->offset = value.number, f->has_offset = 1;
        else if (is(&name, "confirm")) f->confirm = value.kind == SC_CBOR_SIMPLE && value.number == 1;
        else sc_cbor_skip(&r, value);
        if (!r.good) return 0;
    }
    return 1;
}

/* -- answers ---------------------------------------------------------------------------------------------- */

typedef struct {
    sc_cbor_writer w;
    uint32_t second, group; /* whether the request is of the protocol's second version, and of which group */
} reply;

static void put_number(sc_cbor_writer *w, const char *name, uint64_t number) {
    sc_cbor_put_text(w, name);
    sc_cbor_put(w, SC_CBOR_UNSIGNED, number);
}

/* `first`: the error in the first version; `second`: in the second, of the request's group. */
static void put_error(reply *r, uint32_t first, uint32_t second) {
    if (r->second && second != 0) {
        sc_cbor_put_text(&r->w, "err");
        sc_cbor_open(&r->w, SC_CBOR_MAP);
        put_number(&r->w, "group", r->group);
        put_number(&r->w, "rc", second);
        sc_cbor_close(&r->w);
    } else {
        put_number(&r->w, "rc", first);
    }
}

static uint32_t digits(char *to, uint32_t number) {
    char reversed[10];
    uint32_t count = 0, at = 0;
    do reversed[count++] = (char)('0' + number % 10);
    while ((number /= 10) > 0);
    while (count > 0) to[at++] = reversed[--count];
    return at;
}

static void put_version(sc_cbor_writer *w, const sc_slot *slot) {
    char text[32];
    uint32_t at = digits(text, slot->major);
    text[at++] = '.';
    at += digits(text + at, slot->minor);
    text[at++] = '.';
    at += digits(text + at, slot->revision);
    if (slot->build != 0) {
        text[at++] = '.';
        at += digits(text + at, slot->build);
    }
    text[at] = 0;
    sc_cbor_put_text(w, text);
}

static void put_images(sc_smp *s, reply *r) {
    sc_update *u = s->update;
    sc_cbor_put_text(&r->w, "images");
    sc_cbor_open(&r->w, 4);
    for (uint32_t kind = 0; kind < SC_KINDS; kind++) {
        for (uint32_t number = 0; number < 2; number++) {
            if (u->upload_slot == number && u->upload_kind == kind) continue; /* half of one is none */
            const sc_slot *slot = sc_update_slot(u, kind, number);
            const int active = u->running[kind] == number, trial = active && sc_update_is_trial(u, kind);
            if (slot->verdict == SC_IMAGE_NONE || slot->verdict == SC_IMAGE_DAMAGED) continue;
            sc_cbor_open(&r->w, SC_CBOR_MAP);
            put_number(&r->w, "image", kind);
            put_number(&r->w, "slot", number);
            sc_cbor_put_text(&r->w, "version");
            put_version(&r->w, slot);
            sc_cbor_put_text(&r->w, "hash");
            sc_cbor_put_bytes(&r->w, slot->hash, 32);
            sc_cbor_put_true(&r->w, "bootable", slot->verdict == SC_IMAGE_GOOD);
            sc_cbor_put_true(&r->w, "pending", sc_update_is_pending(u, kind, number));
            sc_cbor_put_true(&r->w, "confirmed", active && !trial);
            sc_cbor_put_true(&r->w, "active", active);
            sc_cbor_close(&r->w);
        }
    }
    sc_cbor_close(&r->w);
    put_number(&r->w, "splitStatus", 0);
}

static void set_state(sc_smp *s, reply *r, const fields *f) {
    sc_update *u = s->update;
    uint32_t kind = 0, number = 0, found = 0;
    if (f->hash.bytes == NULL) {
        if (!f->confirm) {
            put_error(r, INVALID, IMAGE_INVALID_HASH);
            return;
        }
        if (sc_update_confirm(u, SC_FIRMWARE) != 0 || sc_update_confirm(u, SC_MODEL) != 0)
            put_error(r, UNKNOWN, IMAGE_FLASH_FAILED);
        else put_images(s, r);
        return;
    }
    for (uint32_t i = 0; i < 2 * SC_KINDS && !found; i++) {
        const sc_slot *slot = sc_update_slot(u, i / 2, i % 2);
        if (slot->verdict == SC_IMAGE_NONE || slot->verdict == SC_IMAGE_DAMAGED) continue;
        if (f->hash.size != 32 || memcmp(f->hash.bytes, slot->hash, 32) != 0) continue;
        if (u->upload_slot == i % 2 && u->upload_kind == i / 2) continue;
        kind = i / 2;
        number = i % 2;
        found = 1;
    }
    if (!found) {
        put_error(r, NO_ENTRY, IMAGE_HASH_NOT_FOUND);
        return;
    }
    if (f->confirm && u->running[kind] == number) {
        if (sc_update_confirm(u, kind) != 0) put_error(r, UNKNOWN, IMAGE_FLASH_FAILED);
        else put_images(s, r);
        return;
    }
    if (f->confirm) { /* nothing is kept that has not proven itself */
        put_error(r, BAD_STATE, IMAGE_NOT_CONFIRMED);
        return;
    }
    switch (sc_update_test(u, kind, number)) {
    case SC_IMAGE_GOOD: put_images(s, r); break;
    case SC_IMAGE_DOWNGRADED: put_error(r, BAD_STATE, IMAGE_DOWNGRADED); break;
    case SC_IMAGE_NONE: put_error(r, UNKNOWN, IMAGE_FLASH_FAILED); break;
    default: put_error(r, BAD_STATE, IMAGE_INVALID_TLV); break;
    }
}

static void upload(sc_smp *s, reply *r, const fields *f) {
    sc_update *u = s->update;
    if (!f->has_offset || f->image >= SC_KINDS) {
        put_error(r, INVALID, IMAGE_NO_SLOT);
        return;
    }
    if (f->offset == 0) {
        if (!f->has_length || f->length == 0 || f->length > u->layout->slot_bytes[f->image]) {
            put_error(r, NO_MEMORY, IMAGE_NO_SLOT);
            return;
        }
        const int64_t at =
            sc_update_begin_upload(u, (uint32_t)f->image, (uint32_t)f->length, f->sha.bytes, f->sha.size);
        if (at < 0) {
            put_error(r, NO_MEMORY, IMAGE_NO_SLOT);
            return;
        }
        if (at > 0) { /* it goes on where it was broken off */
            put_number(&r->w, "rc", OK);
            put_number(&r->w, "off", (uint64_t)at);
            return;
        }
    }
    if (u->upload_slot == SC_NO_SLOT) {
        put_error(r, BAD_STATE, 0);
        return;
    }
    if (f->offset == u->upload_at) {
        const uint32_t left = u->upload_bytes - u->upload_at;
        if (f->data.size > left) {
            put_error(r, INVALID, 0);
            return;
        }
        const uint32_t end = u->upload_bytes;
        if (sc_update_upload(u, f->data.bytes, f->data.size) != 0) {
            u->upload_slot = SC_NO_SLOT;
            put_error(r, UNKNOWN, IMAGE_FLASH_FAILED);
            return;
        }
        put_number(&r->w, "rc", OK);
        put_number(&r->w, "off", u->upload_slot == SC_NO_SLOT ? end : u->upload_at);
        return;
    }
    put_number(&r->w, "rc", OK);
    put_number(&r->w, "off", u->upload_at);
}

static void answer_image(sc_smp *s, reply *r, uint32_t command, int write, const fields *f) {
    if (s->update == NULL || command > ERASE || (command != STATE && !write)) put_error(r, UNSUPPORTED, 0);
    else if (command == STATE && !write) put_images(s, r);
    else if (command == STATE) set_state(s, r, f);
    else if (command == UPLOAD) upload(s, r, f);
    else if (command == ERASE) {
        s->update->upload_slot = SC_NO_SLOT; /* a slot is erased as it is written */
        put_number(&r->w, "rc", OK);
    } else put_error(r, UNSUPPORTED, 0);
}

static void answer_system(sc_smp *s, reply *r, uint32_t command, int write, const fields *f) {
    if (command == ECHO && f->echo.bytes != NULL) {
        sc_cbor_put_text(&r->w, "r");
        sc_cbor_put(&r->w, SC_CBOR_TEXT, f->echo.size);
        if (f->echo.size > r->w.left) {
            r->w.good = 0;
            return;
        }
        memcpy(r->w.at, f->echo.bytes, f->echo.size);
        r->w.at += f->echo.size;
        r->w.left -= f->echo.size;
    } else if (command == RESET && write) {
        s->reset_asked = 1;
    } else if (command == PARAMETERS) {
        put_number(&r->w, "buf_size", SC_SMP_BYTES);
        put_number(&r->w, "buf_count", 1);
    } else {
        put_error(r, UNSUPPORTED, 0);
    }
}

uint32_t sc_smp_answer(sc_smp *s, const uint8_t *request, uint32_t size, uint8_t *answer, uint32_t room) {
    fields f;
    if (size < HEADER || room < HEADER + 16) return 0;
    const uint32_t operation = request[0] & 7, group = (uint32_t)request[4] << 8 | request[5];
    const uint32_t length = (uint32_t)request[2] << 8 | request[3];
    if (length != size - HEADER || (operation != READ && operation != WRITE)) return 0;
    reply r = {{answer + HEADER, room - HEADER, 1}, request[0] >> 3 & 3, group};
    sc_cbor_open(&r.w, SC_CBOR_MAP);
    if (!read_fields(request + HEADER, length, &f)) put_error(&r, INVALID, 0);
    else if (group == OS) answer_system(s, &r, request[7], operation == WRITE, &f);
    else if (group == IMAGE) answer_image(s, &r, request[7], operation == WRITE, &f);
    else put_error(&r, UNSUPPORTED, 0);
    sc_cbor_close(&r.w);
    if (!r.w.good) { /* too much for one answer */
        r.w.at = answer + HEADER;
        r.w.left = room - HEADER;
        r.w.good = 1;
        sc_cbor_open(&r.w, SC_CBOR_MAP);
        put_error(&r, NO_MEMORY, 0);
        sc_cbor_close(&r.w);
    }
    const uint32_t body = (uint32_t)(r.w.at - answer) - HEADER;
    memcpy(answer, request, HEADER);
    answer[0] = (uint8_t)(request[0] + 1);
    answer[1] = 0;
    answer[2] = (uint8_t)(body >> 8);
    answer[3] = (uint8_t)body;
    return HEADER + body;
}

/* -- packets on a console --------------------------------------------------------------------------------- */

static uint16_t crc16(const uint8_t *bytes, uint32_t size) {
    uint32_t crc = 0;
    for (uint32_t i = 0; i < size; i++) {
        crc ^= (uint32_t)bytes[i] << 8;
        for (int k = 0; k < 8; k++) crc = crc & 0x8000 ? crc << 1 ^ 0x1021 : crc << 1;
    }
    return (uint16_t)crc;
}

static const char LETTERS[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

static void send_packet(sc_smp *s, uint32_t size) {
    uint8_t line[LINE + 3];
    const uint32_t crc = crc16(s->answer, size), whole = size + 4;
    uint32_t at = 0;
    for (uint32_t i = 0; i < whole; i += 3) {
        uint32_t three = 0;
        for (uint32_t k = 0; k < 3; k++) {
            const uint32_t n = i + k;
            const uint32_t byte = n >= whole ? 0
                                : n < 2 ? (size + 2) >> (8 * (1 - n)) & 255
                                : n < size + 2 ? s->answer[n - 2]
                                : crc >> (8 * (size + 3 - n)) & 255;
            three = three << 8 | byte;
        }
        if (at == 0) {
            line[at++] = i == 0 ? 6 : 4;
            line[at++] = i == 0 ? 9 : 20;
        }
        for (uint32_t k = 0; k < 4; k++)
            line[at++] = i + k > whole ? (uint8_t)'=' : (uint8_t)LETTERS[three >> (18 - 6 * k) & 63];
        if (at + 4 > LINE || i + 3 >= whole) {
            line[at++] = '\n';
            s->send(s->send_context, line, at);
            at = 0;
        }
    }
}

static int value_of(uint8_t letter) {
    if (letter >= 'A' && letter <= 'Z') return letter - 'A';
    if (letter >= 'a' && letter <= 'z') return letter - 'a' + 26;
    if (letter >= '0' && letter <= '9') return letter - '0' + 52;
    return letter == '+' ? 62 : letter == '/' ? 63 : -1;
}

int sc_smp_line(sc_smp *s, const uint8_t *line, uint32_t size) {
    const int first = size >= 2 && line[0] == 6 && line[1] == 9;
    if (first) s->have = s->need = s->quad = s->quad_count = 0;
    else if (s->need == 0 && s->have == 0) return 0; /* the rest of something whose start was lost */
    for (uint32_t i = 2; i < size; i++) {
        const int value = value_of(line[i]);
        if (value < 0 && line[i] != '=') {
            if (line[i] == ' ' || line[i] == '\t') continue;
            s->have = s->need = 0;
            return 0;
        }
        s->quad = s->quad << 6 | (uint32_t)(value < 0 ? 0 : value);
        if (++s->quad_count < 4) continue;
        for (uint32_t k = 0; k < 3; k++) {
            if (s->have < sizeof s->request) s->request[s->have] = (uint8_t)(s->quad >> (16 - 8 * k));
            s->have++;
        }
        s->quad = s->quad_count = 0;
    }
    if (s->have < 3) return 0;
    s->need = 2 + ((uint32_t)s->request[0] << 8 | s->request[1]);
    if (s->need > sizeof s->request || s->need < HEADER + 4) {
        s->have = s->need = 0;
        return 0;
    }
    if (s->have < s->need) return 0;
    const uint32_t bytes = s->need - 4;
    const uint32_t crc = (uint32_t)s->request[s->need - 2] << 8 | s->request[s->need - 1];
    s->have = s->need = 0;
    if (crc16(s->request + 2, bytes) != crc) return 0;
    const uint32_t answer = sc_smp_answer(s, s->request + 2, bytes, s->answer, sizeof s->answer);
    if (answer > 0) send_packet(s, answer);
    return answer > 0;
}
