#include "nodes.h"

#include <string.h>

enum { SECTION_HEADER = 12, ENTRY = 16, HEADER = 24 };

sc_status sc_schema_count(const uint8_t *section, size_t size, uint32_t *count) {
    if (section == NULL) return SC_MISSING_SECTION;
    if (size < SECTION_HEADER) return SC_TRUNCATED;
    if (memcmp(section, "SCSC", 4) != 0) return SC_NOT_AN_IMAGE;
    if (sc_u32(section + 4) != SC_SCHEMA_FORMAT) return SC_UNKNOWN_FORMAT;
    *count = sc_u32(section + 8);
    return *count <= (size - SECTION_HEADER) / ENTRY ? SC_OK : SC_DAMAGED;
}

/* A part of `count` entries of `bytes` each at *at; moves *at past it. */
static const uint8_t *part(const uint8_t *table, uint32_t size, uint32_t *at, uint32_t count, uint32_t bytes) {
    if (count > (size - *at) / bytes) return NULL;
    const uint8_t *found = table + *at;
    *at += count * bytes;
    return found;
}

static int range_is_sound(uint32_t first, uint32_t count, uint32_t all) { return first <= all && count <= all - first; }

static int literals_are_sound(const sc_schema *s, uint32_t first, uint32_t count) {
    if (count == 0 || !range_is_sound(first, count, s->literal_count)) return 0;
    for (uint32_t i = first; i < first + count; i++) {
        const sc_literal here = sc_literal_at(s, i);
        if (here.size == 0) return 0;
        if (i == first) continue;
        const sc_literal before = sc_literal_at(s, i - 1);
        const int order = memcmp(before.text, here.text, before.size < here.size ? before.size : here.size);
        if (order > 0 || (order == 0 && before.size >= here.size)) return 0;
    }
    return 1;
}

/* Children come after their parents: so there are no circles, and depths are found from the end. */
static int node_is_sound(const sc_schema *s, uint32_t node) {
    const uint32_t a = sc_node(s, node, 1), b = sc_node(s, node, 2), c = sc_node(s, node, 3);
    switch (sc_node(s, node, 0)) {
    case SC_LITERALS: return literals_are_sound(s, a, b);
    case SC_TEXT: return a <= b;
    case SC_INTEGER: return a <= 3 && b == 0 && c <= 3;
    case SC_NUMBER_VALUE: return a <= 15 && b <= 15 && c <= 3;
    case SC_LIST: return a > node && a < s->node_count && b <= c;
    case SC_OBJECT:
        if (!range_is_sound(a, b, s->property_count) || b > 60000) return 0;
        for (uint32_t i = a; i < a + b; i++) {
            const uint32_t key = sc_u32(s->properties + i * SC_PROPERTY_BYTES);
            if (key >= s->literal_count || sc_property_node(s, i) <= node || sc_property_node(s, i) >= s->node_count)
                return 0;
            const sc_literal text = sc_literal_at(s, key);
            if (text.size < 4 || text.text[0] != '"' || text.text[text.size - 1] != ' ') return 0;
        }
        return 1;
    case SC_CHOICE:
        if (b == 0 || !range_is_sound(a, b, s->item_count)) return 0;
        for (uint32_t i = a; i < a + b; i++) {
            const uint32_t item = sc_u32(s->items + 4 * i);
            if (item <= node || item >= s->node_count || sc_node(s, item, 0) == SC_CHOICE) return 0;
        }
        return 1;
    default: return 0;
    }
}

/* Levels of objects and lists below each node fit into SC_SCHEMA_DEPTH. One pass for each level, from the root. */
static int depth_is_sound(const sc_schema *s, uint32_t node, uint32_t left) {
    const uint32_t kind = sc_node(s, node, 0), a = sc_node(s, node, 1), b = sc_node(s, node, 2);
    if (kind == SC_CHOICE) {
        for (uint32_t i = a; i < a + b; i++)
            if (!depth_is_sound(s, sc_u32(s->items + 4 * i), left)) return 0;
        return 1;
    }
    if (kind != SC_LIST && kind != SC_OBJECT) return 1;
    if (left == 0) return 0;
    if (kind == SC_LIST) return depth_is_sound(s, a, left - 1);
    for (uint32_t i = a; i < a + b; i++)
        if (!depth_is_sound(s, sc_property_node(s, i), left - 1)) return 0;
    return 1;
}

/* No node has two parents, so that a walk over all of them is short. */
static int is_a_tree(const sc_schema *s) {
    uint32_t children = 0;
    for (uint32_t node = 0; node < s->node_count; node++) {
        const uint32_t kind = sc_node(s, node, 0);
        children += kind == SC_LIST ? 1 : kind == SC_OBJECT || kind == SC_CHOICE ? sc_node(s, node, 2) : 0;
        if (children >= s->node_count) return 0;
    }
    return children == s->node_count - 1;
}

sc_status sc_schema_open(sc_schema *s, const uint8_t *section, size_t size, uint32_t number) {
    uint32_t count;
    memset(s, 0, sizeof *s);
    const sc_status status = sc_schema_count(section, size, &count);
    if (status != SC_OK) return status;
    if (number >= count) return SC_BAD_ARGUMENT;
    const uint8_t *entry = section + SECTION_HEADER + number * ENTRY;
    const uint32_t start = sc_u32(entry + 8), bytes = sc_u32(entry + 12);
    if (start > size || bytes > size - start || bytes < HEADER) return SC_DAMAGED;
    const uint8_t *table = section + start;
    uint32_t at = HEADER;
    s->identity = sc_u32(entry) | (uint64_t)sc_u32(entry + 4) << 32;
    s->node_count = sc_u32(table);
    s->property_count = sc_u32(table + 4);
    s->item_count = sc_u32(table + 8);
    s->literal_count = sc_u32(table + 12);
    s->text_bytes = sc_u32(table + 16);
    if (s->node_count == 0 || s->node_count > 65535 || s->literal_count > 65535) return SC_DAMAGED;
    s->nodes = part(table, bytes, &at, s->node_count, SC_NODE_BYTES);
    s->properties = s->nodes ? part(table, bytes, &at, s->property_count, SC_PROPERTY_BYTES) : NULL;
    s->items = s->properties ? part(table, bytes, &at, s->item_count, 4) : NULL;
    s->starts = s->items ? part(table, bytes, &at, s->literal_count + 1, 4) : NULL;
    s->text = s->starts ? part(table, bytes, &at, s->text_bytes, 1) : NULL;
    if (s->text == NULL) return SC_DAMAGED;
    for (uint32_t i = 0; i < s->literal_count; i++)
        if (sc_u32(s->starts + 4 * i) > sc_u32(s->starts + 4 * i + 4)) return SC_DAMAGED;
    if (sc_u32(s->starts) != 0 || sc_u32(s->starts + 4 * s->literal_count) != s->text_bytes) return SC_DAMAGED;
    for (uint32_t node = 0; node < s->node_count; node++)
        if (!node_is_sound(s, node)) return SC_DAMAGED;
    return is_a_tree(s) && depth_is_sound(s, 0, SC_SCHEMA_DEPTH) ? SC_OK : SC_DAMAGED;
}
