/* As much of CBOR (RFC 8949) as the Simple Management Protocol needs: maps with names, whole numbers, texts, byte
 * strings, truth values; anything else is passed over. Nothing is copied and nothing is recursive. */
#ifndef SC_CBOR_H
#define SC_CBOR_H

#include <stdint.h>

typedef struct {
    const uint8_t *at;
    uint32_t left;
    int good;
} sc_cbor_reader;

enum { SC_CBOR_UNSIGNED = 0, SC_CBOR_BYTES = 2, SC_CBOR_TEXT = 3, SC_CBOR_MAP = 5, SC_CBOR_SIMPLE = 7, SC_CBOR_OTHER };

typedef struct {
    uint8_t kind;
    uint64_t number;      /* of an unsigned; 1 for true; entries of a map, UINT64_MAX where a break ends it */
    const uint8_t *bytes; /* of a text or byte string */
    uint32_t size;
} sc_cbor_value;

/* The head of the next item; strings are read whole. reader->good becomes 0 where there is none. */
sc_cbor_value sc_cbor_next(sc_cbor_reader *reader);

/* Pass over the whole value whose head was just read. */
void sc_cbor_skip(sc_cbor_reader *reader, sc_cbor_value head);

typedef struct {
    uint8_t *at;
    uint32_t left;
    int good; /* 0 once there was no room */
} sc_cbor_writer;

void sc_cbor_put(sc_cbor_writer *writer, uint8_t kind, uint64_t number); /* a head */
void sc_cbor_put_bytes(sc_cbor_writer *writer, const uint8_t *bytes, uint32_t size);
void sc_cbor_put_text(sc_cbor_writer *writer, const char *text);
void sc_cbor_put_true(sc_cbor_writer *writer, const char *name, int value); /* nothing where it is false */
void sc_cbor_open(sc_cbor_writer *writer, uint8_t kind); /* a map (5) or list (4) that sc_cbor_close ends */
void sc_cbor_close(sc_cbor_writer *writer);

#endif
