/* Integers and numbers, within bounds: a digit is taken only if a number within the bounds begins so. Magnitudes are
 * compared as whole numbers, ten to the power of the node's decimals times as large. */
#include "nodes.h"

enum { START, MINUS, ZERO, DIGITS, POINT, DECIMALS, EXPONENT, EXPONENT_SIGN, EXPONENT_DIGITS };

typedef struct {
    uint64_t low, high; /* magnitudes */
    int has_high, low_open, high_open; /* open: the bound itself is outside */
} range;

void sc_number_begin(sc_schema_state *state) {
    state->phase = START;
    state->digits = 0;
    state->decimals = 0;
    state->negative = state->more = 0;
}

static int is_integer(const sc_schema *s, uint32_t node) { return sc_node(s, node, 0) == SC_INTEGER; }
static int is_bounded(const sc_schema *s, uint32_t node) {
    return (sc_node(s, node, 1) & (SC_HAS_LEAST | SC_HAS_MOST)) != 0;
}

static uint64_t times_ten(uint64_t value, uint32_t times) {
    for (; times > 0; times--) value = value > UINT64_MAX / 10 ? UINT64_MAX : value * 10;
    return value;
}

/* The magnitudes that numbers of one sign may have; 0 if none may. */
static int range_of(const sc_schema *s, uint32_t node, int negative, range *r) {
    const uint32_t flags = sc_node(s, node, 1), signs = sc_node(s, node, 3);
    const int has_least = (flags & SC_HAS_LEAST) != 0, has_most = (flags & SC_HAS_MOST) != 0;
    const int least_negative = (signs & 1) != 0, most_negative = (signs & 2) != 0;
    const int least_open = (flags & SC_OPEN_LEAST) != 0, most_open = (flags & SC_OPEN_MOST) != 0;
    const range all = {0, 0, 0, 0, 0};
    *r = all;
    if (negative) {
        if (has_least && !least_negative) return 0;
        r->has_high = has_least;
        r->high = sc_bound(s, node, 0);
        r->high_open = least_open;
        /* -0 is written where an integer may have either sign; otherwise a minus is of a number below 0. */
        r->low_open = most_open || !(is_integer(s, node) && has_least && has_most && !most_negative);
        if (has_most && most_negative) {
            r->low = sc_bound(s, node, 1);
            r->low_open = most_open;
        }
        return 1;
    }
    if (has_most && most_negative) return 0;
    r->has_high = has_most;
    r->high = sc_bound(s, node, 1);
    r->high_open = most_open;
    if (has_least && !least_negative) {
        r->low = sc_bound(s, node, 0);
        r->low_open = least_open;
    }
    return 1;
}

/* Whether a magnitude from `from` on and below `to` is in the range; `after`: `from` itself is not there. */
static int meets(const range *r, uint64_t from, uint64_t to, int after, int integer) {
    if (r->has_high && (from > r->high || (from == r->high && (after || r->high_open)))) return 0;
    return integer ? to > r->low + (uint64_t)(r->low_open != 0) : to > r->low;
}

/* Whether a number of the range begins with what is there. */
static int may_become(const sc_schema *s, const sc_schema_state *n) {
    range r;
    const uint32_t scale = sc_node(s, n->node, 2);
    const int integer = is_integer(s, n->node);
    if (!range_of(s, n->node, n->negative, &r)) return 0;
    uint64_t from = times_ten(n->digits, scale - n->decimals);
    uint64_t width = times_ten(1, scale - n->decimals);
    for (;;) {
        const uint64_t to = from > UINT64_MAX - width ? UINT64_MAX : from + width;
        if (meets(&r, from, to, n->more, integer)) return 1;
        /* More digits before the point make it ten times as large, or a little more. */
        if (n->phase != DIGITS || from == UINT64_MAX) return n->phase == DIGITS && !r.has_high;
        from = times_ten(from, 1);
        width = times_ten(width, 1);
    }
}

static int take_digit(const sc_schema *s, sc_schema_state *n, uint8_t digit) {
    if (!is_bounded(s, n->node)) return 1;
    const int decimal = n->phase == DECIMALS;
    if (decimal && n->decimals == sc_node(s, n->node, 2)) {
        n->more |= digit != 0;
    } else {
        n->decimals += (uint32_t)decimal;
        const uint64_t shifted = times_ten(n->digits, 1);
        n->digits = shifted > UINT64_MAX - digit ? UINT64_MAX : shifted + digit;
    }
    return may_become(s, n);
}

int sc_number_push(const sc_schema *s, sc_schema_state *n, uint8_t byte) {
    const int digit = byte >= '0' && byte <= '9', bounded = is_bounded(s, n->node);
    const uint8_t value = (uint8_t)(byte - '0');
    range r;
    switch (n->phase) {
    case START:
        if (byte == '-') {
            n->negative = 1;
            n->phase = MINUS;
            if (!bounded) return 1;
            /* A minus promises a number below 0. */
            return range_of(s, n->node, 1, &r) && !(r.has_high && r.high == 0);
        }
        n->phase = byte == '0' ? ZERO : DIGITS;
        return digit && take_digit(s, n, value);
    case MINUS:
        n->phase = byte == '0' ? ZERO : DIGITS;
        return digit && take_digit(s, n, value);
    case ZERO:
    case DIGITS:
        if (digit) return n->phase == DIGITS && take_digit(s, n, value);
        if (is_integer(s, n->node)) return 0;
        n->phase = byte == '.' ? POINT : EXPONENT;
        if (byte == '.') return !bounded || may_become(s, n);
        return !bounded && (byte == 'e' || byte == 'E');
    case POINT:
        n->phase = DECIMALS;
        return digit && take_digit(s, n, value);
    case DECIMALS:
        if (digit) return take_digit(s, n, value);
        n->phase = EXPONENT;
        return !bounded && (byte == 'e' || byte == 'E');
    case EXPONENT:
        n->phase = digit ? EXPONENT_DIGITS : EXPONENT_SIGN;
        return digit || byte == '+' || byte == '-';
    default: n->phase = EXPONENT_DIGITS; return digit;
    }
}

int sc_number_complete(const sc_schema *s, const sc_schema_state *n) {
    range r;
    if (n->phase != ZERO && n->phase != DIGITS && n->phase != DECIMALS && n->phase != EXPONENT_DIGITS) return 0;
    if (!is_bounded(s, n->node)) return 1;
    if (!range_of(s, n->node, n->negative, &r)) return 0;
    const uint64_t v = times_ten(n->digits, sc_node(s, n->node, 2) - n->decimals);
    if (v < r.low || (v == r.low && r.low_open && !n->more)) return 0;
    return !r.has_high || v < r.high || (v == r.high && !r.high_open && !n->more);
}
