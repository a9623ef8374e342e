/* A JSON schema as a table, and a reader that says byte by byte whether an answer may go on so. The table is read where
 * it lies; converters/emit/c/schema.py writes it; docs/explained/schema-table.md describes it. JSON has one form here:
 * ", " and ": " between its parts and no other spaces, properties in the order of the schema. */
#ifndef SC_SCHEMA_H
#define SC_SCHEMA_H

#include <stddef.h>
#include <stdint.h>

#include "image.h"
#include "sc_status.h"
#include "utf8.h"

#define SC_SCHEMA_FORMAT 1u
#define SC_SCHEMA_DEPTH 12u /* objects and lists inside of each other */
#define SC_NO_LIMIT 0xffffffffu

typedef struct {
    const uint8_t *nodes, *properties, *items, *starts, *text;
    uint32_t node_count, property_count, item_count, literal_count, text_bytes;
    uint64_t identity; /* the first 8 bytes of the schema's SHA-256 */
} sc_schema;

typedef struct {
    uint16_t node;
    uint16_t phase;
    uint32_t count; /* object: the next property; list: values so far */
} sc_schema_level;

/* Where an answer is. It may be copied. */
typedef struct {
    sc_schema_level levels[SC_SCHEMA_DEPTH];
    uint32_t depth;           /* levels in use */
    uint32_t node;            /* the value that is being read, unless it is an object or a list */
    uint32_t phase;           /* of that value */
    uint32_t low, high, at;   /* literals that it may be, and how much of them there is; characters of a text */
    uint64_t digits;          /* of a number: its digits so far, as far as they matter to the bounds */
    uint32_t decimals;        /* of these, after the point */
    uint8_t negative, more;   /* more: a digit that is not 0 came after those that matter */
    sc_utf8 utf8;
} sc_schema_state;

/* How many schemas a section has. */
sc_status sc_schema_count(const uint8_t *section, size_t size, uint32_t *count);

/* Check and open the schema `number` of a section. */
sc_status sc_schema_open(sc_schema *schema, const uint8_t *section, size_t size, uint32_t number);

void sc_schema_begin(const sc_schema *schema, sc_schema_state *state);

/* Take one more byte. 0: the answer may not go on so, and the state is not to be used any more. */
int sc_schema_push(const sc_schema *schema, sc_schema_state *state, uint8_t byte);

/* Whether the answer may end here, and whether it has to. */
int sc_schema_may_end(const sc_schema *schema, const sc_schema_state *state);
int sc_schema_has_ended(const sc_schema_state *state);

/* Whether a text is being written, which may be cut. */
int sc_schema_in_text(const sc_schema *schema, const sc_schema_state *state);

/* The next byte of the shortest way to the end; -1 where the answer may end. Pushing it is always allowed. */
int sc_schema_shortest_byte(const sc_schema *schema, const sc_schema_state *state);

#endif
