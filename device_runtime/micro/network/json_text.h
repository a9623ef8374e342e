/* JSON (RFC 8259) in and out, without a tree: a reader that walks through a text, and a writer into a buffer. */
#ifndef SC_JSON_TEXT_H
#define SC_JSON_TEXT_H

#include <stdint.h>

typedef struct {
    const uint8_t *at, *end;
    int good; /* 0 from the first fault on */
} sc_json_reader;

/* The next byte that is no space, without taking it; 0 at the end. */
uint8_t sc_json_peek(sc_json_reader *r);

/* Take this byte, which has to be the next. */
void sc_json_take(sc_json_reader *r, char byte);

/* Begin an object or a list with `open`, then before each member: whether there is one more. `first` starts at 1. */
int sc_json_more(sc_json_reader *r, char close, int *first);

/* A string as it stands, without its quotes and with its escapes. */
void sc_json_raw(sc_json_reader *r, const uint8_t **text, uint32_t *size);

/* A string in UTF-8, into `to`; its size, or a fault where it has more than `room` bytes, half a pair of \u or a zero. */
uint32_t sc_json_string(sc_json_reader *r, uint8_t *to, uint32_t room);

/* A number. `whole` is UINT64_MAX for one that is negative, has a fraction or an exponent, or is too large. */
typedef struct {
    double value;
    uint64_t whole;
} sc_json_number;
sc_json_number sc_json_take_number(sc_json_reader *r);

/* Whatever comes, at most so many levels deep; `text` and `size`, where they are not NULL, get it as it stands. */
void sc_json_skip(sc_json_reader *r, const uint8_t **text, uint32_t *size);

typedef struct {
    uint8_t *bytes;
    uint32_t size, room;
    int good; /* 0: it did not fit */
} sc_json_writer;

void sc_json_put(sc_json_writer *w, const char *text);                         /* as it stands */
void sc_json_put_bytes(sc_json_writer *w, const uint8_t *bytes, uint32_t size); /* as they stand */
void sc_json_put_string(sc_json_writer *w, const uint8_t *utf8, uint32_t size); /* with quotes; damaged UTF-8: U+FFFD */
void sc_json_put_text(sc_json_writer *w, const char *text);                    /* the same of a C string */
void sc_json_put_number(sc_json_writer *w, uint64_t number);
void sc_json_put_share(sc_json_writer *w, double number, uint32_t decimals);   /* 0 or more */

#endif
