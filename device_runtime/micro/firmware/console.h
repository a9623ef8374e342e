/* A console for people: a line in is a user's message, the answer comes out as it is generated; lines that begin with a
 * slash set options. */
#ifndef SC_CONSOLE_H
#define SC_CONSOLE_H

#include "generator.h"

typedef struct {
    sc_generator *generator;
    void (*send)(void *context, const uint8_t *bytes, uint32_t size);
    void *send_context;
    uint32_t (*now_ms)(void);
    /* its own: */
    sc_wire_start options; /* of the answers, by the commands */
    uint8_t answering;
    uint32_t began_ms, first_ms, last_ms; /* of the last answer */
    uint8_t line[1024 + 2];               /* a message in the form of the serial protocol */
} sc_console;

void sc_console_begin(sc_console *console);
void sc_console_say(sc_console *console, const char *text);
void sc_console_say_number(sc_console *console, uint32_t number);
void sc_console_prompt(sc_console *console); /* that it waits for a line */

/* A line, without its end. Returns 0 where it was no command of the console's own: `/status` is its owner's. */
int sc_console_line(sc_console *console, const uint8_t *line, uint32_t size);

/* One step of an answer. */
void sc_console_step(sc_console *console);

/* End an answer, because somebody else takes the model. */
void sc_console_stop(sc_console *console, const char *why);

#endif
