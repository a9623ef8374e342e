#include "answer.h"

#include <math.h>
#include <string.h>

#include "nodes.h"

enum { NEAR = 64, VALUE_WANTS = 8, TEXT_WANTS = 12 }; /* tokens; device_runtime/engine has the same */
enum { LONGEST_END = 4096 };                          /* bytes */
enum { WINDOW = 64 };

typedef struct {
    uint32_t tokens, wanted;
    int first_byte;
    uint32_t first_token;
} ending;

static int is_space_mark(const uint8_t *text, uint32_t size) {
    return size >= 3 && text[0] == 0xe2 && text[1] == 0x96 && text[2] == 0x81;
}

/* Go on with a token's bytes. 0: the schema does not allow it. */
static int push_token(const sc_answer *a, sc_schema_state *state, uint32_t token) {
    const sc_tokenizer *t = a->tokenizer;
    if (token == t->unknown) return 0;
    const sc_text piece = sc_piece_text(t, token);
    if (t->kind == SC_BYTE_LEVEL_BPE) {
        for (uint32_t i = 0; i < piece.size; i++)
            if (!sc_schema_push(a->schema, state, piece.text[i])) return 0;
        return piece.size > 0;
    }
    if (piece.size == 0) { /* a byte, or a control token */
        for (uint32_t byte = 0; t->byte_ids != NULL && byte < 256; byte++)
            if (sc_byte_token(t, (uint8_t)byte) == token) return sc_schema_push(a->schema, state, (uint8_t)byte);
        return 0;
    }
    for (uint32_t i = 0; i < piece.size;) {
        const int space = is_space_mark(piece.text + i, piece.size - i);
        if (!sc_schema_push(a->schema, state, space ? ' ' : piece.text[i])) return 0;
        i += space ? 3 : 1;
    }
    return 1;
}

static int is_end(const sc_answer *a, uint32_t token) {
    for (uint32_t i = 0; i < a->end_count; i++)
        if (a->ends[i] == token) return 1;
    return 0;
}

static int is_allowed(const sc_answer *a, uint32_t token) {
    if (is_end(a, token)) return sc_schema_may_end(a->schema, &a->state);
    sc_schema_state tried = a->state;
    return push_token(a, &tried, token);
}

/* The longest token that `bytes` begin with, and its size; SC_NO_TOKEN if there is none. */
static uint32_t longest_token(const sc_tokenizer *t, const uint8_t *bytes, uint32_t count, uint32_t *size) {
    uint32_t low = 0, high = t->sorted_count, depth = 0, found = SC_NO_TOKEN;
    for (uint32_t i = 0; i < count; i++) {
        static const uint8_t mark[3] = {0xe2, 0x96, 0x81};
        const int space = t->kind != SC_BYTE_LEVEL_BPE && bytes[i] == ' ';
        const uint32_t length = space ? 3 : 1;
        for (uint32_t k = 0; k < length; k++, depth++)
            if (!sc_narrow(t, t->sorted, depth, space ? mark[k] : bytes[i], &low, &high)) goto end;
        const uint32_t id = sc_listed_id(t, t->sorted, low);
        if (sc_piece_text(t, id).size != depth) continue;
        found = id;
        *size = i + 1;
    }
end:
    if (found == SC_NO_TOKEN && t->byte_ids != NULL) {
        found = sc_byte_token(t, bytes[0]);
        *size = 1;
    }
    return found;
}

static uint32_t wants(const sc_schema *s, const sc_schema_state *n) {
    if (n->node >= s->node_count || n->at > 0 || n->phase != 0) return 0;
    switch (sc_node(s, n->node, 0)) {
    case SC_TEXT: return TEXT_WANTS;
    case SC_LITERALS: return sc_node(s, n->node, 2) > 1 ? VALUE_WANTS : 0;
    default: return VALUE_WANTS;
    }
}

/* The shortest way to the end, in tokens that are as long as they can be. Returns 0 if there is none in sight. */
static int find_end(const sc_answer *a, const sc_schema_state *from, ending *e) {
    const sc_schema *s = a->schema;
    sc_schema_state state = *from;
    uint8_t bytes[WINDOW];
    uint32_t held = 0, all = 0;
    int more = 1;
    memset(e, 0, sizeof *e);
    e->first_byte = -1;
    e->first_token = SC_NO_TOKEN;
    while (more || held > 0) {
        while (more && held < WINDOW) {
            const int byte = sc_schema_shortest_byte(s, &state);
            if (byte < 0) {
                more = 0;
                break;
            }
            if (all > 0) e->wanted += wants(s, &state);
            if (++all > LONGEST_END || !sc_schema_push(s, &state, (uint8_t)byte)) return 0;
            bytes[held++] = (uint8_t)byte;
        }
        if (held == 0) break;
        uint32_t size = 1;
        const uint32_t token = longest_token(a->tokenizer, bytes, held, &size);
        if (token == SC_NO_TOKEN) return 0;
        if (e->tokens++ == 0) {
            e->first_byte = bytes[0];
            e->first_token = token;
        }
        held -= size;
        memmove(bytes, bytes + size, held);
    }
    e->tokens += !sc_schema_has_ended(&state); /* a token of the end says that no more follows */
    return 1;
}

