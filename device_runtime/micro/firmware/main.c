/* The firmware of a board. Sizes and addresses are of the board's file and of the bundle that it is built for
 * (toolkit/firmware/build.py); an image that needs more is refused when the board starts. */
#include "device.h"
#include "port.h"
#ifdef BROKER_IP
#include "network.h"
#endif
#ifdef FLASH_AT
#include "flash_port.h"
#include "layout.h"
#endif

enum { WORK_BYTES = 8192, PROMPT_BYTES = 4 * CONTEXT > 2048 ? 4 * CONTEXT : 2048,
       ANSWER_BYTES = 8 * CONTEXT > 1024 ? 8 * CONTEXT : 1024 };

static uint8_t arena[ARENA_BYTES] __attribute__((aligned(16)));
static uint8_t kv_cache[KV_BYTES] __attribute__((aligned(16)));
static uint32_t work[WORK_BYTES / 4], prompt_tokens[CONTEXT], held[CONTEXT];
static uint8_t prompt[PROMPT_BYTES], answer[ANSWER_BYTES];
#if LOGITS > 0
static float logits[LOGITS];
#endif
static sc_device device;
#ifdef FLASH_AT
static sc_update update;
#endif

static void send(void *context, const uint8_t *bytes, uint32_t size) {
    (void)context;
    port_write(bytes, size);
    port_feed_watchdog();
}

#ifdef BROKER_IP
static sc_fleet fleet;
#endif

static void after_call(uint32_t call, const void *at, void *context) {
    (void)call;
    (void)at;
    (void)context;
    port_feed_watchdog();
}

int main(void) {
    port_start();
    kept.boots++;
    kept.boots_inverted = ~kept.boots;
    device.board = BOARD;
    device.firmware = FIRMWARE;
    device.send = send;
    device.now_ms = port_now_ms;
    device.boots = kept.boots;
    device.reset_cause = (uint8_t)kept.cause;
    kept.cause = PORT_UNKNOWN;
    device.prompt = prompt;
    device.prompt_room = sizeof prompt;
    device.answer = answer;
    device.answer_room = sizeof answer;
    sc_generator_memory *m = &device.generator.memory;
    m->arena = arena;
    m->arena_bytes = sizeof arena;
    m->kv_cache = kv_cache;
    m->kv_bytes = sizeof kv_cache;
    m->prompt = prompt_tokens;
    m->held = held;
    m->context = CONTEXT;
#if LOGITS > 0
    m->logits = logits;
    m->vocabulary = LOGITS;
#endif
    m->work = work;
    m->work_bytes = sizeof work;
    device.generator.after_call = after_call;
#ifdef FLASH_AT
    sc_update_open(&update, &port_flash, &layout);
    (void)sc_update_running(&update, SC_FIRMWARE);
    device.update = &update;
#else
    device.image = (const uint8_t *)IMAGE_AT;
    device.image_room = IMAGE_ROOM;
#endif
    sc_device_begin(&device);
#ifdef BROKER_IP
    fleet.device = DEVICE_ID;
    fleet.board = BOARD;
    fleet.firmware = FIRMWARE;
    fleet.model = MODEL_NAME;
    fleet.generator = &device.generator;
    fleet.has_model = &device.has_model;
    fleet.boots = kept.boots;
    fleet.now_ms = port_now_ms;
    sc_fleet_begin(&fleet);
    device.fleet = &fleet;
    network_start(&fleet);
#endif
    for (;;) {
        int byte;
        port_feed_watchdog();
        while ((byte = port_read()) >= 0) sc_device_receive(&device, (uint8_t)byte);
        device.overruns = port_overruns();
#ifdef BROKER_IP
        network_poll();
#endif
        if (device.smp.reset_asked) port_restart(PORT_COMMAND);
        if (sc_device_is_working(&device)) sc_device_step(&device);
        else port_wait();
    }
}
