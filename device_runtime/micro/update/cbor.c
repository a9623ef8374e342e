#include "cbor.h"

#include <string.h>

static uint32_t take(sc_cbor_reader *r) {
    if (r->left == 0) {
        r->good = 0;
        return 0;
    }
    r->left--;
    return *r->at++;
}

sc_cbor_value sc_cbor_next(sc_cbor_reader *r) {
    sc_cbor_value v = {SC_CBOR_OTHER, 0, NULL, 0};
    const uint32_t head = take(r), kind = head >> 5, rest = head & 31;
    if (!r->good) return v;
    v.kind = (uint8_t)kind;
    v.number = rest;
    if (rest >= 24 && rest < 28) {
        v.number = 0;
        for (uint32_t i = 0; i < 1u << (rest - 24); i++) v.number = v.number << 8 | take(r);
    } else if (rest == 31) {
        v.number = UINT64_MAX; /* without a length, or a break */
    } else if (rest >= 28) {
        r->good = 0;
    }
    if (kind == SC_CBOR_BYTES || kind == SC_CBOR_TEXT) {
        if (v.number > r->left) {
            r->good = 0;
            return v;
        }
        v.bytes = r->at;
        v.size = (uint32_t)v.number;
        r->at += v.size;
        r->left -= v.size;
    } else if (kind == SC_CBOR_SIMPLE && rest < 24) {
        v.number = rest == 21;
    }
    return v;
}

void sc_cbor_skip(sc_cbor_reader *r, sc_cbor_value head) {
    uint64_t open[8]; /* items left at each level; UINT64_MAX: until a break */
    uint32_t depth = 0;
    for (;;) {
        const uint64_t items = head.kind == 4 ? head.number
                             : head.kind == 5 ? (head.number == UINT64_MAX ? head.number : head.number * 2)
                             : head.kind == 6 ? 1 : 0;
        if (items > 0) {
            if (depth == 8 || (items != UINT64_MAX && items > r->left)) {
                r->good = 0;
                return;
            }
            open[depth++] = items;
        }
        if (depth == 0) return;
        head = sc_cbor_next(r);
        if (!r->good) return;
        if (head.kind == SC_CBOR_SIMPLE && head.number == UINT64_MAX) { /* a break ends the innermost level */
            if (open[--depth] != UINT64_MAX) r->good = 0;
            head.kind = SC_CBOR_UNSIGNED;
        } else if (open[depth - 1] != UINT64_MAX) {
            open[depth - 1]--;
        }
        while (depth > 0 && open[depth - 1] == 0 && head.kind != 4 && head.kind != 5 && head.kind != 6) depth--;
        if (depth == 0 && head.kind != 4 && head.kind != 5 && head.kind != 6) return;
    }
}

static void put_byte(sc_cbor_writer *w, uint8_t byte) {
    if (w->left == 0) {
        w->good = 0;
        return;
    }
    *w->at++ = byte;
    w->left--;
}

void sc_cbor_put(sc_cbor_writer *w, uint8_t kind, uint64_t number) {
    const uint32_t bytes = number < 24 ? 0 : number < 256 ? 1 : number < 65536 ? 2 : number <= UINT32_MAX ? 4 : 8;
    const uint32_t rest = bytes == 0 ? (uint32_t)number : bytes == 1 ? 24 : bytes == 2 ? 25 : bytes == 4 ? 26 : 27;
    put_byte(w, (uint8_t)(kind << 5 | rest));
    for (uint32_t i = bytes; i > 0; i--) put_byte(w, (uint8_t)(number >> (8 * (i - 1))));
}

static void put_string(sc_cbor_writer *w, uint8_t kind, const uint8_t *bytes, uint32_t size) {
    sc_cbor_put(w, kind, size);
    for (uint32_t i = 0; i < size; i++) put_byte(w, bytes[i]);
}

void sc_cbor_put_bytes(sc_cbor_writer *w, const uint8_t *bytes, uint32_t size) {
    put_string(w, SC_CBOR_BYTES, bytes, size);
}

void sc_cbor_put_text(sc_cbor_writer *w, const char *text) {
    put_string(w, SC_CBOR_TEXT, (const uint8_t *)text, (uint32_t)strlen(text));
}

void sc_cbor_put_true(sc_cbor_writer *w, const char *name, int value) {
    if (!value) return;
    sc_cbor_put_text(w, name);
    put_byte(w, 0xf5);
}

void sc_cbor_open(sc_cbor_writer *w, uint8_t kind) { put_byte(w, (uint8_t)(kind << 5 | 31)); }
void sc_cbor_close(sc_cbor_writer *w) { put_byte(w, 0xff); }
