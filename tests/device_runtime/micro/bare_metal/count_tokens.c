/* Instructions of TOKENS greedy tokens from token 1 with the model image at IMAGE_AT: benchmarks/micro/float_loop.c does
 * the same in float. Prints them and a hash of the tokens. */
#include "measure.h"
#include "semihosting.h"
#include "stonechat.h"

static uint8_t arena[ARENA_BYTES] __attribute__((aligned(16)));
static uint8_t kv_cache[KV_BYTES] __attribute__((aligned(16)));

int main(void) {
    sc_model *model;
    uint64_t taken = 0, sum = 0;
    uint32_t token = 1;
    if (sc_open(&model, (const void *)IMAGE_AT, IMAGE_BYTES, SC_CHECK_HASH, arena, sizeof arena, kv_cache,
                sizeof kv_cache) != SC_OK) {
        return 1;
    }
    start_clock();
    for (int i = 0; i < TOKENS; i++) {
        uint32_t from = now();
        if (sc_feed(model, token) != SC_OK) {
            return 2;
        }
        token = sc_greedy(model);
        taken += instructions(from, now());
        sum = sum * 31 + token;
    }
    print_number(taken);
    semi_print(" ");
    print_number(sum);
    return 0;
}
