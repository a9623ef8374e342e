/* A board as a whole, apart from its port: one serial line, a model, updates. */
#ifndef SC_DEVICE_H
#define SC_DEVICE_H

#include "console.h"
#include "fleet.h"
#include "line.h"
#include "member.h"
#include "smp.h"

typedef struct {
    const char *board, *firmware; /* names for people */
    void (*send)(void *context, const uint8_t *bytes, uint32_t size);
    void *send_context;
    uint32_t (*now_ms)(void);
    uint32_t boots;
    uint8_t reset_cause;
    uint8_t *prompt, *answer; /* what a request and its answer take */
    uint32_t prompt_room, answer_room;
    sc_update *update; /* NULL: the model's place is `image`, and nothing is updated */
    const uint8_t *image;
    uint32_t image_room;
    uint32_t overruns; /* kept up by the owner */
    sc_fleet *fleet;        /* NULL: it is not on MQTT by itself */
    sc_generator generator; /* its memory and `after_call` are the owner's to set */
    /* its own: */
    sc_line line;
    sc_member member;
    sc_console console;
    sc_smp smp;
    uint8_t has_model;
    sc_status trouble; /* of the model, where there is none */
} sc_device;

/* Find the model, prove it, and say who this is. */
void sc_device_begin(sc_device *device);

/* A byte has come. */
void sc_device_receive(sc_device *device, uint8_t byte);

/* Whether the model has something to do; one step of it. */
int sc_device_is_working(const sc_device *device);
void sc_device_step(sc_device *device);

#endif
