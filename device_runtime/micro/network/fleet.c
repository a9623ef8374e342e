#include "fleet.h"

#include <string.h>

#include "json_text.h"
#include "sha256.h"

enum { STEP_BYTES = 256, HEALTH_MS = 60000, IDENTITY_BYTES = 8 };
static const char GENERATE[] = "/in/generate", CANCEL[] = "/in/cancel", REPLY[] = "/out/reply/";

/* -- topics ----------------------------------------------------------------------------------------------- */

static void join(char *to, const char *first, const char *second) {
    const size_t a = strlen(first), b = strlen(second);
    if (a + b >= SC_FLEET_TOPIC) {
        to[0] = 0;
        return;
    }
    memcpy(to, first, a);
    memcpy(to + a, second, b + 1);
}

static const char *topic_of(sc_fleet *f, const char *rest) {
    join(f->topic, f->root, rest);
    return f->topic;
}

const char *sc_fleet_will(sc_fleet *f) { return topic_of(f, "/out/state"); }

const char *sc_fleet_filter(sc_fleet *f, uint32_t number) {
    static const char *const FILTERS[SC_FLEET_FILTERS] = {"/in/generate", "/in/generate/+", "/in/cancel",
                                                          "/in/cancel/+"};
    return topic_of(f, FILTERS[number]);
}

/* -- what it says of itself ------------------------------------------------------------------------------- */

static sc_json_writer write_reply(sc_fleet *f) {
    const sc_json_writer w = {f->reply, 0, sizeof f->reply, 1};
    return w;
}

static int state_of(uint8_t *to, uint32_t room, const char *state, uint32_t boots) {
    sc_json_writer w = {to, 0, room, 1};
    sc_json_put(&w, "{\"state\":\"");
    sc_json_put(&w, state);
    sc_json_put(&w, "\",\"boot\":");
    sc_json_put_number(&w, boots);
    sc_json_put(&w, ",\"mqtt\":3}");
    return w.good ? (int)w.size : 0;
}

static void say_state(sc_fleet *f) {
    uint8_t payload[64];
    const int size = state_of(payload, sizeof payload, f->busy ? "busy" : "ready", f->boots);
    if (f->connected) (void)f->publish(f->publish_context, sc_fleet_will(f), payload, (uint32_t)size, 1, 1);
}

static int say_info(sc_fleet *f) {
    uint8_t payload[512];
    sc_json_writer w = {payload, 0, sizeof payload, 1};
    sc_json_put(&w, "{\"device\":");
    sc_json_put_text(&w, f->device);
    sc_json_put(&w, ",\"board\":");
    sc_json_put_text(&w, f->board);
    sc_json_put(&w, ",\"version\":");
    sc_json_put_text(&w, f->firmware);
    sc_json_put(&w, ",\"models\":[");
    sc_json_put_text(&w, f->model);
    sc_json_put(&w, "],\"capabilities\":[\"generate\",\"cancel\"");
    if (f->generator->schemas > 0) sc_json_put(&w, ",\"schema\"");
    sc_json_put(&w, "],\"firmware\":");
    sc_json_put_text(&w, f->firmware);
    sc_json_put(&w, "}");
    return f->publish(f->publish_context, topic_of(f, "/out/info"), payload, w.size, 1, 1);
}

static void say_health(sc_fleet *f) {
    uint8_t payload[256];
    sc_json_writer w = {payload, 0, sizeof payload, 1};
    sc_json_put(&w, "{\"uptime_s\":");
    sc_json_put_number(&w, f->now_ms() / 1000);
    sc_json_put(&w, ",\"board_starts\":");
    sc_json_put_number(&w, f->boots);
    sc_json_put(&w, ",\"arena_bytes\":");
    sc_json_put_number(&w, f->generator->needs.arena_bytes + f->generator->needs.kv_cache_bytes);
    sc_json_put(&w, ",\"served\":");
    sc_json_put_number(&w, f->served);
    sc_json_put(&w, ",\"refused\":");
    sc_json_put_number(&w, f->refused);
    sc_json_put(&w, ",\"dropped\":");
    sc_json_put_number(&w, f->dropped);
    sc_json_put(&w, "}");
    (void)f->publish(f->publish_context, topic_of(f, "/out/health"), payload, w.size, 0, 0);
}

