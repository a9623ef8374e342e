#include "utf8.h"

/* The second byte of a character is bounded more closely than the others: no overlong forms, no surrogates, nothing
 * above U+10FFFF (Unicode, table 3-7). */
static int may_follow(const sc_utf8 *state, uint8_t byte) {
    if (state->have > 1) return byte >= 0x80 && byte <= 0xbf;
    const uint8_t first = state->bytes[0];
    const uint8_t least = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
    const uint8_t most = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
    return byte >= least && byte <= most;
}

int sc_utf8_push(sc_utf8 *state, uint8_t byte, uint32_t *character) {
    if (state->need == 0) {
        if (byte < 0x80) {
            *character = byte;
            return 1;
        }
        state->need = byte >= 0xc2 && byte <= 0xdf ? 2 : (byte & 0xf0) == 0xe0 ? 3 : byte >= 0xf0 && byte <= 0xf4 ? 4 : 0;
        if (state->need == 0) {
            *character = SC_REPLACEMENT;
            return 1;
        }
        state->bytes[0] = byte;
        state->have = 1;
        return 0;
    }
    if (!may_follow(state, byte)) {
        state->need = state->have = 0;
        *character = SC_REPLACEMENT;
        return -1;
    }
    state->bytes[state->have++] = byte;
    if (state->have < state->need) return 0;
    uint32_t length;
    *character = sc_utf8_read(state->bytes, state->have, &length);
    state->need = state->have = 0;
    return 1;
}

uint32_t sc_utf8_length(uint8_t first) { return first < 0xc0 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4; }

uint32_t sc_utf8_read(const uint8_t *text, uint32_t size, uint32_t *length) {
    static const uint8_t masks[5] = {0, 0x7f, 0x1f, 0x0f, 0x07};
    uint32_t bytes = sc_utf8_length(text[0]);
    if (bytes > size) bytes = size;
    uint32_t character = text[0] & masks[bytes];
    for (uint32_t i = 1; i < bytes; i++) character = character << 6 | (text[i] & 0x3fu);
    *length = bytes;
    return character;
}

uint32_t sc_utf8_write(uint32_t c, uint8_t *out) {
    if (c < 0x80) {
        out[0] = (uint8_t)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (uint8_t)(0xc0 | c >> 6);
        out[1] = (uint8_t)(0x80 | (c & 0x3f));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (uint8_t)(0xe0 | c >> 12);
        out[1] = (uint8_t)(0x80 | (c >> 6 & 0x3f));
        out[2] = (uint8_t)(0x80 | (c & 0x3f));
        return 3;
    }
    out[0] = (uint8_t)(0xf0 | c >> 18);
    out[1] = (uint8_t)(0x80 | (c >> 12 & 0x3f));
    out[2] = (uint8_t)(0x80 | (c >> 6 & 0x3f));
    out[3] = (uint8_t)(0x80 | (c & 0x3f));
    return 4;
}
