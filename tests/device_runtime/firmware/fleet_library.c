/* A board that is on MQTT by itself, for tests in Python: the client that carries its messages is the test. */
#include <stdlib.h>
#include <string.h>

#include "fleet.h"

static sc_generator generator;
static sc_fleet fleet;
static uint8_t has_model, out[262144];
static uint32_t out_size, time_ms, full;

static uint32_t now_ms(void) { return time_ms++; }

/* A record: its size, QoS, retain, the topic with its end, the payload. */
static int publish(void *context, const char *topic, const uint8_t *payload, uint32_t size, int qos, int retain) {
    const uint32_t all = 2 + (uint32_t)strlen(topic) + 1 + size;
    (void)context;
    if (full || all + 4 > sizeof out - out_size) return -1;
    memcpy(out + out_size, &all, 4);
    out[out_size + 4] = (uint8_t)qos;
    out[out_size + 5] = (uint8_t)retain;
    strcpy((char *)out + out_size + 6, topic);
    memcpy(out + out_size + 4 + all - size, payload, size);
    out_size += 4 + all;
    return 0;
}

int test_open(const void *image, uint32_t bytes) {
    sc_generator_memory *m = &generator.memory;
    sc_needs needs;
    if (sc_measure(image, bytes, SC_CHECK_HASH, &needs) != SC_OK) return -1;
    m->arena_bytes = needs.arena_bytes;
    m->kv_bytes = needs.kv_cache_bytes;
    m->arena = malloc(needs.arena_bytes); /* of glibc: at a multiple of 16 */
    m->kv_cache = malloc(needs.kv_cache_bytes + 16);
    m->context = needs.context;
    m->prompt = malloc(4 * needs.context);
    m->held = malloc(4 * needs.context);
    m->vocabulary = needs.vocabulary;
    m->logits = malloc(4 * needs.vocabulary);
    m->work_bytes = 8192;
    m->work = malloc(8192);
    has_model = sc_generator_open(&generator, image, bytes) == SC_OK;
    return has_model ? 0 : -2;
}

void test_begin(void) {
    memset(&fleet, 0, sizeof fleet);
    out_size = full = 0;
    fleet.device = "field-mcu";
    fleet.board = "host";
    fleet.firmware = "1.0.0";
    fleet.model = "boiler";
    fleet.generator = &generator;
    fleet.has_model = &has_model;
    fleet.boots = 7;
    fleet.now_ms = now_ms;
    fleet.publish = publish;
    sc_fleet_begin(&fleet);
}

void test_connected(int yes) {
    if (yes) sc_fleet_connected(&fleet);
    else sc_fleet_disconnected(&fleet);
    sc_fleet_tick(&fleet);
}

void test_broker_takes_nothing(int yes) { full = (uint32_t)yes; }
void test_elsewhere(int yes) { fleet.elsewhere = (uint8_t)yes; }
void test_pass(uint32_t ms) { time_ms += ms; }
const char *test_will(void) { return fleet.lost; }
uint32_t test_dropped(void) { return fleet.dropped; }

void test_message(const char *topic, const uint8_t *payload, uint32_t size, int retained) {
    sc_fleet_message(&fleet, topic, payload, size, retained);
}

/* At most so many steps of the answer. */
void test_steps(uint32_t most) {
    while (most-- > 0 && sc_fleet_is_working(&fleet)) sc_fleet_step(&fleet);
    sc_fleet_tick(&fleet);
}

uint32_t test_published(uint8_t *to) {
    const uint32_t size = out_size;
    memcpy(to, out, size);
    out_size = 0;
    return size;
}

/* The conversation as it was read from the last request. */
uint32_t test_text(uint8_t *to) {
    memcpy(to, fleet.text, fleet.text_size);
    return fleet.text_size;
}
