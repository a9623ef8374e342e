#include "schema.h"

#include <string.h>

#include "nodes.h"

/* Of a value that is no object and no list. A text: after the quote; after a backslash; four digits of \u. */
enum { VALUE_START = 0, IN_TEXT = 1, ESCAPE = 2, HEX = 3, TEXT_DONE = 7 };
/* Of a level. */
enum { OPENED, KEY, VALUE, AFTER_VALUE, COMMA, LIST_START };

static const uint32_t NO_NODE = 0xffffffffu;

void sc_schema_begin(const sc_schema *s, sc_schema_state *state) {
    (void)s;
    memset(state, 0, sizeof *state);
    state->node = 0;
}

/* ---- texts and literals ---- */

static void begin_value(const sc_schema *s, sc_schema_state *n, uint32_t node) {
    n->node = node;
    n->phase = VALUE_START;
    n->at = 0;
    const uint32_t kind = sc_node(s, node, 0);
    if (kind == SC_LITERALS) {
        n->low = sc_node(s, node, 1);
        n->high = n->low + sc_node(s, node, 2);
    } else if (kind == SC_INTEGER || kind == SC_NUMBER_VALUE) {
        sc_number_begin(n);
    }
    n->utf8.have = n->utf8.need = 0;
}

/* One more character of a text. */
static int count_character(const sc_schema *s, sc_schema_state *n) {
    if (n->at >= sc_node(s, n->node, 2)) return 0;
    n->at++;
    return 1;
}

static int push_text(const sc_schema *s, sc_schema_state *n, uint8_t byte) {
    switch (n->phase) {
    case VALUE_START: n->phase = IN_TEXT; return byte == '"';
    case ESCAPE:
        if (byte == 'u') {
            n->phase = HEX;
            return 1;
        }
        n->phase = IN_TEXT;
        return byte != 0 && strchr("\"\\bfnrt", byte) != NULL;
    case TEXT_DONE: return 0;
    case IN_TEXT: break;
    default: { /* \u00.. of a control character: 0, 0, 0 or 1 or 7, and then any digit, f after 7 */
        const uint32_t place = n->phase - HEX;
        const int hex = (byte >= '0' && byte <= '9') || (byte >= 'a' && byte <= 'f') || (byte >= 'A' && byte <= 'F');
        if (place < 2 && byte != '0') return 0;
        if (place == 2) {
            if (byte != '0' && byte != '1' && byte != '7') return 0;
            n->low = byte;
        }
        if (place == 3 && (n->low == '7' ? byte != 'f' && byte != 'F' : !hex)) return 0;
        n->phase = place == 3 ? (uint32_t)IN_TEXT : n->phase + 1;
        return 1;
    }
    }
    if (n->utf8.need == 0) {
        if (byte == '"') {
            n->phase = TEXT_DONE;
            return n->at >= sc_node(s, n->node, 1);
        }
        if (byte < 0x20 || byte == 0x7f || !count_character(s, n)) return 0;
        if (byte == '\\') n->phase = ESCAPE;
        if (byte < 0x80) return 1;
    }
    uint32_t character;
    const int begins = n->utf8.need == 0, came = sc_utf8_push(&n->utf8, byte, &character);
    return begins ? came == 0 : came >= 0; /* a first byte that completes at once is no UTF-8 */
}

static int push_literal(const sc_schema *s, sc_schema_state *n, uint8_t byte) {
    while (n->low < n->high) {
        const sc_literal first = sc_literal_at(s, n->low);
        if (first.size > n->at && first.text[n->at] >= byte) break;
        n->low++;
    }
    uint32_t end = n->low;
    while (end < n->high) {
        const sc_literal last = sc_literal_at(s, end);
        if (last.size <= n->at || last.text[n->at] != byte) break;
        end++;
    }
    n->high = end;
    n->at++;
    return n->low < n->high;
}

/* ---- values ---- */

static int value_complete(const sc_schema *s, const sc_schema_state *n) {
    switch (sc_node(s, n->node, 0)) {
    case SC_LITERALS: return n->at > 0 && sc_literal_at(s, n->low).size == n->at;
    case SC_TEXT: return n->phase == TEXT_DONE;
    case SC_INTEGER:
    case SC_NUMBER_VALUE: return sc_number_complete(s, n);
    default: return 0;
    }
}

static int push_value(const sc_schema *s, sc_schema_state *n, uint8_t byte) {
    switch (sc_node(s, n->node, 0)) {
    case SC_LITERALS: return push_literal(s, n, byte);
    case SC_TEXT: return push_text(s, n, byte);
    default: return sc_number_push(s, n, byte);
    }
}

