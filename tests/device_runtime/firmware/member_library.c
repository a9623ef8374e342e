/* The board's side of the serial protocol with a scripted engine, for tests in Python: two steps for a prompt of any
 * length, then tokens 11 and 12, then a stop token. */
#include <string.h>

#include "line.h"
#include "member.h"

static sc_member member;
static sc_engine engine;
static sc_line line;
static uint8_t prompt[1020], answer[1024], out[65536];
static uint32_t out_size, step_number;

static void send(void *context, const uint8_t *bytes, uint32_t size) {
    (void)context;
    if (size > sizeof out - out_size) return;
    memcpy(out + out_size, bytes, size);
    out_size += size;
}

static uint32_t now_ms(void) { return 0; }

static uint8_t begin(void *context, const sc_wire_start *start, const uint8_t *bytes, uint32_t size, const char **why) {
    (void)context, (void)start, (void)bytes, (void)why;
    engine.prompt_tokens = size / 4;
    engine.completion_tokens = step_number = 0;
    return 0;
}

static sc_step step(void *context, uint8_t *to, uint32_t room, uint32_t *bytes, const char **why) {
    (void)context, (void)why;
    const uint32_t number = step_number++;
    *bytes = 0;
    if (number == 0) return SC_STEP_MORE;
    engine.completion_tokens++;
    if (number == 3) return SC_STEP_STOP;
    if (room < 4) return SC_STEP_FAILED;
    memset(to, 0, 4);
    to[0] = (uint8_t)(10 + number);
    *bytes = 4;
    return SC_STEP_MORE;
}

void test_begin(void) {
    static const char name[] = "scripted";
    memset(&member, 0, sizeof member);
    memset(&line, 0, sizeof line);
    engine.begin = begin;
    engine.step = step;
    member.engine = &engine;
    member.prompt = prompt;
    member.prompt_room = sizeof prompt;
    member.answer = answer;
    member.answer_room = sizeof answer;
    member.send = send;
    member.now_ms = now_ms;
    member.temperature = 415;
    member.hello.capabilities = SC_WIRE_CAPABILITY_TOKENS;
    member.hello.largest_body = 256;
    member.hello.window = 328;
    member.hello.context = 256;
    member.hello.vocabulary = 32000;
    member.hello.prefix = 1;
    member.hello.deaf_ms = 120;
    member.hello.name.bytes = (const uint8_t *)name;
    member.hello.name.size = sizeof name - 1;
    out_size = 0;
    sc_member_begin(&member);
    out_size = 0;
}

void test_receive(const uint8_t *bytes, uint32_t size) {
    for (uint32_t i = 0; i < size; i++)
        if (sc_line_push(&line, bytes[i]) == SC_LINE_FRAME_BODY)
            sc_member_receive(&member, line.bytes + line.start, line.size);
}

void test_step(void) { sc_member_step(&member); }

/* What has been sent since the last call. */
uint32_t test_sent(uint8_t *to) {
    const uint32_t size = out_size;
    memcpy(to, out, size);
    out_size = 0;
    return size;
}

/* What the line completes: kind and size as a byte and two, then the bytes, one after the other. */
uint32_t test_line(const uint8_t *bytes, uint32_t size, uint8_t *to) {
    uint32_t at = 0;
    static sc_line fresh;
    memset(&fresh, 0, sizeof fresh);
    for (uint32_t i = 0; i < size; i++) {
        const sc_line_kind kind = sc_line_push(&fresh, bytes[i]);
        if (kind == SC_LINE_NOTHING) continue;
        to[at++] = (uint8_t)kind;
        to[at++] = (uint8_t)fresh.size;
        to[at++] = (uint8_t)(fresh.size >> 8);
        memcpy(to + at, fresh.bytes + fresh.start, fresh.size);
        at += fresh.size;
    }
    return at;
}

uint32_t test_frame(const uint8_t *body, uint32_t size, uint8_t *to) { return sc_line_frame(body, size, to); }