void sc_fleet_begin(sc_fleet *f) {
    join(f->root, "stonechat/1/", f->device);
    f->root_size = (uint32_t)strlen(f->root);
    (void)state_of((uint8_t *)f->lost, sizeof f->lost - 1, "lost", f->boots);
}

void sc_fleet_connected(sc_fleet *f) {
    f->connected = 1;
    f->announced = 0;
    f->health_ms = f->now_ms() - HEALTH_MS;
}

void sc_fleet_disconnected(sc_fleet *f) { f->connected = 0; }

/* -- replies ---------------------------------------------------------------------------------------------- */

static void open_reply(sc_json_writer *w, const sc_fleet_address *a) {
    sc_json_put(w, "{");
    if (a->id_size == 0) return;
    sc_json_put(w, "\"id\":\"");
    sc_json_put_bytes(w, a->id, a->id_size); /* with its own escapes */
    sc_json_put(w, "\",");
}

/* What is in f->reply goes out, now or in sc_fleet_tick. */
static void send_reply(sc_fleet *f, const sc_fleet_address *a, uint32_t size) {
    f->last = *a;
    f->reply_size = size;
    f->pending = 1;
    sc_fleet_tick(f);
}

static void refuse(sc_fleet *f, const sc_fleet_address *a, const char *code, const char *message) {
    if (f->pending) { /* an answer still waits for the broker, and its place is taken */
        f->dropped++;
        return;
    }
    sc_json_writer w = write_reply(f);
    open_reply(&w, a);
    sc_json_put(&w, "\"error\":{\"code\":");
    sc_json_put_text(&w, code);
    sc_json_put(&w, ",\"message\":");
    sc_json_put_text(&w, message);
    if (strcmp(code, "busy") == 0) sc_json_put(&w, ",\"retry_after_ms\":1000");
    sc_json_put(&w, "}}");
    f->refused++;
    send_reply(f, a, w.size);
}

void sc_fleet_tick(sc_fleet *f) {
    if (!f->connected) return;
    if (!f->announced) {
        if (say_info(f) != 0) return;
        f->announced = 1;
        say_state(f);
    }
    if (f->pending) {
        char topic[SC_FLEET_TOPIC];
        memcpy(topic, f->last.to, f->last.to_size);
        topic[f->last.to_size] = 0;
        if (f->publish(f->publish_context, topic, f->reply, f->reply_size, 1, 0) == 0) f->pending = 0;
    }
    if (f->now_ms() - f->health_ms >= HEALTH_MS) {
        f->health_ms = f->now_ms();
        say_health(f);
    }
}

/* -- requests --------------------------------------------------------------------------------------------- */

typedef struct {
    uint8_t identity[IDENTITY_BYTES];
    uint8_t typed;
} asked_schema;

/* The identity of a schema that is written as its identity is defined (docs/reference/serial-protocol.md, section 6),
 * whatever spaces are between its parts. */
static void identify(const uint8_t *text, uint32_t size, asked_schema *s) {
    sc_sha256 sum;
    uint8_t hash[32];
    int quoted = 0;
    sc_sha256_start(&sum);
    for (uint32_t i = 0; i < size; i++) {
        const uint8_t byte = text[i];
        if (!quoted && (byte == ' ' || byte == '\t' || byte == '\n' || byte == '\r')) continue;
        if (byte == '"') quoted = !quoted;
        const uint32_t count = quoted && byte == '\\' && i + 1 < size ? 2 : 1;
        sc_sha256_add(&sum, text + i, count);
        i += count - 1;
    }
    sc_sha256_finish(&sum, hash);
    memcpy(s->identity, hash, IDENTITY_BYTES);
    s->typed = 1;
}

static int is(const uint8_t *name, uint32_t size, const char *text) {
    return size == strlen(text) && memcmp(name, text, size) == 0;
}