/* The value is there: what is around it goes on. */
static void end_value(sc_schema_state *n) {
    n->node = NO_NODE;
    if (n->depth == 0) return;
    sc_schema_level *level = &n->levels[n->depth - 1];
    level->phase = AFTER_VALUE;
}

static int start_value(const sc_schema *s, sc_schema_state *n, uint32_t node, uint8_t byte);

/* ---- objects and lists ---- */

/* The properties from level->count on that may come next end at the first that has to be there. */
static uint32_t last_candidate(const sc_schema *s, uint32_t node, uint32_t from) {
    const uint32_t first = sc_node(s, node, 1), end = first + sc_node(s, node, 2);
    uint32_t i = first + from;
    while (i < end && !sc_required(s, i)) i++;
    return i < end ? i + 1 : end;
}

static int may_close(const sc_schema *s, const sc_schema_level *level) {
    const uint32_t first = sc_node(s, level->node, 1), end = first + sc_node(s, level->node, 2);
    for (uint32_t i = first + level->count; i < end; i++)
        if (sc_required(s, i)) return 0;
    return 1;
}

/* One more byte of a key; n->low is a property whose key begins with what is there, n->at how much that is. */
static int push_key(const sc_schema *s, sc_schema_state *n, sc_schema_level *level, uint8_t byte) {
    const uint32_t end = last_candidate(s, level->node, level->count);
    const uint8_t *so_far = n->at ? sc_key(s, n->low).text : s->text;
    for (uint32_t i = n->at ? n->low : sc_node(s, level->node, 1) + level->count; i < end; i++) {
        const sc_literal key = sc_key(s, i);
        if (key.size <= n->at || key.text[n->at] != byte || memcmp(key.text, so_far, n->at) != 0) continue;
        n->low = i;
        n->at++;
        if (n->at == key.size) {
            level->count = i - sc_node(s, level->node, 1) + 1;
            level->phase = VALUE;
            begin_value(s, n, sc_property_node(s, i));
        }
        return 1;
    }
    return 0;
}

static int begin_key(const sc_schema *s, sc_schema_state *n, sc_schema_level *level, uint8_t byte) {
    level->phase = KEY;
    n->at = 0;
    return push_key(s, n, level, byte);
}

static int close(sc_schema_state *n) {
    n->depth--;
    end_value(n);
    return 1;
}

static int push_object(const sc_schema *s, sc_schema_state *n, sc_schema_level *level, uint8_t byte) {
    switch (level->phase) {
    case OPENED:
        if (byte == '}') return may_close(s, level) && close(n);
        return begin_key(s, n, level, byte);
    case KEY: return push_key(s, n, level, byte);
    case AFTER_VALUE:
        if (byte == '}') return may_close(s, level) && close(n);
        level->phase = COMMA;
        return byte == ',' && level->count < sc_node(s, level->node, 2);
    default: /* COMMA */
        level->phase = KEY;
        n->at = 0;
        n->low = 0;
        return byte == ' ';
    }
}

static int push_list(const sc_schema *s, sc_schema_state *n, sc_schema_level *level, uint8_t byte) {
    const uint32_t item = sc_node(s, level->node, 1);
    switch (level->phase) {
    case OPENED:
        if (byte == ']') return sc_node(s, level->node, 2) == 0 && close(n);
        if (sc_node(s, level->node, 3) == 0) return 0;
        /* fall through */
    case LIST_START:
        level->phase = VALUE;
        level->count++;
        return start_value(s, n, item, byte);
    case AFTER_VALUE:
        if (byte == ']') return level->count >= sc_node(s, level->node, 2) && close(n);
        level->phase = COMMA;
        return byte == ',' && level->count < sc_node(s, level->node, 3);
    default: /* COMMA */ level->phase = LIST_START; return byte == ' ';
    }
}

static int start_value(const sc_schema *s, sc_schema_state *n, uint32_t node, uint8_t byte) {
    const uint32_t kind = sc_node(s, node, 0);
    if (kind == SC_CHOICE) {
        const uint32_t first = sc_node(s, node, 1);
        for (uint32_t i = first; i < first + sc_node(s, node, 2); i++) {
            sc_schema_state tried = *n;
            if (start_value(s, &tried, sc_u32(s->items + 4 * i), byte)) {
                *n = tried;
                return 1;
            }
        }
        return 0;
    }
    if (kind == SC_OBJECT || kind == SC_LIST) {
        if (byte != (kind == SC_OBJECT ? '{' : '[') || n->depth == SC_SCHEMA_DEPTH) return 0;
        const sc_schema_level level = {(uint16_t)node, OPENED, 0};
        n->levels[n->depth++] = level;
        n->node = NO_NODE;
        return 1;
    }
    begin_value(s, n, node);
    return push_value(s, n, byte);
}

