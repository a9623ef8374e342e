/* A board that is on MQTT by itself: the topics, messages and rules of docs/reference/mqtt.md, apart from the client that
 * carries them. The owner of a connection gives this its messages, and sends what it is asked to: lwIP's MQTT client in
 * ports/lwip/, a platform's own elsewhere. The client is of MQTT 3.1.1, so requests have `reply_to` and `id` in them. */
#ifndef SC_FLEET_H
#define SC_FLEET_H

#include "generator.h"

enum {
    SC_FLEET_TOPIC = 192,    /* bytes of the longest topic, with its end */
    SC_FLEET_REQUEST = 2048, /* of the largest request */
    SC_FLEET_REPLY = 3072,   /* of the largest reply */
    SC_FLEET_ID = 64,        /* of the `id` in a request, as it stands */
    SC_FLEET_TEXT = 1536,    /* of the longest prompt and the longest answer, in UTF-8 */
    SC_FLEET_FILTERS = 4     /* subscriptions */
};

typedef struct {
    uint8_t to[SC_FLEET_TOPIC], id[SC_FLEET_ID];
    uint32_t to_size, id_size; /* without an end; id_size 0: none was given */
} sc_fleet_address;

typedef struct {
    /* of the owner, before sc_fleet_begin: */
    const char *device;            /* its id in the fleet */
    const char *board, *firmware, *model;
    sc_generator *generator;
    const uint8_t *has_model;      /* whether the generator has one */
    uint32_t boots;
    uint32_t (*now_ms)(void);
    /* Publish, with QoS 1 where `qos` is 1. Returns 0 once it is on its way, else it is asked again. */
    int (*publish)(void *context, const char *topic, const uint8_t *payload, uint32_t size, int qos, int retain);
    void *publish_context;
    uint8_t elsewhere;             /* whether the model answers somebody else, kept by the owner */
    /* its own: */
    uint8_t connected, announced, busy, pending, pending_qos;
    char root[SC_FLEET_TOPIC], topic[SC_FLEET_TOPIC], lost[40];
    uint32_t root_size;
    sc_fleet_address address, last; /* of the request that is being answered, of the last one */
    uint8_t text[SC_FLEET_TEXT], answer[SC_FLEET_TEXT], reply[SC_FLEET_REPLY];
    uint32_t text_size, answer_size, reply_size;
    sc_wire_start start;
    uint32_t began_ms, first_ms, deadline_ms, health_ms;
    uint32_t served, refused, dropped;
} sc_fleet;

/* After the owner's fields were set. `fleet->lost` is the last will's payload then, for the topic of sc_fleet_will. */
void sc_fleet_begin(sc_fleet *fleet);
const char *sc_fleet_will(sc_fleet *fleet);

/* What to subscribe to, QoS 1: SC_FLEET_FILTERS of them. */
const char *sc_fleet_filter(sc_fleet *fleet, uint32_t number);

/* The subscriptions are there, or the connection is gone. */
void sc_fleet_connected(sc_fleet *fleet);
void sc_fleet_disconnected(sc_fleet *fleet);

/* A message has come, whole. `topic` has an end. */
void sc_fleet_message(sc_fleet *fleet, const char *topic, const uint8_t *payload, uint32_t size, int retained);

/* Often: sends what waits to be sent, and health once a minute. */
void sc_fleet_tick(sc_fleet *fleet);

/* Whether an answer is being made, a step of it, and its end because somebody else takes the model. */
int sc_fleet_is_working(const sc_fleet *fleet);
void sc_fleet_step(sc_fleet *fleet);
void sc_fleet_stop(sc_fleet *fleet, const char *why);

#endif