/* Returns why it is refused, or NULL. */
static const char *take_message(sc_fleet *f, sc_json_reader *r) {
    int first = 1;
    const uint32_t at = f->text_size;
    uint8_t role = 0, content = 0;
    if (at == sizeof f->text) return "the conversation is longer than this device takes.";
    f->text_size++; /* for its role */
    sc_json_take(r, '{');
    while (sc_json_more(r, '}', &first)) {
        const uint8_t *name, *value;
        uint32_t size, value_size;
        sc_json_raw(r, &name, &size);
        sc_json_take(r, ':');
        if (is(name, size, "role")) {
            sc_json_raw(r, &value, &value_size);
            role = is(value, value_size, "system") ? 's' : is(value, value_size, "user") ? 'u'
                 : is(value, value_size, "assistant") ? 'a' : 0;
        } else if (is(name, size, "content")) {
            f->text_size += sc_json_string(r, f->text + f->text_size, (uint32_t)sizeof f->text - f->text_size - 1);
            content = 1;
        } else {
            return "a message has a role and a content, and nothing else.";
        }
    }
    if (!r->good) return "its messages cannot be read, or are longer than this device takes.";
    if (role == 0 || !content) return "a message has a role (system, user, assistant) and a content.";
    f->text[at] = role;
    f->text[f->text_size++] = 0;
    return NULL;
}

static const char *take_field(sc_fleet *f, sc_json_reader *r, const uint8_t *name, uint32_t size, asked_schema *schema) {
    static const char *const IGNORED[] = {"stream", "accept", "model", "task"};
    const uint8_t *text;
    uint32_t bytes;
    int first = 1;
    const char *why = NULL;
    sc_wire_start *s = &f->start;
    if (is(name, size, "prompt")) {
        if (f->text_size > 0) return "a request needs either prompt or messages, and not both.";
        f->text[f->text_size++] = f->generator->has_chat ? 'u' : 'p';
        f->text_size += sc_json_string(r, f->text + 1, sizeof f->text - 2);
        f->text[f->text_size++] = 0;
        return r->good ? NULL : "its prompt cannot be read, or is longer than this device takes.";
    }
    if (is(name, size, "messages")) {
        if (f->text_size > 0) return "a request needs either prompt or messages, and not both.";
        for (sc_json_take(r, '['); why == NULL && sc_json_more(r, ']', &first);) why = take_message(f, r);
        return why;
    }
    if (is(name, size, "reply_to") || is(name, size, "id")) {
        sc_json_skip(r, NULL, NULL); /* read before */
        return NULL;
    }
    if (is(name, size, "schema")) {
        sc_json_skip(r, &text, &bytes);
        if (r->good && bytes > 0 && *text == '{') identify(text, bytes, schema);
        return NULL;
    }
    for (uint32_t i = 0; i < sizeof IGNORED / sizeof *IGNORED; i++)
        if (is(name, size, IGNORED[i])) {
            sc_json_skip(r, NULL, NULL);
            return NULL;
        }
    const int known = is(name, size, "max_new") || is(name, size, "temperature") || is(name, size, "top_k") ||
                      is(name, size, "top_p") || is(name, size, "seed") || is(name, size, "deadline_ms");
    if (!known) return "it has a field that this device does not know: docs/reference/mqtt.md.";
    if (sc_json_peek(r) == 'n') {
        sc_json_skip(r, NULL, NULL);
        return NULL;
    }
    const sc_json_number n = sc_json_take_number(r);
    if (is(name, size, "temperature")) s->temperature = (float)n.value;
    else if (is(name, size, "top_p")) s->top_p = (float)n.value;
    else if (n.whole == UINT64_MAX) return "max_new, top_k, seed and deadline_ms are whole numbers.";
    else if (is(name, size, "max_new")) s->max_new = (uint32_t)(n.whole > 1000000 ? 1000000 : n.whole);
    else if (is(name, size, "top_k")) s->top_k = (uint16_t)(n.whole > 65535 ? 65535 : n.whole);
    else if (is(name, size, "seed")) s->seed = n.whole;
    else f->deadline_ms = (uint32_t)(n.whole > INT32_MAX ? INT32_MAX : n.whole);
    return NULL;
}

