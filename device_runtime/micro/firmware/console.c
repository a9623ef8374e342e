#include "console.h"

#include <string.h>

enum { STEP_BYTES = 256 };

void sc_console_say(sc_console *c, const char *text) {
    c->send(c->send_context, (const uint8_t *)text, (uint32_t)strlen(text));
}

void sc_console_say_number(sc_console *c, uint32_t number) {
    char digits[11];
    int at = 10;
    digits[10] = 0;
    do digits[--at] = (char)('0' + number % 10);
    while ((number /= 10) > 0);
    sc_console_say(c, digits + at);
}

void sc_console_prompt(sc_console *c) { sc_console_say(c, "\r\n> "); }

void sc_console_begin(sc_console *c) {
    memset(&c->options, 0, sizeof c->options);
    c->options.top_p = 1.0f;
    c->options.form = SC_WIRE_FORM_TEXT;
    c->answering = 0;
}

/* -- commands --------------------------------------------------------------------------------------------- */

typedef struct {
    uint64_t whole;
    float number;
    int good;
} argument;

static argument read_argument(const uint8_t *text, uint32_t size) {
    argument a = {0, 0.0f, 0};
    uint64_t scale = 0;
    for (uint32_t i = 0; i < size; i++) {
        if (text[i] == '.' && scale == 0) {
            scale = 1;
            continue;
        }
        if (text[i] < '0' || text[i] > '9' || a.whole > 999999999999999ull) {
            a.good = 0;
            return a;
        }
        a.whole = a.whole * 10 + (uint64_t)(text[i] - '0');
        scale *= 10;
        a.good = 1;
    }
    a.number = (float)a.whole / (float)(scale == 0 ? 1 : scale);
    if (scale > 1) a.whole = UINT64_MAX; /* no whole number */
    return a;
}

static const char HELP[] =
    "stonechat: a line is a message; its answer follows. Commands:\r\n"
    "/temperature X  0: the likeliest token, always\r\n"
    "/top-k N        draw from the N likeliest; 0: from all\r\n"
    "/top-p X        draw from the fewest that together have this probability\r\n"
    "/seed N         the same seed draws the same answer\r\n"
    "/max-new N      tokens of an answer; 0: until it ends\r\n"
    "/schema N       hold answers to the image's schema N; 0: none\r\n"
    "/last           tokens, times and confidence of the last answer\r\n"
    "/status         of the board\r\n"
    "/stop           end the answer that is being made";

static void set_schema(sc_console *c, const argument *a) {
    uint64_t identities[SC_WIRE_MAX_SCHEMAS];
    const uint32_t count = sc_generator_schemas(c->generator, identities);
    if (a->whole > count) {
        sc_console_say(c, "stonechat: the image has ");
        sc_console_say_number(c, count);
        sc_console_say(c, " schemas; convert with --schema for others");
        return;
    }
    c->options.schema = a->whole == 0 ? 0 : identities[a->whole - 1];
}

static void say_last(sc_console *c) {
    const sc_engine *e = &c->generator->engine;
    sc_console_say(c, "prompt ");
    sc_console_say_number(c, e->prompt_tokens);
    sc_console_say(c, " tokens, ");
    sc_console_say_number(c, e->cached_tokens);
    sc_console_say(c, " of them known; answer ");
    sc_console_say_number(c, e->completion_tokens);
    sc_console_say(c, " tokens; first after ");
    sc_console_say_number(c, c->first_ms - c->began_ms);
    sc_console_say(c, " ms, all after ");
    sc_console_say_number(c, c->last_ms - c->began_ms);
    sc_console_say(c, " ms");
    if (e->confidence > 0) {
        sc_console_say(c, "; confidence ");
        sc_console_say_number(c, (e->confidence * 100u + 32767u) / 65535u);
        sc_console_say(c, " %");
        for (uint32_t i = 0, any = 0; i < e->share_count; i++) {
            if (e->shares[i] < 0.0f) continue; /* a text of the model's own */
            sc_console_say(c, any ? ", " : "; by field ");
            sc_console_say_number(c, (uint32_t)(e->shares[i] * 100.0f + 0.5f));
            sc_console_say(c, " %");
            any = 1;
        }
    }
}

static int command(sc_console *c, const uint8_t *line, uint32_t size) {
    uint32_t word = 0, from;
    while (word < size && line[word] != ' ') word++;
    from = word;
    while (from < size && line[from] == ' ') from++;
    const argument a = read_argument(line + from, size - from);
#define IS(text) (word == sizeof text - 1 && memcmp(line, text, word) == 0)
    const int takes_whole = IS("/top-k") || IS("/seed") || IS("/max-new") || IS("/schema");
    if (IS("/temperature") || IS("/top-p") || takes_whole) {
        if (!a.good || (takes_whole && a.whole == UINT64_MAX)) sc_console_say(c, "stonechat: that is no number here");
        else if (IS("/temperature")) c->options.temperature = a.number;
        else if (IS("/top-p")) c->options.top_p = a.number > 1.0f ? 1.0f : a.number;
        else if (IS("/top-k")) c->options.top_k = (uint16_t)(a.whole > 65535 ? 65535 : a.whole);
        else if (IS("/seed")) c->options.seed = a.whole;
        else if (IS("/max-new")) c->options.max_new = (uint32_t)(a.whole > 1000000 ? 1000000 : a.whole);
        else set_schema(c, &a);
    } else if (IS("/last")) {
        say_last(c);
    } else if (IS("/help")) {
        sc_console_say(c, HELP);
    } else if (IS("/status")) {
        return 0;
    } else if (!IS("/stop")) {
        sc_console_say(c, "stonechat: there is no such command; /help lists them");
    }
#undef IS
    sc_console_prompt(c);
    return 1;
}

int sc_console_line(sc_console *c, const uint8_t *line, uint32_t size) {
    const char *why = "";
    if (c->answering) sc_console_stop(c, NULL);
    if (size > 0 && line[0] == '/') return command(c, line, size);
    c->line[0] = c->generator->has_chat ? 'u' : 'p';
    memcpy(c->line + 1, line, size);
    c->line[size + 1] = 0;
    c->began_ms = c->first_ms = c->now_ms();
    if (sc_generator_begin(c->generator, &c->options, c->line, size + 2, &why) != 0) {
        sc_console_say(c, "stonechat: ");
        sc_console_say(c, why);
        sc_console_prompt(c);
        return 1;
    }
    c->answering = 1;
    return 1;
}

void sc_console_step(sc_console *c) {
    uint8_t out[STEP_BYTES];
    uint32_t bytes, kept = 0;
    const char *why = "";
    const sc_step step = sc_generator_step(c->generator, out, sizeof out, &bytes, &why);
    for (uint32_t i = 0; i < bytes; i++) /* zeros belong to frames */
        if (out[i] != 0) out[kept++] = out[i];
    if (kept > 0) {
        if (c->first_ms == c->began_ms) c->first_ms = c->now_ms();
        c->send(c->send_context, out, kept);
    }
    if (step == SC_STEP_MORE) return;
    c->answering = 0;
    c->last_ms = c->now_ms();
    if (step == SC_STEP_FAILED) {
        sc_console_say(c, "stonechat: ");
        sc_console_say(c, why);
    }
    sc_console_prompt(c);
}

void sc_console_stop(sc_console *c, const char *why) {
    if (!c->answering) return;
    c->answering = 0;
    if (why != NULL) sc_console_say(c, why);
    sc_console_prompt(c);
}
