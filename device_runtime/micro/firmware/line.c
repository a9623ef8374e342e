#include "line.h"

#include <string.h>

uint32_t sc_crc32(uint32_t crc, const uint8_t *bytes, uint32_t size) {
    static const uint32_t TABLE[16] = {
        0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4, 0x4db26158, 0x5005713c,
        0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c, 0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c,
    };
    crc = ~crc;
    for (uint32_t i = 0; i < size; i++) {
        crc = TABLE[(crc ^ bytes[i]) & 15] ^ crc >> 4;
        crc = TABLE[(crc ^ bytes[i] >> 4) & 15] ^ crc >> 4;
    }
    return ~crc;
}

/* Decode in place; returns the size of the body, or 0 where it is none. */
static uint32_t body_of(uint8_t *coded, uint32_t size) {
    uint32_t to = 0, at = 0;
    while (at < size) {
        const uint32_t code = coded[at++];
        if (code == 0 || code - 1 > size - at) return 0;
        for (uint32_t i = 1; i < code; i++) {
            if (coded[at] == 0) return 0;
            coded[to++] = coded[at++];
        }
        if (code < 255 && at < size) coded[to++] = 0;
    }
    if (to <= 4) return 0;
    const uint32_t crc = sc_crc32(0, coded, to - 4);
    for (uint32_t i = 0; i < 4; i++)
        if (coded[to - 4 + i] != (uint8_t)(crc >> (8 * i))) return 0;
    return to - 4;
}

static int is_line_end(uint8_t byte) { return byte == '\r' || byte == '\n'; }

sc_line_kind sc_line_push(sc_line *l, uint8_t byte) {
    if (l->done) {
        l->have = l->start = l->size = 0;
        l->done = l->no_text = l->too_long = 0;
    }
    if (byte == 0) {
        l->done = 1;
        if (l->have == 0) return SC_LINE_NOTHING;
        l->size = l->too_long || l->have > SC_LINE_FRAME ? 0 : body_of(l->bytes, l->have);
        l->start = 0;
        if (l->size > 0) return SC_LINE_FRAME_BODY;
        l->noise++;
        return SC_LINE_NOTHING;
    }
    if (is_line_end(byte)) {
        uint32_t start = 0; /* ends of lines before, which may have been the beginning of a frame */
        while (start < l->have && is_line_end(l->bytes[start])) start++;
        const uint8_t *text = l->bytes + start;
        const uint32_t size = l->have - start;
        const int packet = size >= 2 && ((text[0] == 6 && text[1] == 9) || (text[0] == 4 && text[1] == 20));
        if (size > 0 && (packet || !l->no_text)) {
            l->done = 1;
            l->start = start;
            l->size = size;
            if (packet) return l->too_long ? SC_LINE_NOTHING : SC_LINE_PACKET;
            return l->too_long || size > SC_LINE_BYTES ? SC_LINE_TEXT_TOO_LONG : SC_LINE_TEXT;
        }
    } else if (byte < ' ' && byte != '\t') {
        l->no_text = 1;
    }
    if (l->have == sizeof l->bytes) l->too_long = 1;
    else l->bytes[l->have++] = byte;
    return SC_LINE_NOTHING;
}

uint32_t sc_line_frame(const uint8_t *body, uint32_t size, uint8_t *to) {
    const uint32_t crc = sc_crc32(0, body, size);
    uint32_t out = 2, mark = 1;
    to[0] = 0;
    for (uint32_t i = 0; i < size + 4; i++) {
        const uint8_t byte = i < size ? body[i] : (uint8_t)(crc >> (8 * (i - size)));
        if (byte != 0) to[out++] = byte;
        if (byte == 0 || (out - mark == 255 && i + 1 < size + 4)) {
            to[mark] = (uint8_t)(out - mark);
            mark = out++;
        }
    }
    to[mark] = (uint8_t)(out - mark);
    to[out++] = 0;
    return out;
}
