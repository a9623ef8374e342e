/* The parts of a schema's table. */
#ifndef SC_NODES_H
#define SC_NODES_H

#include "schema.h"

enum { SC_LITERALS = 1, SC_TEXT, SC_INTEGER, SC_NUMBER_VALUE, SC_LIST, SC_OBJECT, SC_CHOICE };
enum { SC_HAS_LEAST = 1, SC_HAS_MOST = 2, SC_OPEN_LEAST = 4, SC_OPEN_MOST = 8 }; /* open: the bound itself is outside */
enum { SC_NODE_BYTES = 32, SC_PROPERTY_BYTES = 8 };

/* A node: kind, a, b, c, then two bounds of 8 bytes. What they are depends on the kind:
 * literals: first, count. Text: least and most characters. Number: flags, decimals, which
 * bounds are negative (bit 0 the least, bit 1 the most); the bounds are magnitudes times ten to the power of decimals.
 * List: node of its values, least, most. Object: first property, count. Choice: first item, count. */
static inline uint32_t sc_node(const sc_schema *s, uint32_t node, uint32_t word) {
    return sc_u32(s->nodes + node * SC_NODE_BYTES + 4 * word);
}
static inline uint64_t sc_bound(const sc_schema *s, uint32_t node, uint32_t which) {
    const uint8_t *at = s->nodes + node * SC_NODE_BYTES + 16 + 8 * which;
    return sc_u32(at) | (uint64_t)sc_u32(at + 4) << 32;
}

typedef struct {
    const uint8_t *text;
    uint32_t size;
} sc_literal;

static inline sc_literal sc_literal_at(const sc_schema *s, uint32_t i) {
    const uint32_t start = sc_u32(s->starts + 4 * i);
    const sc_literal found = {s->text + start, sc_u32(s->starts + 4 * i + 4) - start};
    return found;
}

/* A property: its key with quotes, colon and space (a literal), its value (bits 0 to 30), whether it has to be there. */
static inline sc_literal sc_key(const sc_schema *s, uint32_t property) {
    return sc_literal_at(s, sc_u32(s->properties + property * SC_PROPERTY_BYTES));
}
static inline uint32_t sc_property_node(const sc_schema *s, uint32_t property) {
    return sc_u32(s->properties + property * SC_PROPERTY_BYTES + 4) & 0x7fffffffu;
}
static inline int sc_required(const sc_schema *s, uint32_t property) {
    return sc_u32(s->properties + property * SC_PROPERTY_BYTES + 4) >> 31 != 0;
}

/* Numbers (numbers.c). */
void sc_number_begin(sc_schema_state *state);
int sc_number_push(const sc_schema *schema, sc_schema_state *state, uint8_t byte);
int sc_number_complete(const sc_schema *schema, const sc_schema_state *state);

#endif
