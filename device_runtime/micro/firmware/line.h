/* One serial line that three parties share: frames of the serial protocol between zeros, packets of the Simple
 * Management Protocol that begin with 06 09 or 04 14 and end with a line's end, and lines of text for the console.
 * docs/reference/serial-protocol.md, section 8. */
#ifndef SC_LINE_H
#define SC_LINE_H

#include <stdint.h>

enum {
    SC_LINE_BODY = 512,                             /* bytes of the largest body of a frame that is taken */
    SC_LINE_BYTES = 1024,                           /* of the longest line of text */
    SC_LINE_FRAME = SC_LINE_BODY + 4 + 3,           /* coded: a CRC, and a byte for each 254 */
    SC_LINE_WINDOW = 2048                           /* of the receive buffer: a frame and 64 more, a power of two */
};

typedef enum { SC_LINE_NOTHING, SC_LINE_FRAME_BODY, SC_LINE_PACKET, SC_LINE_TEXT, SC_LINE_TEXT_TOO_LONG } sc_line_kind;

typedef struct {
    uint8_t bytes[SC_LINE_BYTES + 2];
    uint32_t start, size; /* what was completed lies at bytes + start, and has `size` bytes, until the next push */
    uint32_t have;
    uint8_t no_text, too_long, done;
    uint32_t noise; /* stretches that were nothing */
} sc_line;

/* Take one byte; says what it completed. */
sc_line_kind sc_line_push(sc_line *line, uint8_t byte);

/* A frame with this body, into `to` of SC_LINE_FRAMED(size) bytes; returns its size. */
#define SC_LINE_FRAMED(body) ((body) + 4 + ((body) + 4) / 254 + 1 + 2)
uint32_t sc_line_frame(const uint8_t *body, uint32_t size, uint8_t *to);

/* CRC-32 of zlib and Ethernet; begin with 0. */
uint32_t sc_crc32(uint32_t crc, const uint8_t *bytes, uint32_t size);

#endif
