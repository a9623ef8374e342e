#include "fields.h"

enum { NAME, COLON, VALUE, AFTER };

int sc_fields_push(sc_fields *f, uint8_t byte) {
    const int own = f->depth == 1;
    if (f->quoted) {
        const int ends = byte == '"' && !f->escaped;
        f->escaped = byte == '\\' && !f->escaped;
        if (ends) f->quoted = 0;
        const int here = f->phase == VALUE ? (int)f->count - 1 : -1;
        if (ends && own && f->phase == VALUE) f->phase = AFTER;
        return here;
    }
    if (own && byte == ',') f->phase = NAME;
    else if (own && byte == ':') f->phase = COLON;
    else if (own && byte == '}') f->phase = AFTER; /* the answer's end */
    else if (own && f->phase == COLON && byte != ' ') {
        f->phase = VALUE;
        f->count++;
    }
    const int here = f->phase == VALUE ? (int)f->count - 1 : -1;
    if (byte == '"') f->quoted = 1;
    if (byte == '{' || byte == '[') f->depth++;
    if ((byte == '}' || byte == ']') && f->depth > 0 && --f->depth == 1 && f->phase == VALUE) f->phase = AFTER;
    return here;
}
