/* Instructions of one token, by kind of call (QEMU -icount shift=0: a nanosecond each, and SysTick counts at CLOCK_HZ).
 * Runs the model image at IMAGE_AT for POSITION tokens, and then counts the next one. Prints a number for each kind of
 * call, from SC_CALL_PROGRAM on, and the bytes of stack that were ever used. */
#include "graph.h"
#include "measure.h"
#include "semihosting.h"
#include "stonechat.h"

static uint8_t arena[ARENA_BYTES] __attribute__((aligned(16)));
static uint8_t kv_cache[KV_BYTES] __attribute__((aligned(16)));

typedef struct {
    const uint32_t *call; /* the one that runs next */
    uint32_t from;
    uint64_t taken[SC_CALL_KINDS];
} tally;

static void count(uint32_t number, const void *at, void *context) {
    tally *t = context;
    (void)number, (void)at;
    t->taken[t->call[0] & 0xffff] += instructions(t->from, now());
    t->call += t->call[0] >> 16;
    t->from = now();
}

int main(void) {
    sc_image image;
    sc_model *model;
    tally t = {0};
    paint_stack();
    if (sc_open(&model, (const void *)IMAGE_AT, IMAGE_BYTES, SC_CHECK_HASH, arena, sizeof arena, kv_cache,
                sizeof kv_cache) != SC_OK ||
        sc_image_open_trusted(&image, (const void *)IMAGE_AT, IMAGE_BYTES) != SC_OK) {
        return 1;
    }
    t.call = (const uint32_t *)(const void *)sc_image_section(&image, SC_SECTION_GRAPH).bytes + SC_HEAD_WORDS;
    for (uint32_t i = sc_position(model); i < POSITION; i++) {
        if (sc_feed(model, i % 7 + 1) != SC_OK) {
            return 2;
        }
    }
    start_clock();
    t.from = now();
    if (sc_feed_watched(model, 3, count, &t) != SC_OK) {
        return 3;
    }
    for (unsigned kind = SC_CALL_PROGRAM; kind < SC_CALL_KINDS; kind++) {
        print_number(t.taken[kind]);
        semi_print(" ");
    }
    print_number(stack_used());
    return 0;
}
