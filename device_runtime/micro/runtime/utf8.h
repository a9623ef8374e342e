/* UTF-8, one character at a time. */
#ifndef SC_UTF8_H
#define SC_UTF8_H

#include <stdint.h>

#define SC_REPLACEMENT 0xfffdu

/* Bytes that come one by one, until they make a character. */
typedef struct {
    uint8_t bytes[4];
    uint32_t have, need; /* need: bytes of the character that is being read; 0 between characters */
} sc_utf8;

/* Take one byte. Returns 1 with *character when it completes one; 0 when more bytes are needed; -1 when what came so
 * far can never become a character: *character is U+FFFD, and the byte has to be given again. */
int sc_utf8_push(sc_utf8 *state, uint8_t byte, uint32_t *character);

/* The character at `text` of `size` valid bytes, size > 0, and its length. */
uint32_t sc_utf8_read(const uint8_t *text, uint32_t size, uint32_t *length);

/* Write a character; returns its length, at most 4. */
uint32_t sc_utf8_write(uint32_t character, uint8_t *out);

/* Bytes of the character that begins with `first`. */
uint32_t sc_utf8_length(uint8_t first);

#endif
