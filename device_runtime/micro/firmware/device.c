#include "device.h"

#include <string.h>

enum { SHORTEST_DEAF_MS = 20, MAGIC_BYTES = 4 };

static void say(sc_device *d, const char *text) { sc_console_say(&d->console, text); }

/* -- the model -------------------------------------------------------------------------------------------- */

static sc_wire_bytes words(const char *text) {
    const sc_wire_bytes bytes = {(const uint8_t *)text, (uint32_t)strlen(text)};
    return bytes;
}

static sc_status try_model(sc_device *d, const uint8_t *image, uint32_t bytes) {
    const sc_status status = sc_generator_open(&d->generator, image, bytes);
    d->has_model = status == SC_OK;
    return status;
}

/* An image of MCUboot's around the model's own, or the model's alone. */
static sc_status open_fixed(sc_device *d) {
    const uint8_t *p = d->image;
    if (memcmp(p, "SCMI", MAGIC_BYTES) == 0) return try_model(d, p, d->image_room);
    if (sc_u32(p) != 0x96f3b83d) return SC_NOT_AN_IMAGE;
    const uint32_t header = sc_u16(p + 8), payload = sc_u32(p + 12);
    if (header > d->image_room || payload > d->image_room - header) return SC_DAMAGED;
    return try_model(d, p + header, payload);
}

static sc_status open_slots(sc_device *d) {
    sc_status status = SC_NOT_AN_IMAGE;
    uint32_t slot = sc_update_choose(d->update, SC_MODEL);
    for (int tries = 0; slot != SC_NO_SLOT && tries < 2; tries++) {
        const sc_slot *found = sc_update_slot(d->update, SC_MODEL, slot);
        status = try_model(d, d->update->flash->bytes + found->payload_at, found->payload_bytes);
        if (status == SC_OK) {
            if (sc_update_is_trial(d->update, SC_MODEL))
                say(d, "stonechat: the new model has passed its self-test; a confirmation keeps it\r\n");
            return status;
        }
        say(d, "stonechat: the model in slot ");
        sc_console_say_number(&d->console, slot);
        say(d, " is refused: ");
        say(d, sc_status_text(status));
        say(d, "\r\n");
        slot = sc_update_reject(d->update, SC_MODEL);
    }
    return status;
}

/* -- saying who this is ----------------------------------------------------------------------------------- */

static void fill_hello(sc_device *d, uint32_t step_ms) {
    sc_wire_hello *h = &d->member.hello;
    const sc_generator *g = &d->generator;
    memset(h, 0, sizeof *h);
    h->largest_body = SC_LINE_BODY;
    h->window = SC_LINE_WINDOW;
    h->board = words(d->board);
    h->firmware = words(d->firmware);
    h->boots = d->boots;
    h->reset_cause = d->reset_cause;
    h->deaf_ms = (uint16_t)(2 * step_ms + SHORTEST_DEAF_MS > 65535 ? 65535 : 2 * step_ms + SHORTEST_DEAF_MS);
    if (!d->has_model) return;
    h->capabilities = SC_WIRE_CAPABILITY_TOKENS;
    if (g->has_tokenizer) h->capabilities |= SC_WIRE_CAPABILITY_TEXT;
    if (g->memory.logits != NULL) h->capabilities |= SC_WIRE_CAPABILITY_SAMPLING;
    if (g->schemas > 0) h->capabilities |= SC_WIRE_CAPABILITY_SCHEMAS;
    h->context = g->needs.context;
    h->vocabulary = g->needs.vocabulary;
    h->prefix = (uint16_t)g->needs.prefix;
    h->arena_bytes = (uint32_t)(g->needs.arena_bytes + g->needs.kv_cache_bytes);
    h->schema_count = (uint8_t)sc_generator_schemas(g, h->schemas);
    h->name.bytes = sc_generator_name(g, h->model, &h->name.size);
}

static void say_status(sc_device *d) {
    sc_console *c = &d->console;
    say(d, d->board);
    say(d, ", firmware ");
    say(d, d->firmware);
    say(d, ", up for ");
    sc_console_say_number(c, d->now_ms() / 1000);
    say(d, " s, start ");
    sc_console_say_number(c, d->boots);
    say(d, d->reset_cause == SC_WIRE_RESET_CAUSE_WATCHDOG  ? " by the watchdog"
           : d->reset_cause == SC_WIRE_RESET_CAUSE_COMMAND ? " by a command" : "");
    say(d, ", steps ");
    sc_console_say_number(c, d->member.steps);
    say(d, ", bytes lost ");
    sc_console_say_number(c, d->overruns);
    if (d->update != NULL) {
        say(d, d->update->layout->key != NULL ? ", signed images only" : ", images need no signature");
        for (uint32_t kind = 0; kind < SC_KINDS; kind++) {
            say(d, kind == SC_FIRMWARE ? ", firmware slot " : ", model slot ");
            if (d->update->running[kind] == SC_NO_SLOT) say(d, "none");
            else sc_console_say_number(c, d->update->running[kind]);
        }
    }
    sc_console_prompt(c);
}

