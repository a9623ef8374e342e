#include "chat.h"

#include <string.h>

/* The header, then programs: text in UTF-8, and 0xff with a token's id (uint32) where a token stands. */
enum { HEADER = 80, PROGRAMS = 9, PROGRAMS_AT = 16, ENDS_AT = 52, ENDS = 4, TOKEN = 0xff };
enum { BEGIN, OPENING, BEFORE_SYSTEM, AFTER_SYSTEM, BEFORE_USER, AFTER_USER, BEFORE_ASSISTANT, AFTER_ASSISTANT,
       PREFIX };

static const uint8_t *program(const sc_chat *c, uint32_t number, uint32_t *size) {
    const uint32_t start = sc_u32(c->table + PROGRAMS_AT + 4 * number);
    const uint32_t end = number + 1 < PROGRAMS ? sc_u32(c->table + PROGRAMS_AT + 4 * number + 4) : c->size;
    *size = end - start;
    return c->table + start;
}

static int program_is_sound(const sc_chat *c, uint32_t number) {
    uint32_t size;
    const uint8_t *at = program(c, number, &size);
    for (uint32_t i = 0; i < size; i++) {
        if (at[i] != TOKEN) continue;
        if (size - i < 5 || sc_u32(at + i + 1) >= c->vocabulary) return 0;
        i += 4;
    }
    return 1;
}

sc_status sc_chat_open(sc_chat *c, const uint8_t *table, size_t size, uint32_t vocabulary) {
    memset(c, 0, sizeof *c);
    if (table == NULL) return SC_MISSING_SECTION;
    if (size < HEADER) return SC_TRUNCATED;
    if (memcmp(table, "SCCR", 4) != 0) return SC_NOT_AN_IMAGE;
    if (sc_u32(table + 4) != SC_CHAT_FORMAT) return SC_UNKNOWN_FORMAT;
    c->table = table;
    c->size = sc_u32(table + 8);
    c->vocabulary = vocabulary;
    if (c->size < HEADER || c->size > size) return SC_TRUNCATED;
    uint32_t before = HEADER;
    for (uint32_t i = 0; i < PROGRAMS; i++) {
        const uint32_t start = sc_u32(table + PROGRAMS_AT + 4 * i);
        if (start < before || start > c->size) return SC_DAMAGED;
        before = start;
    }
    for (uint32_t i = 0; i < PROGRAMS; i++)
        if (!program_is_sound(c, i)) return SC_DAMAGED;
    return SC_OK;
}

int sc_chat_is_end(const sc_chat *c, uint32_t token) {
    for (uint32_t i = 0; i < ENDS; i++)
        if (sc_u32(c->table + ENDS_AT + 4 * i) == token) return 1;
    return 0;
}

uint32_t sc_chat_after_prefix(const sc_chat *c, const uint32_t *tokens, uint32_t count) {
    uint32_t size;
    const uint8_t *at = program(c, PREFIX, &size);
    if (size % 5 || size / 5 > count) return 0;
    for (uint32_t i = 0; i < size / 5; i++)
        if (at[5 * i] != TOKEN || sc_u32(at + 5 * i + 1) != tokens[i]) return 0;
    return size / 5;
}

int sc_chat_has_role(const sc_chat *c, uint32_t role) { return role < SC_ROLES && (c->table[12] >> role & 1) != 0; }
static int trims(const sc_chat *c, uint32_t role) { return (c->table[13] >> role & 1) != 0; }

static sc_status run(const sc_conversation *c, uint32_t number) {
    uint32_t size;
    const uint8_t *at = program(c->chat, number, &size);
    for (uint32_t i = 0; i < size;) {
        uint32_t text = i;
        while (text < size && at[text] != TOKEN) text++;
        sc_status status = sc_encoder_text(c->encoder, at + i, text - i);
        if (status == SC_OK && text < size) {
            status = sc_encoder_finish(c->encoder);
            if (status == SC_OK) status = sc_emit(c->encoder, sc_u32(at + text + 1));
            text += 5;
        }
        if (status != SC_OK) return status;
        i = text;
    }
    return SC_OK;
}

/* What Python's str.strip takes off: spaces of Unicode and four separators. */
static int is_space(uint32_t c) {
    return (c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

static void trim(const uint8_t **text, size_t *bytes) {
    size_t kept = 0;
    while (*bytes > 0) {
        uint32_t length;
        const uint32_t most = *bytes < 4 ? (uint32_t)*bytes : 4;
        if (!is_space(sc_utf8_read(*text, most, &length))) break;
        *text += length;
        *bytes -= length;
    }
    for (size_t i = 0; i < *bytes;) {
        uint32_t length;
        const uint32_t most = *bytes - i < 4 ? (uint32_t)(*bytes - i) : 4;
        const int space = is_space(sc_utf8_read(*text + i, most, &length));
        i += length;
        if (!space) kept = i;
    }
    *bytes = kept;
}

void sc_conversation_begin(sc_conversation *c, const sc_chat *chat, sc_encoder *encoder) {
    c->chat = chat;
    c->encoder = encoder;
    c->messages = 0;
}

sc_status sc_conversation_message(sc_conversation *c, uint32_t role, const uint8_t *text, size_t bytes) {
    if (!sc_chat_has_role(c->chat, role) || (role == SC_SYSTEM && c->messages > 0)) return SC_BAD_ARGUMENT;
    sc_status status = SC_OK;
    if (c->messages++ == 0 && role != SC_SYSTEM) status = run(c, BEGIN);
    if (trims(c->chat, role)) trim(&text, &bytes);
    if (status == SC_OK) status = run(c, BEFORE_SYSTEM + 2 * role);
    if (status == SC_OK) status = sc_encoder_text(c->encoder, text, bytes);
    return status == SC_OK ? run(c, AFTER_SYSTEM + 2 * role) : status;
}

sc_status sc_conversation_answer(sc_conversation *c) {
    const sc_status status = run(c, OPENING);
    return status == SC_OK ? sc_encoder_finish(c->encoder) : status;
}
