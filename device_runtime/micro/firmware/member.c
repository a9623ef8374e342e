#include "member.h"

#include <string.h>

#include "line.h"

enum { PIECE_BYTES = 64, DONE_BYTES = 128, LARGEST_SENT = 224 };

static void send_body(sc_member *m, const uint8_t *body, uint32_t size) {
    uint8_t framed[SC_LINE_FRAMED(LARGEST_SENT)];
    if (size > 0 && size <= LARGEST_SENT) m->send(m->send_context, framed, sc_line_frame(body, size, framed));
}

static void send_hello(sc_member *m) {
    uint8_t body[LARGEST_SENT];
    m->hello.version = m->version;
    send_body(m, body, sc_wire_pack_hello(&m->hello, body, sizeof body, SC_WIRE_VERSION));
}

static void send_fault(sc_member *m, uint32_t request, uint8_t code, const char *why) {
    const sc_wire_fault fault = {request, code, {(const uint8_t *)why, (uint32_t)strlen(why)}};
    uint8_t body[LARGEST_SENT];
    send_body(m, body, sc_wire_pack_fault(&fault, body, sizeof body));
}

static void send_taken(sc_member *m) {
    const sc_wire_taken taken = {m->start.request, m->taken};
    uint8_t body[16];
    send_body(m, body, sc_wire_pack_taken(&taken, body, sizeof body));
}

static void send_status(sc_member *m) {
    const sc_wire_status status = {m->start.request, m->work,        m->length,  m->now_ms(),
                                   m->temperature,   m->steps, m->overruns};
    uint8_t body[40];
    send_body(m, body, sc_wire_pack_status(&status, body, sizeof body, m->version));
}

/* What was not sent of the answer; returns whether there was anything. */
static int send_answer(sc_member *m) {
    uint8_t body[DONE_BYTES];
    int any = 0;
    while (m->sent < m->length) {
        const uint32_t left = m->length - m->sent, size = left < PIECE_BYTES ? left : PIECE_BYTES;
        const sc_wire_piece piece = {m->start.request, m->sent, {m->answer + m->sent, size}};
        send_body(m, body, sc_wire_pack_piece(&piece, body, sizeof body));
        m->sent += size;
        any = 1;
    }
    if (m->work != SC_WIRE_WORK_DONE) return any;
    send_body(m, body, sc_wire_pack_done(&m->done, body, sizeof body, m->version));
    return 1;
}

static void fail(sc_member *m, uint8_t code, const char *why) {
    send_fault(m, m->start.request, code, why);
    sc_member_forget(m);
}

static void finish(sc_member *m, uint8_t how) {
    const int answering = m->work == SC_WIRE_WORK_ANSWER;
    memset(&m->done, 0, sizeof m->done);
    m->done.request = m->start.request;
    m->done.length = m->length;
    m->done.finish = how;
    if (answering) {
        m->done.prompt_tokens = m->engine->prompt_tokens;
        m->done.cached_tokens = m->engine->cached_tokens;
        m->done.completion_tokens = m->engine->completion_tokens;
        m->done.first_ms = m->first_ms - m->began_ms;
        m->done.decode_ms = m->now_ms() - m->first_ms;
        if (how == SC_WIRE_FINISH_STOP) {
            m->done.confidence = m->engine->confidence;
            m->done.share_count = (uint8_t)m->engine->share_count;
            for (uint32_t i = 0; i < m->engine->share_count; i++) m->done.shares[i] = m->engine->shares[i];
        }
    }
    m->work = SC_WIRE_WORK_DONE;
}

static void begin(sc_member *m, const sc_wire_start *start) {
    m->start = *start;
    m->work = SC_WIRE_WORK_PROMPT;
    m->taken = m->length = m->sent = 0;
    if (start->prompt_bytes == 0 || start->prompt_bytes > m->prompt_room)
        fail(m, SC_WIRE_FAULT_CODE_TOO_LONG, "the prompt has no bytes, or more than the board has room for");
    else send_taken(m);
}

static void take(sc_member *m, const sc_wire_prompt *part) {
    if (m->work == SC_WIRE_WORK_PROMPT && part->offset == m->taken) {
        const uint32_t left = m->start.prompt_bytes - m->taken;
        const uint32_t size = part->data.size < left ? part->data.size : left;
        if (size > 0) memcpy(m->prompt + m->taken, part->data.bytes, size);
        m->taken += size;
        if (m->taken == m->start.prompt_bytes) {
            const char *why = "";
            m->work = SC_WIRE_WORK_PREFILL;
            m->began_ms = m->now_ms();
            const uint8_t code = m->engine->begin(m->engine->context, &m->start, m->prompt, m->taken, &why);
            if (code != 0) {
                fail(m, code, why);
                return;
            }
        }
    }
    send_taken(m);
}

