/* Which field of an answer a byte belongs to: the answer is an object, and its own fields are counted as they come. */
#ifndef SC_FIELDS_H
#define SC_FIELDS_H

#include <stdint.h>

typedef struct {
    uint32_t depth, count; /* of objects and lists that are open; of the object's own values so far */
    uint8_t quoted, escaped, phase;
} sc_fields;

/* Take the answer's next byte. Returns the number of the field whose value it is a part of, or -1. */
int sc_fields_push(sc_fields *fields, uint8_t byte);

#endif
