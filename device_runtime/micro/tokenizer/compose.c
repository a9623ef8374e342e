/* Unicode normalization form C (UAX 15): decompose, order the marks, compose. A character waits in `marks`, with the
 * marks after it, until one comes that it cannot be composed with. */
#include "normalize.h"

#include <string.h>

enum { L_BASE = 0x1100, V_BASE = 0x1161, T_BASE = 0x11a7, S_BASE = 0xac00, L_COUNT = 19, V_COUNT = 21, T_COUNT = 28 };
enum { S_COUNT = L_COUNT * V_COUNT * T_COUNT };
enum { DEEPEST = 8 }; /* steps of one decomposition; Unicode has four */

static uint32_t combining_class(const sc_tokenizer *t, uint32_t c) {
    uint32_t low = 0, high = t->combining_count;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2, entry = sc_u32(t->combining + 4 * middle);
        if (entry >> 8 == c) return entry & 255;
        if (entry >> 8 < c) low = middle + 1;
        else high = middle;
    }
    return 0;
}

static const uint8_t *decomposition(const sc_tokenizer *t, uint32_t c) {
    uint32_t low = 0, high = t->decomposition_count;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2, found = sc_u32(t->decompositions + 12 * middle);
        if (found == c) return t->decompositions + 12 * middle;
        if (found < c) low = middle + 1;
        else high = middle;
    }
    return NULL;
}

/* The character that `first` and `second` make together, or 0. */
static uint32_t composition(const sc_tokenizer *t, uint32_t first, uint32_t second) {
    if (first - L_BASE < L_COUNT && second - V_BASE < V_COUNT)
        return S_BASE + ((first - L_BASE) * V_COUNT + (second - V_BASE)) * T_COUNT;
    if (first - S_BASE < S_COUNT && (first - S_BASE) % T_COUNT == 0 && second - T_BASE - 1 < T_COUNT - 1)
        return first + (second - T_BASE);
    uint32_t low = 0, high = t->composition_count;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        const uint8_t *entry = t->decompositions + 12 * sc_u16(t->compositions + 2 * middle);
        const uint32_t a = sc_u32(entry + 4), b = sc_u32(entry + 8);
        if (a == first && b == second) return sc_u32(entry);
        if (a < first || (a == first && b < second)) low = middle + 1;
        else high = middle;
    }
    return 0;
}

/* The character and its marks become as few characters as they can. */
static void compose_held(sc_encoder *e) {
    const sc_tokenizer *t = e->tokenizer;
    if (e->mark_count < 2 || combining_class(t, e->marks[0]) != 0) return;
    uint32_t kept = 1, before = 0;
    for (uint32_t i = 1; i < e->mark_count; i++) {
        const uint32_t class = combining_class(t, e->marks[i]);
        const uint32_t whole = kept == 1 || before < class ? composition(t, e->marks[0], e->marks[i]) : 0;
        if (whole != 0) {
            e->marks[0] = whole;
        } else {
            e->marks[kept++] = e->marks[i];
            before = class;
        }
    }
    e->mark_count = kept;
}

sc_status sc_compose_finish(sc_encoder *e, sc_text_sink next) {
    compose_held(e);
    for (uint32_t i = 0; i < e->mark_count; i++) {
        uint8_t text[4];
        const sc_status status = next(e, text, sc_utf8_write(e->marks[i], text));
        if (status != SC_OK) return status;
    }
    e->mark_count = 0;
    return SC_OK;
}

/* A character that decomposes no further. */
static sc_status take(sc_encoder *e, uint32_t c, sc_text_sink next) {
    const uint32_t class = combining_class(e->tokenizer, c);
    if (class == 0) {
        compose_held(e);
        const uint32_t whole = e->mark_count == 1 ? composition(e->tokenizer, e->marks[0], c) : 0;
        if (whole != 0) {
            e->marks[0] = whole;
            return SC_OK;
        }
        const sc_status status = sc_compose_finish(e, next);
        e->marks[0] = c;
        e->mark_count = 1;
        return status;
    }
    if (e->mark_count == SC_COMPOSED_CHARACTERS) return SC_WORD_TOO_LONG;
    uint32_t at = e->mark_count++;
    for (; at > 0 && combining_class(e->tokenizer, e->marks[at - 1]) > class; at--) e->marks[at] = e->marks[at - 1];
    e->marks[at] = c;
    return SC_OK;
}

static sc_status decompose(sc_encoder *e, uint32_t c, sc_text_sink next, int depth) {
    if (c - S_BASE < S_COUNT) {
        const uint32_t s = c - S_BASE, t = s % T_COUNT;
        sc_status status = take(e, L_BASE + s / (V_COUNT * T_COUNT), next);
        if (status == SC_OK) status = take(e, V_BASE + s / T_COUNT % V_COUNT, next);
        return status == SC_OK && t ? take(e, T_BASE + t, next) : status;
    }
    const uint8_t *parts = depth < DEEPEST ? decomposition(e->tokenizer, c) : NULL;
    if (parts == NULL) return take(e, c, next);
    const sc_status status = decompose(e, sc_u32(parts + 4), next, depth + 1);
    const uint32_t second = sc_u32(parts + 8);
    return status == SC_OK && second ? decompose(e, second, next, depth + 1) : status;
}

sc_status sc_compose(sc_encoder *e, const uint8_t *text, uint32_t size, sc_text_sink next) {
    uint32_t length;
    if (!(e->tokenizer->flags & SC_NFC)) return next(e, text, size);
    return decompose(e, sc_utf8_read(text, size, &length), next, 0);
}