/* Where the answer goes: read before all else, so that a refusal finds its way. 0: nowhere that is allowed. */
static int find_address(const sc_fleet *f, const uint8_t *payload, uint32_t size, sc_fleet_address *a) {
    sc_json_reader r = {payload, payload + size, 1};
    int first = 1;
    memset(a, 0, sizeof *a);
    sc_json_take(&r, '{');
    while (sc_json_more(&r, '}', &first)) {
        const uint8_t *name, *value;
        uint32_t bytes, value_size;
        sc_json_raw(&r, &name, &bytes);
        sc_json_take(&r, ':');
        if (is(name, bytes, "reply_to") && sc_json_peek(&r) == '"') {
            a->to_size = sc_json_string(&r, a->to, sizeof a->to - 1);
        } else if (is(name, bytes, "id") && sc_json_peek(&r) == '"') {
            sc_json_raw(&r, &value, &value_size);
            if (value_size > sizeof a->id) return 0;
            memcpy(a->id, value, value_size);
            a->id_size = value_size;
        } else {
            sc_json_skip(&r, NULL, NULL);
        }
        if (!r.good) break; /* what was found so far may do */
    }
    const uint32_t root = f->root_size, tree = sizeof REPLY - 1;
    if (a->to_size <= root + tree || memcmp(a->to, f->root, root) != 0 || memcmp(a->to + root, REPLY, tree) != 0)
        return 0;
    for (uint32_t i = 0; i < a->to_size; i++)
        if (a->to[i] == '+' || a->to[i] == '#' || a->to[i] == 0) return 0;
    return 1;
}

static int same(const sc_fleet_address *a, const sc_fleet_address *b) {
    return a->to_size == b->to_size && a->id_size == b->id_size && memcmp(a->to, b->to, a->to_size) == 0 &&
           memcmp(a->id, b->id, a->id_size) == 0;
}

static void finish(sc_fleet *f, const char *how);

static void take_request(sc_fleet *f, const sc_fleet_address *a, const uint8_t *payload, uint32_t size) {
    sc_json_reader r = {payload, payload + size, 1};
    asked_schema schema = {{0}, 0};
    const char *why = NULL;
    int first = 1;
    if (a->id_size > 0 && (same(a, &f->last) || (f->busy && same(a, &f->address)))) return; /* it came twice */
    if (f->busy || f->pending || f->elsewhere) {
        refuse(f, a, "busy", "another request is being answered; ask again.");
        return;
    }
    if (!*f->has_model) {
        refuse(f, a, "unavailable", "there is no model on the board.");
        return;
    }
    memset(&f->start, 0, sizeof f->start);
    f->start.top_p = 1.0f;
    f->start.form = SC_WIRE_FORM_TEXT;
    f->text_size = f->answer_size = f->deadline_ms = 0;
    sc_json_take(&r, '{');
    while (why == NULL && sc_json_more(&r, '}', &first)) {
        const uint8_t *name;
        uint32_t bytes;
        sc_json_raw(&r, &name, &bytes);
        sc_json_take(&r, ':');
        if (r.good) why = take_field(f, &r, name, bytes, &schema);
    }
    if (why == NULL && (!r.good || sc_json_peek(&r) != 0)) why = "it is not JSON, or not as this device reads it.";
    if (why == NULL && f->text_size == 0) why = "a request needs either prompt or messages, and not both.";
    if (why != NULL) {
        refuse(f, a, "invalid_request", why);
        return;
    }
    for (uint32_t i = 0; schema.typed && i < IDENTITY_BYTES; i++)
        f->start.schema |= (uint64_t)schema.identity[i] << (8 * i);
    const uint8_t code = sc_generator_begin(f->generator, &f->start, f->text, f->text_size, &why);
    if (code != 0) {
        refuse(f, a, code == SC_WIRE_FAULT_CODE_TOO_LONG ? "context_overflow" : schema.typed ? "schema" : "configuration",
               why);
        return;
    }
    f->address = *a;
    f->began_ms = f->first_ms = f->now_ms();
    f->busy = 1;
    say_state(f);
}

static int begins_with(const sc_fleet *f, const char *topic, const char *rest) {
    const size_t size = strlen(rest);
    if (strncmp(topic, f->root, f->root_size) != 0 || strncmp(topic + f->root_size, rest, size) != 0) return 0;
    return topic[f->root_size + size] == 0 || topic[f->root_size + size] == '/';
}

void sc_fleet_message(sc_fleet *f, const char *topic, const uint8_t *payload, uint32_t size, int retained) {
    sc_fleet_address a;
    const int generate = begins_with(f, topic, GENERATE);
    if ((!generate && !begins_with(f, topic, CANCEL)) || !find_address(f, payload, size, &a)) {
        f->dropped++;
        return;
    }
    if (retained) refuse(f, &a, "retained", "a command must not be retained.");
    else if (generate) take_request(f, &a, payload, size);
    else if (f->busy && same(&a, &f->address)) finish(f, "cancelled");
}

