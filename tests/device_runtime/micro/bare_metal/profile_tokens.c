/* Where the instructions of TOKENS greedy tokens go, from token FROM on: SysTick interrupts every INTERVAL of its ticks
 * and counts the address that it came from. Prints lines "address count", hexadecimal and decimal. */
#include <string.h>

#include "measure.h"
#include "semihosting.h"
#include "stonechat.h"

enum { CODE_BYTES = 96 * 1024 };

static uint8_t arena[ARENA_BYTES] __attribute__((aligned(16)));
static uint8_t kv_cache[KV_BYTES] __attribute__((aligned(16)));
static uint32_t counts[CODE_BYTES / 2];

/* The frame that the interrupt stacked has the address in its seventh word. */
__attribute__((naked)) void on_tick(void) {
    __asm__("ldr r0, [sp, #24]\n\tb count_address");
}

__attribute__((used)) void count_address(uint32_t address) {
    if (address < CODE_BYTES) {
        counts[address / 2]++;
    }
}

static void print_hex(uint32_t value) {
    char text[] = "00000000 ";
    for (int i = 7; i >= 0; i--, value >>= 4) {
        text[i] = "0123456789abcdef"[value & 15];
    }
    semi_print(text);
}

int main(void) {
    sc_model *model;
    uint32_t token = 1;
    if (sc_open(&model, (const void *)IMAGE_AT, IMAGE_BYTES, SC_CHECK_HASH, arena, sizeof arena, kv_cache,
                sizeof kv_cache) != SC_OK) {
        return 1;
    }
    for (uint32_t i = 0; i < FROM + TOKENS; i++) {
        if (i == FROM) {
            SYSTICK[1] = INTERVAL - 1;
            SYSTICK[2] = 0;
            SYSTICK[0] = 7; /* with its interrupt */
        }
        if (sc_feed(model, token) != SC_OK) {
            return 2;
        }
        token = sc_greedy(model);
    }
    SYSTICK[0] = 0;
    for (uint32_t i = 0; i < CODE_BYTES / 2; i++) {
        if (counts[i] > 0) {
            print_hex(2 * i);
            print_number(counts[i]);
            semi_print("\n");
        }
    }
    return 0;
}
