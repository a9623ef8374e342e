#include "normalize.h"

#include <string.h>

static const uint8_t SPACE_MARK[3] = {0xe2, 0x96, 0x81};

static sc_status put_mark(sc_encoder *e, sc_text_sink next) { return next(e, SPACE_MARK, 3); }

/* One character after the map. */
static sc_status put(sc_encoder *e, const uint8_t *text, uint32_t size, sc_text_sink next) {
    const int fewer = (e->tokenizer->flags & SC_FEWER_SPACES) != 0;
    const int space = size == 1 && text[0] == ' ';
    if (space && e->after_space) return SC_OK;
    sc_status status = SC_OK;
    if (!e->begun) {
        e->begun = 1;
        const int own = space || (size == 3 && memcmp(text, SPACE_MARK, 3) == 0);
        if (e->tokenizer->flags & SC_DUMMY_PREFIX && !(own && e->tokenizer->flags & SC_OWN_SPACE))
            status = put_mark(e, next);
    }
    e->after_space = space && fewer;
    /* At the end, marks are left out whether they were spaces or not: SentencePiece cannot tell any more. */
    if (fewer && (space || (size == 3 && memcmp(text, SPACE_MARK, 3) == 0))) {
        e->held_spaces++;
        return status;
    }
    for (; e->held_spaces > 0 && status == SC_OK; e->held_spaces--) status = put_mark(e, next);
    if (status != SC_OK) return status;
    return space ? put_mark(e, next) : next(e, text, size);
}

/* The longest rule of the map that `raw` begins with: its size and what replaces it; 0 if there is none. A unit of the
 * double array: bit 31 set in values; offset in bits 10 to 30 (bit 9: times 256); bit 8: a value hangs below; the
 * label in bits 0 to 7. */
static uint32_t find_rule(const sc_encoder *e, const uint8_t **replacement) {
    const sc_tokenizer *t = e->tokenizer;
    uint32_t found = 0, node = 0;
    uint32_t unit = sc_u32(t->trie);
    node ^= unit >> 10 << ((unit & 1u << 9) >> 6);
    for (uint32_t i = 0; i < e->raw_size; i++) {
        node ^= e->raw[i];
        if (node >= t->trie_count) break;
        unit = sc_u32(t->trie + 4 * node);
        if ((unit & (1u << 31 | 0xffu)) != e->raw[i]) break;
        node ^= unit >> 10 << ((unit & 1u << 9) >> 6);
        if (!(unit >> 8 & 1)) continue;
        if (node >= t->trie_count) break;
        const uint32_t value = sc_u32(t->trie + 4 * node) & 0x7fffffffu;
        if (value >= t->replacement_bytes) break;
        found = i + 1;
        *replacement = t->replacements + value;
    }
    return found;
}

/* The map is data from outside: what it puts in place of a text may be no UTF-8. */
static sc_status put_all(sc_encoder *e, const uint8_t *text, uint32_t bytes, sc_text_sink next) {
    sc_utf8 utf8 = {{0}, 0, 0};
    for (uint32_t i = 0; i < bytes;) {
        uint32_t character;
        uint8_t out[4];
        const int came = sc_utf8_push(&utf8, text[i], &character);
        if (came != 0) {
            const sc_status status = put(e, out, sc_utf8_write(character, out), next);
            if (status != SC_OK) return status;
        }
        if (came >= 0) i++;
    }
    return SC_OK;
}

static sc_status apply_map(sc_encoder *e, int last, sc_text_sink next) {
    while (e->raw_size >= SC_NORMALIZER_BYTES || (last && e->raw_size > 0)) {
        const uint8_t *text = e->raw;
        uint32_t size = find_rule(e, &text);
        uint32_t bytes = size ? (uint32_t)strlen((const char *)text) : 0;
        if (size == 0) size = bytes = sc_utf8_length(e->raw[0]);
        const sc_status status = put_all(e, text, bytes, next);
        if (status != SC_OK) return status;
        if (size > e->raw_size) size = e->raw_size;
        e->raw_size -= size;
        memmove(e->raw, e->raw + size, e->raw_size);
    }
    return SC_OK;
}

sc_status sc_normalize(sc_encoder *e, const uint8_t *text, uint32_t size, sc_text_sink next) {
    if (e->tokenizer->trie == NULL) return put(e, text, size, next);
    memcpy(e->raw + e->raw_size, text, size);
    e->raw_size += size;
    return apply_map(e, 0, next);
}

sc_status sc_normalize_finish(sc_encoder *e, sc_text_sink next) {
    return e->tokenizer->trie == NULL ? SC_OK : apply_map(e, 1, next);
}
