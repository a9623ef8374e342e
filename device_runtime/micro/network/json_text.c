#include "json_text.h"

#include <string.h>

enum { DEPTH = 16 };

uint8_t sc_json_peek(sc_json_reader *r) {
    while (r->at < r->end && (*r->at == ' ' || *r->at == '\t' || *r->at == '\n' || *r->at == '\r')) r->at++;
    return r->good && r->at < r->end ? *r->at : 0;
}

void sc_json_take(sc_json_reader *r, char byte) {
    if (sc_json_peek(r) == (uint8_t)byte) r->at++;
    else r->good = 0;
}

int sc_json_more(sc_json_reader *r, char close, int *first) {
    if (!r->good) return 0;
    if (sc_json_peek(r) == (uint8_t)close) {
        r->at++;
        return 0;
    }
    if (!*first) sc_json_take(r, ',');
    *first = 0;
    return r->good;
}

void sc_json_raw(sc_json_reader *r, const uint8_t **text, uint32_t *size) {
    sc_json_take(r, '"');
    *text = r->at;
    *size = 0;
    while (r->good) {
        if (r->at == r->end || *r->at < ' ') {
            r->good = 0;
        } else if (*r->at == '"') {
            *size = (uint32_t)(r->at - *text);
            r->at++;
            return;
        } else if (*r->at == '\\') {
            r->at += r->end - r->at > 1 ? 2 : 1;
        } else {
            r->at++;
        }
    }
}

static int hexadecimal(const uint8_t *at, const uint8_t *end, uint32_t *value) {
    *value = 0;
    if (end - at < 4) return 0;
    for (int i = 0; i < 4; i++) {
        const uint8_t c = at[i];
        const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (digit < 0) return 0;
        *value = *value << 4 | (uint32_t)digit;
    }
    return 1;
}

/* The code point of an escape after its backslash; *at moves on, after it. 0: it is none. */
static uint32_t unescape(const uint8_t **at, const uint8_t *end) {
    static const char NAMES[] = "\"\\/bfnrt", VALUES[] = "\"\\/\b\f\n\r\t";
    uint32_t high, low;
    if (*at == end) return 0;
    if (**at != 'u') {
        const char *found = **at == 0 ? NULL : strchr(NAMES, **at);
        if (found == NULL) return 0;
        (*at)++;
        return (uint8_t)VALUES[found - NAMES];
    }
    if (!hexadecimal(*at + 1, end, &high)) return 0;
    *at += 5;
    if (high < 0xd800 || high > 0xdfff) return high;
    if (high > 0xdbff || end - *at < 6 || (*at)[0] != '\\' || (*at)[1] != 'u' || !hexadecimal(*at + 2, end, &low) ||
        low < 0xdc00 || low > 0xdfff)
        return 0;
    *at += 6;
    return 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
}

static uint32_t utf8_of(uint32_t point, uint8_t bytes[4]) {
    if (point < 0x80) {
        bytes[0] = (uint8_t)point;
        return 1;
    }
    const uint32_t size = point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
    for (uint32_t i = size; i-- > 1; point >>= 6) bytes[i] = (uint8_t)(0x80 | (point & 0x3f));
    bytes[0] = (uint8_t)((0xf00 >> size & 0xf0) | point);
    return size;
}

uint32_t sc_json_string(sc_json_reader *r, uint8_t *to, uint32_t room) {
    const uint8_t *text, *end;
    uint32_t size, have = 0;
    sc_json_raw(r, &text, &size);
    end = text + size;
    while (r->good && text < end) {
        uint8_t bytes[4] = {*text};
        uint32_t count = 1;
        if (*text++ == '\\') {
            const uint32_t point = unescape(&text, end);
            if (point == 0) r->good = 0;
            count = utf8_of(point, bytes);
        }
        if (count > room - have) r->good = 0;
        if (!r->good) return 0;
        memcpy(to + have, bytes, count);
        have += count;
    }
    return have;
}

static int digits(sc_json_reader *r, double *value, uint64_t *whole, double *scale) {
    const uint8_t *start = r->at;
    while (r->at < r->end && *r->at >= '0' && *r->at <= '9') {
        const uint32_t digit = (uint32_t)(*r->at++ - '0');
        *value = *value * 10 + digit;
        *scale *= 10;
        *whole = *whole > (UINT64_MAX - 1 - digit) / 10 ? UINT64_MAX : *whole * 10 + digit;
    }
    return r->at > start;
}

sc_json_number sc_json_take_number(sc_json_reader *r) {
    sc_json_number n = {0.0, 0};
    double scale = 1.0, none = 1.0;
    const int negative = sc_json_peek(r) == '-';
    if (negative) r->at++;
    if (!digits(r, &n.value, &n.whole, &none)) r->good = 0;
    if (r->at < r->end && *r->at == '.') {
        uint64_t ignored = 0;
        r->at++;
        if (!digits(r, &n.value, &ignored, &scale)) r->good = 0;
        n.value /= scale;
        n.whole = UINT64_MAX;
    }
    if (r->at < r->end && (*r->at == 'e' || *r->at == 'E')) {
        double power = 0.0;
        uint64_t times = 0;
        const int sign = r->end - r->at > 1 && (r->at[1] == '-' || r->at[1] == '+') ? r->at[1] : 0;
        r->at += sign != 0 ? 2 : 1;
        if (!digits(r, &power, &times, &none)) r->good = 0;
        for (uint64_t i = 0; i < times && i < 400; i++) n.value = sign == '-' ? n.value / 10 : n.value * 10;
        n.whole = UINT64_MAX;
    }
    if (negative) {
        n.value = -n.value;
        n.whole = UINT64_MAX;
    }
    return n;
}