/* -- answers ---------------------------------------------------------------------------------------------- */

static void put_confidence(sc_fleet *f, sc_json_writer *w) {
    const sc_generator *g = f->generator;
    sc_json_reader r = {f->answer, f->answer + f->answer_size, 1};
    int first = 1, any = 0;
    if (!g->typed || g->field_count == 0 || sc_json_peek(&r) != '{') return;
    sc_json_put(w, ",\"confidence\":{");
    sc_json_take(&r, '{');
    for (uint32_t i = 0; i < g->field_count && sc_json_more(&r, '}', &first); i++) {
        const uint8_t *name;
        uint32_t size;
        sc_json_raw(&r, &name, &size);
        sc_json_take(&r, ':');
        sc_json_skip(&r, NULL, NULL);
        if (g->shares[i] < 0.0f) continue; /* a text of the model's own */
        sc_json_put(w, any ? ",\"" : "\"");
        sc_json_put_bytes(w, name, size);
        sc_json_put(w, "\":");
        sc_json_put_share(w, (double)g->shares[i], 4);
        any = 1;
    }
    sc_json_put(w, "}");
}

static void finish(sc_fleet *f, const char *how) {
    const sc_engine *e = &f->generator->engine;
    const uint32_t now = f->now_ms(), decode_ms = now - f->first_ms;
    sc_json_writer w = write_reply(f);
    f->busy = 0;
    open_reply(&w, &f->address);
    sc_json_put(&w, "\"seq\":0,\"text\":");
    sc_json_put_string(&w, f->answer, f->answer_size);
    sc_json_put(&w, ",\"finish\":\"");
    sc_json_put(&w, how);
    sc_json_put(&w, "\",\"usage\":{\"prompt_tokens\":");
    sc_json_put_number(&w, e->prompt_tokens);
    sc_json_put(&w, ",\"cached_tokens\":");
    sc_json_put_number(&w, e->cached_tokens);
    sc_json_put(&w, ",\"completion_tokens\":");
    sc_json_put_number(&w, e->completion_tokens);
    sc_json_put(&w, "},\"ttft_ms\":");
    sc_json_put_number(&w, f->first_ms - f->began_ms);
    sc_json_put(&w, ",\"tps\":");
    sc_json_put_share(&w, e->completion_tokens > 1 && decode_ms > 0
                              ? (double)(e->completion_tokens - 1) * 1000.0 / (double)decode_ms : 0.0, 2);
    if (strcmp(how, "stop") == 0) put_confidence(f, &w);
    sc_json_put(&w, ",\"done\":true}");
    if (w.good) {
        f->served++;
        send_reply(f, &f->address, w.size);
    } else {
        f->pending = 0;
        refuse(f, &f->address, "failed", "the answer is longer than this device can send.");
    }
    say_state(f);
}

int sc_fleet_is_working(const sc_fleet *f) { return f->busy; }

void sc_fleet_step(sc_fleet *f) {
    uint32_t bytes;
    const char *why = "";
    if (!f->busy) return;
    if (f->deadline_ms > 0 && f->now_ms() - f->began_ms > f->deadline_ms) {
        finish(f, "deadline");
        return;
    }
    const uint32_t left = (uint32_t)sizeof f->answer - f->answer_size;
    const sc_step step = sc_generator_step(f->generator, f->answer + f->answer_size, left, &bytes, &why);
    if (step == SC_STEP_FAILED) {
        const int incomplete = f->generator->typed;
        f->busy = 0;
        refuse(f, &f->address, incomplete ? "incomplete" : "failed", why);
        say_state(f);
        return;
    }
    if (f->generator->made == 1) f->first_ms = f->now_ms();
    f->answer_size += bytes;
    if (step == SC_STEP_MORE) return;
    if (f->generator->typed && step == SC_STEP_LENGTH) {
        f->busy = 0;
        refuse(f, &f->address, "incomplete", "the answer reached its limit before it fitted its schema.");
        say_state(f);
        return;
    }
    finish(f, step == SC_STEP_STOP ? "stop" : "length");
}

void sc_fleet_stop(sc_fleet *f, const char *why) {
    if (!f->busy) return;
    f->busy = 0;
    refuse(f, &f->address, "unavailable", why);
    say_state(f);
}