int sc_schema_push(const sc_schema *s, sc_schema_state *n, uint8_t byte) {
    if (n->node != NO_NODE) {
        const uint32_t kind = sc_node(s, n->node, 0);
        const int begun = n->at > 0 || n->phase != VALUE_START;
        if (!begun) return start_value(s, n, n->node, byte);
        const int complete = value_complete(s, n);
        if (complete && kind != SC_TEXT) { /* a number or literal that may go on, or end before this byte */
            sc_schema_state longer = *n;
            if (push_value(s, &longer, byte)) {
                *n = longer;
                return 1;
            }
        } else if (!complete) {
            if (!push_value(s, n, byte)) return 0;
            if (kind == SC_TEXT && n->phase == TEXT_DONE) end_value(n);
            return 1;
        }
        end_value(n);
    }
    if (n->depth == 0) return 0;
    sc_schema_level *level = &n->levels[n->depth - 1];
    if (level->phase == VALUE) return 0;
    return sc_node(s, level->node, 0) == SC_OBJECT ? push_object(s, n, level, byte) : push_list(s, n, level, byte);
}

/* ---- the end ---- */

int sc_schema_has_ended(const sc_schema_state *n) { return n->node == NO_NODE && n->depth == 0; }

int sc_schema_may_end(const sc_schema *s, const sc_schema_state *n) {
    if (n->depth > 0) return 0;
    return n->node == NO_NODE || ((n->at > 0 || n->phase != VALUE_START) && value_complete(s, n));
}

int sc_schema_in_text(const sc_schema *s, const sc_schema_state *n) {
    return n->node != NO_NODE && sc_node(s, n->node, 0) == SC_TEXT && n->phase != VALUE_START;
}

/* The first byte of `order` that may follow; -1 if none. */
static int first_allowed(const sc_schema *s, const sc_schema_state *n, const char *order) {
    for (; *order; order++) {
        sc_schema_state tried = *n;
        if (sc_schema_push(s, &tried, (uint8_t)*order)) return (uint8_t)*order;
    }
    return -1;
}

static int shortest_literal_byte(const sc_schema *s, const sc_schema_state *n, uint32_t low, uint32_t high) {
    uint32_t best = low;
    for (uint32_t i = low; i < high; i++)
        if (sc_literal_at(s, i).size < sc_literal_at(s, best).size) best = i;
    return sc_literal_at(s, best).text[n->at];
}

int sc_schema_shortest_byte(const sc_schema *s, const sc_schema_state *n) {
    if (sc_schema_may_end(s, n)) return -1;
    if (n->node != NO_NODE) {
        const uint32_t kind = sc_node(s, n->node, 0);
        const int begun = n->at > 0 || n->phase != VALUE_START;
        if (kind == SC_LITERALS && !value_complete(s, n)) {
            const uint32_t first = sc_node(s, n->node, 1);
            return begun ? shortest_literal_byte(s, n, n->low, n->high)
                         : shortest_literal_byte(s, n, first, first + sc_node(s, n->node, 2));
        }
        if (kind == SC_TEXT && n->phase >= HEX && n->phase < TEXT_DONE) return first_allowed(s, n, "01");
        if (kind == SC_TEXT && n->phase == ESCAPE) return 'n';
        if (kind == SC_TEXT && n->utf8.need) {
            for (int byte = 0x80; byte < 0xc0; byte++) {
                sc_schema_state tried = *n;
                if (sc_schema_push(s, &tried, (uint8_t)byte)) return byte;
            }
        }
        if (!begun) /* literals, lists and objects after what is shorter in most schemas */
            return first_allowed(s, n, "0123456789-\"[ntf{");
        if (kind == SC_TEXT) return first_allowed(s, n, "\"a");
        if (!value_complete(s, n)) return first_allowed(s, n, "9876543210.");
    }
    const sc_schema_level *level = &n->levels[n->depth - 1];
    if (sc_node(s, level->node, 0) == SC_LIST) {
        if (level->phase == LIST_START) return first_allowed(s, n, "0123456789-\"[ntf{");
        const int byte = first_allowed(s, n, "],\"0123456789-[ntf{ ");
        return byte;
    }
    if (level->phase == COMMA) return ' ';
    if (level->phase != KEY) {
        const int byte = first_allowed(s, n, "},");
        if (byte >= 0) return byte;
        return '"';
    }
    /* The property that has to be there, else the first. */
    const uint32_t end = last_candidate(s, level->node, level->count);
    const uint32_t wanted = end - 1;
    const sc_literal key = sc_key(s, wanted);
    if (n->at == 0 || (key.size > n->at && memcmp(key.text, sc_key(s, n->low).text, n->at) == 0)) return key.text[n->at];
    return sc_key(s, n->low).text[n->at];
}