void sc_device_begin(sc_device *d) {
    d->console.generator = &d->generator;
    d->console.send = d->member.send = d->smp.send = d->send;
    d->console.send_context = d->member.send_context = d->smp.send_context = d->send_context;
    d->console.now_ms = d->member.now_ms = d->now_ms;
    d->member.engine = &d->generator.engine;
    d->member.prompt = d->prompt;
    d->member.prompt_room = d->prompt_room;
    d->member.answer = d->answer;
    d->member.answer_room = d->answer_room;
    d->member.temperature = SC_WIRE_UNKNOWN_TEMPERATURE;
    d->smp.update = d->update;
    sc_console_begin(&d->console);
    if (d->reset_cause == SC_WIRE_RESET_CAUSE_WATCHDOG)
        say(d, "\r\nstonechat: the watchdog has restarted the board: a call of the engine had not come back\r\n");
    const uint32_t began_ms = d->now_ms();
    d->trouble = d->update != NULL ? open_slots(d) : open_fixed(d);
    fill_hello(d, (d->now_ms() - began_ms) / 8); /* the self-test has 8 steps, and its hash */
    if (d->has_model) {
        if (d->member.prompt_room > 4 * (d->generator.needs.context - 1) && !d->generator.has_tokenizer)
            d->member.prompt_room = 4 * (d->generator.needs.context - 1);
        say(d, "stonechat: ready, context ");
        sc_console_say_number(&d->console, d->generator.needs.context);
    } else {
        say(d, "stonechat: there is no model that works: ");
        say(d, sc_status_text(d->trouble));
        if (d->update != NULL) say(d, "; send one with `stonechat flash --model`");
    }
    sc_console_prompt(&d->console);
    sc_member_begin(&d->member);
}

/* -- the line --------------------------------------------------------------------------------------------- */

static void take_frame(sc_device *d, const uint8_t *body, uint32_t size) {
    const int starts = body[0] == SC_WIRE_START;
    if (starts && !d->has_model) {
        sc_wire_start start;
        const sc_wire_fault fault = {sc_wire_unpack_start(&start, body + 1, size - 1) ? start.request : 0,
                                     SC_WIRE_FAULT_CODE_FAILED, words("there is no model on the board")};
        uint8_t packed[64], framed[SC_LINE_FRAMED(64)];
        d->send(d->send_context, framed, sc_line_frame(packed, sc_wire_pack_fault(&fault, packed, 64), framed));
        return;
    }
    if (starts && d->fleet != NULL) sc_fleet_stop(d->fleet, "a request over the serial line takes the model.");
    if (starts) sc_console_stop(&d->console, "\r\nstonechat: a request of the bridge takes the model");
    d->member.overruns = d->overruns;
    sc_member_receive(&d->member, body, size);
}

static int is_asked_over_mqtt(const sc_device *d) { return d->fleet != NULL && sc_fleet_is_working(d->fleet); }

static void take_text(sc_device *d, const uint8_t *text, uint32_t size) {
    static const char STATUS[] = "/status";
    if (size == sizeof STATUS - 1 && memcmp(text, STATUS, size) == 0) {
        say_status(d);
    } else if (text[0] != '/' && !d->has_model) {
        say(d, "stonechat: there is no model that works");
        sc_console_prompt(&d->console);
    } else if (text[0] != '/' && (sc_member_is_working(&d->member) || is_asked_over_mqtt(d))) {
        say(d, "stonechat: a request of the bridge or over MQTT is being answered; wait for its end");
        sc_console_prompt(&d->console);
    } else {
        if (text[0] != '/') sc_member_forget(&d->member); /* its answer has gone out, and the kv_cache is used again */
        (void)sc_console_line(&d->console, text, size);
    }
}

void sc_device_receive(sc_device *d, uint8_t byte) {
    const sc_line_kind kind = sc_line_push(&d->line, byte);
    const uint8_t *bytes = d->line.bytes + d->line.start;
    switch (kind) {
    case SC_LINE_NOTHING: break;
    case SC_LINE_FRAME_BODY: take_frame(d, bytes, d->line.size); break;
    case SC_LINE_PACKET: (void)sc_smp_line(&d->smp, bytes, d->line.size); break;
    case SC_LINE_TEXT: take_text(d, bytes, d->line.size); break;
    case SC_LINE_TEXT_TOO_LONG:
        say(d, "stonechat: the line is longer than 1,024 bytes; shorten it");
        sc_console_prompt(&d->console);
        break;
    }
}

int sc_device_is_working(const sc_device *d) {
    return d->console.answering || sc_member_is_working(&d->member) || is_asked_over_mqtt(d);
}

void sc_device_step(sc_device *d) {
    if (is_asked_over_mqtt(d)) {
        sc_member_forget(&d->member); /* its answer has gone out, and the kv_cache is used again */
        sc_fleet_step(d->fleet);
    } else if (d->console.answering) {
        sc_console_step(&d->console);
    } else {
        sc_member_step(&d->member);
    }
    if (d->fleet != NULL) d->fleet->elsewhere = d->console.answering || sc_member_is_working(&d->member);
}
