/* The board's side of the serial protocol (docs/reference/serial-protocol.md), versions 1 and 2: fixed buffers, no
 * timers, no retransmission. It answers frames, and lets its engine take one step at a time in between. */
#ifndef SC_MEMBER_H
#define SC_MEMBER_H

#include <stdint.h>

#include "sc_wire.h"

typedef enum { SC_STEP_MORE, SC_STEP_STOP, SC_STEP_LENGTH, SC_STEP_FAILED } sc_step;

/* What runs the model. */
typedef struct {
    void *context;
    /* Begin an answer. Returns 0, or the code of a Fault, whose words it gives. */
    uint8_t (*begin)(void *context, const sc_wire_start *start, const uint8_t *prompt, uint32_t bytes,
                     const char **why);
    /* Take in some of the prompt, or append the next bytes of the answer to `out`. */
    sc_step (*step)(void *context, uint8_t *out, uint32_t room, uint32_t *bytes, const char **why);
    uint32_t prompt_tokens, cached_tokens, completion_tokens; /* of this answer, so far */
    uint16_t confidence;
    const float *shares; /* of the answer's own fields, as the generator counts them */
    uint32_t share_count;
} sc_engine;

typedef struct {
    sc_engine *engine;
    sc_wire_hello hello; /* what it says of itself; `version` and `boots` are its own affair */
    uint8_t *prompt, *answer;
    uint32_t prompt_room, answer_room; /* bytes */
    void (*send)(void *context, const uint8_t *bytes, uint32_t size);
    void *send_context;
    uint32_t (*now_ms)(void);
    uint32_t overruns; /* of the receive buffer, kept by its owner */
    int16_t temperature;
    /* its own: */
    sc_wire_start start; /* `request` 0: none */
    sc_wire_done done;
    uint32_t taken, length, sent, steps, began_ms, first_ms;
    uint8_t work, version;
} sc_member;

/* After the fields above its own were set. Sends a Hello. */
void sc_member_begin(sc_member *member);

/* The body of a frame has come. */
void sc_member_receive(sc_member *member, const uint8_t *body, uint32_t size);

/* Whether sc_member_step has something to do, and one step. */
int sc_member_is_working(const sc_member *member);
void sc_member_step(sc_member *member);

/* Forget the request, as the console or an update takes the engine. */
void sc_member_forget(sc_member *member);

#endif