static void receive_request(sc_member *m, const sc_wire_start *start) {
    if (start->request == m->start.request && start->request != 0) send_taken(m);
    else if (start->request == 0) send_fault(m, 0, SC_WIRE_FAULT_CODE_MALFORMED, "a request has a number");
    else begin(m, start);
}

void sc_member_receive(sc_member *m, const uint8_t *body, uint32_t size) {
    union {
        sc_wire_greet greet;
        sc_wire_start start;
        sc_wire_prompt prompt;
        sc_wire_resume resume;
        sc_wire_cancel cancel;
    } u;
    const uint8_t *rest = body + 1;
    const uint32_t left = size - 1;
    uint32_t request = 0;
    int good = 0;
    switch (body[0]) {
    case SC_WIRE_GREET:
        if (!sc_wire_unpack_greet(&u.greet, rest, left)) break;
        m->version = u.greet.version >= SC_WIRE_VERSION ? SC_WIRE_VERSION : u.greet.version < 1 ? 1 : u.greet.version;
        send_hello(m);
        return;
    case SC_WIRE_PING: send_status(m); return;
    case SC_WIRE_START:
        if (!sc_wire_unpack_start(&u.start, rest, left)) break;
        receive_request(m, &u.start);
        return;
    case SC_WIRE_PROMPT:
        good = sc_wire_unpack_prompt(&u.prompt, rest, left);
        request = u.prompt.request;
        break;
    case SC_WIRE_RESUME:
        good = sc_wire_unpack_resume(&u.resume, rest, left);
        request = u.resume.request;
        break;
    case SC_WIRE_CANCEL:
        good = sc_wire_unpack_cancel(&u.cancel, rest, left);
        request = u.cancel.request;
        break;
    default: break;
    }
    if (!good) {
        send_fault(m, 0, SC_WIRE_FAULT_CODE_MALFORMED, "a message that cannot be read");
    } else if (request == 0 || request != m->start.request) {
        send_fault(m, request, SC_WIRE_FAULT_CODE_UNKNOWN_REQUEST, "");
    } else if (body[0] == SC_WIRE_PROMPT) {
        take(m, &u.prompt);
    } else if (body[0] == SC_WIRE_RESUME) {
        m->sent = u.resume.offset < m->length ? u.resume.offset : m->length;
        if (!send_answer(m)) send_status(m);
    } else {
        if (m->work != SC_WIRE_WORK_DONE) finish(m, SC_WIRE_FINISH_CANCELLED);
        send_answer(m);
    }
}

int sc_member_is_working(const sc_member *m) {
    return m->work == SC_WIRE_WORK_PREFILL || m->work == SC_WIRE_WORK_ANSWER;
}

void sc_member_step(sc_member *m) {
    uint32_t bytes = 0;
    const char *why = "the model failed";
    if (!sc_member_is_working(m)) return;
    m->steps++;
    const sc_step step =
        m->engine->step(m->engine->context, m->answer + m->length, m->answer_room - m->length, &bytes, &why);
    if (step == SC_STEP_FAILED) {
        fail(m, SC_WIRE_FAULT_CODE_FAILED, why);
        return;
    }
    if (m->work == SC_WIRE_WORK_PREFILL && (bytes > 0 || step != SC_STEP_MORE)) {
        m->work = SC_WIRE_WORK_ANSWER;
        m->first_ms = m->now_ms();
    }
    m->length += bytes;
    if (step != SC_STEP_MORE) finish(m, step == SC_STEP_STOP ? SC_WIRE_FINISH_STOP : SC_WIRE_FINISH_LENGTH);
    if (m->sent < m->length || m->work == SC_WIRE_WORK_DONE) send_answer(m);
}

void sc_member_forget(sc_member *m) {
    memset(&m->start, 0, sizeof m->start);
    m->work = SC_WIRE_WORK_IDLE;
    m->length = m->sent = m->taken = 0;
}

void sc_member_begin(sc_member *m) {
    sc_member_forget(m);
    m->version = 1; /* nobody has said yet that it speaks a later one */
    m->steps = 0;
    m->hello.newest = SC_WIRE_VERSION;
    send_hello(m);
}