sc_status sc_answer_begin(sc_answer *a, const sc_schema *schema, const sc_tokenizer *tokenizer, const uint32_t *ends,
                          uint32_t end_count, uint32_t most) {
    ending e;
    memset(a, 0, sizeof *a);
    a->schema = schema;
    a->tokenizer = tokenizer;
    a->ends = ends;
    a->end_count = end_count;
    sc_schema_begin(schema, &a->state);
    if (!find_end(a, &a->state, &e) || e.tokens > most) return SC_ANSWER_TOO_LONG;
    a->near = NEAR + 2 * e.tokens + e.wanted;
    a->spare = (most - e.tokens) / 2;
    return SC_OK;
}

/* The likeliest allowed token, or what the sampler draws; SC_NO_TOKEN if none is allowed. */
static uint32_t choose_allowed(const sc_answer *a, float *logits, sc_sampler *sampler) {
    const uint32_t count = a->tokenizer->vocabulary;
    uint32_t best = SC_NO_TOKEN;
    const int draws = sampler->scale > 0.0f;
    for (uint32_t i = 0; i < count; i++) {
        const int better = best == SC_NO_TOKEN || logits[i] > logits[best];
        if (!draws && !better) continue;
        const int allowed = is_allowed(a, i);
        if (allowed && better) best = i;
        if (!allowed && draws) logits[i] = -INFINITY;
    }
    return draws && best != SC_NO_TOKEN ? sc_sampler_choose(sampler, logits, count) : best;
}

/* Whether the first byte of the shortest end closes a text, or after a cut a list or an object. */
static int may_force(const sc_answer *a, const ending *now) {
    if (now->first_token == SC_NO_TOKEN) return 0;
    if (sc_schema_in_text(a->schema, &a->state)) return now->first_byte == '"';
    return now->first_byte == '}' || now->first_byte == ']';
}

sc_status sc_answer_choose(sc_answer *a, float *logits, uint32_t left, sc_sampler *sampler, uint32_t *token) {
    if (left == 0 || a->ended) return SC_BAD_ARGUMENT;
    *token = choose_allowed(a, logits, sampler);
    if (*token == SC_NO_TOKEN) return SC_ANSWER_INCOMPLETE;
    if (is_end(a, *token)) {
        a->ended = 1;
        return SC_OK;
    }
    const int in_text = sc_schema_in_text(a->schema, &a->state);
    if (left <= a->near && (in_text || a->cut)) {
        sc_schema_state after = a->state;
        ending then, now;
        (void)push_token(a, &after, *token);
        const int ends = find_end(a, &after, &then);
        const uint32_t kept = !in_text || a->cut ? 0 : then.wanted < a->spare ? then.wanted : a->spare;
        if ((!ends || then.tokens + kept > left - 1) && find_end(a, &a->state, &now) && may_force(a, &now)) {
            *token = now.first_token;
            a->cut = 1;
        }
    }
    if (!push_token(a, &a->state, *token)) return SC_ANSWER_INCOMPLETE;
    a->ended = sc_schema_has_ended(&a->state);
    return a->ended || left > 1 ? SC_OK : SC_ANSWER_INCOMPLETE;
}

int sc_answer_allows(const sc_answer *a, uint32_t token) { return is_allowed(a, token); }

void sc_answer_spell(const sc_answer *a, uint32_t token, void (*byte)(void *context, uint8_t byte), void *context) {
    const sc_tokenizer *t = a->tokenizer;
    if (token == t->unknown || is_end(a, token)) return;
    const sc_text piece = sc_piece_text(t, token);
    for (uint32_t b = 0; piece.size == 0 && t->byte_ids != NULL && b < 256; b++)
        if (sc_byte_token(t, (uint8_t)b) == token) byte(context, (uint8_t)b);
    for (uint32_t i = 0; i < piece.size;) {
        const int space = t->kind != SC_BYTE_LEVEL_BPE && is_space_mark(piece.text + i, piece.size - i);
        byte(context, space ? ' ' : piece.text[i]);
        i += space ? 3 : 1;
    }
}

int sc_answer_has_ended(const sc_answer *a) { return a->ended; }