static void take_word(sc_json_reader *r, const char *word) {
    const uint32_t size = (uint32_t)strlen(word);
    if ((uint32_t)(r->end - r->at) < size || memcmp(r->at, word, size) != 0) r->good = 0;
    else r->at += size;
}

static void skip(sc_json_reader *r, int depth) {
    const uint8_t *text;
    uint32_t size;
    int first = 1;
    const uint8_t byte = sc_json_peek(r);
    if (depth == 0) r->good = 0;
    if (!r->good) return;
    switch (byte) {
    case '{':
        for (r->at++; sc_json_more(r, '}', &first);) {
            sc_json_raw(r, &text, &size);
            sc_json_take(r, ':');
            skip(r, depth - 1);
        }
        return;
    case '[':
        for (r->at++; sc_json_more(r, ']', &first);) skip(r, depth - 1);
        return;
    case '"': sc_json_raw(r, &text, &size); return;
    case 't': take_word(r, "true"); return;
    case 'f': take_word(r, "false"); return;
    case 'n': take_word(r, "null"); return;
    default: (void)sc_json_take_number(r);
    }
}

void sc_json_skip(sc_json_reader *r, const uint8_t **text, uint32_t *size) {
    (void)sc_json_peek(r);
    const uint8_t *start = r->at;
    skip(r, DEPTH);
    if (text != NULL) {
        *text = start;
        *size = (uint32_t)(r->at - start);
    }
}

/* -- out -------------------------------------------------------------------------------------------------- */

void sc_json_put_bytes(sc_json_writer *w, const uint8_t *bytes, uint32_t size) {
    if (size > w->room - w->size) w->good = 0;
    if (!w->good) return;
    memcpy(w->bytes + w->size, bytes, size);
    w->size += size;
}

void sc_json_put(sc_json_writer *w, const char *text) {
    sc_json_put_bytes(w, (const uint8_t *)text, (uint32_t)strlen(text));
}

/* Bytes of the character that begins here; 0: it is damaged. */
static uint32_t character(const uint8_t *at, uint32_t left) {
    static const uint8_t LEAST[5] = {0, 0, 0xc2, 0xe0, 0xf0};
    const uint32_t size = at[0] < 0x80 ? 1 : at[0] < 0xe0 ? 2 : at[0] < 0xf0 ? 3 : 4;
    if (size == 1) return 1;
    if (size > left || at[0] < LEAST[size] || at[0] > 0xf4) return 0;
    for (uint32_t i = 1; i < size; i++)
        if ((at[i] & 0xc0) != 0x80) return 0;
    if ((at[0] == 0xe0 && at[1] < 0xa0) || (at[0] == 0xed && at[1] > 0x9f) || (at[0] == 0xf0 && at[1] < 0x90) ||
        (at[0] == 0xf4 && at[1] > 0x8f))
        return 0;
    return size;
}

void sc_json_put_string(sc_json_writer *w, const uint8_t *utf8, uint32_t size) {
    static const char HEX[] = "0123456789abcdef";
    sc_json_put(w, "\"");
    for (uint32_t i = 0; i < size;) {
        const uint32_t count = character(utf8 + i, size - i);
        if (utf8[i] == '"' || utf8[i] == '\\') {
            const uint8_t escaped[2] = {'\\', utf8[i]};
            sc_json_put_bytes(w, escaped, 2);
        } else if (utf8[i] < ' ') {
            const uint8_t escaped[6] = {'\\', 'u', '0', '0', (uint8_t)HEX[utf8[i] >> 4], (uint8_t)HEX[utf8[i] & 15]};
            sc_json_put_bytes(w, escaped, 6);
        } else if (count == 0) {
            sc_json_put(w, "\xef\xbf\xbd");
        } else {
            sc_json_put_bytes(w, utf8 + i, count);
        }
        i += count > 0 ? count : 1;
    }
    sc_json_put(w, "\"");
}

void sc_json_put_text(sc_json_writer *w, const char *text) {
    sc_json_put_string(w, (const uint8_t *)text, (uint32_t)strlen(text));
}

void sc_json_put_number(sc_json_writer *w, uint64_t number) {
    char text[21];
    int at = 20;
    text[20] = 0;
    do text[--at] = (char)('0' + number % 10);
    while ((number /= 10) > 0);
    sc_json_put(w, text + at);
}

void sc_json_put_share(sc_json_writer *w, double number, uint32_t decimals) {
    uint64_t scale = 1;
    for (uint32_t i = 0; i < decimals; i++) scale *= 10;
    const uint64_t scaled = (uint64_t)(number * (double)scale + 0.5);
    sc_json_put_number(w, scaled / scale);
    sc_json_put(w, ".");
    for (uint64_t rest = scaled % scale; scale > 1;) {
        scale /= 10;
        const char digit[2] = {(char)('0' + rest / scale), 0};
        rest %= scale;
        sc_json_put(w, digit);
    }
}
