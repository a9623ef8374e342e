/* Runs the model image that lies at IMAGE_AT. Words at TOKENS_AT say what to do: their number, then tokens. Prints the
 * SHA-256 of the stored logits after all of them, and the instructions that the last token took (QEMU -icount shift=0:
 * a nanosecond each, and SysTick counts at CLOCK_HZ). */
#include <stdint.h>

#include "measure.h"
#include "semihosting.h"
#include "sha256.h"
#include "stonechat.h"

static uint8_t arena[ARENA_BYTES] __attribute__((aligned(16)));
static uint8_t kv_cache[KV_BYTES] __attribute__((aligned(16)));

int main(void) {
    const uint32_t *words = (const uint32_t *)TOKENS_AT;
    sc_needs needs;
    sc_model *model;
    sc_sha256 hash;
    uint8_t digest[32];
    char text[65];
    sc_status status = sc_measure((const void *)IMAGE_AT, IMAGE_BYTES, SC_CHECK_HASH, &needs);
    if (status == SC_OK) {
        status = sc_open(&model, (const void *)IMAGE_AT, IMAGE_BYTES, SC_TRUST_HASH, arena, sizeof arena, kv_cache,
                         sizeof kv_cache);
    }
    if (status != SC_OK) {
        semi_print(sc_status_text(status));
        return 10 + (int)status;
    }
    sc_sha256_start(&hash);
#ifdef CLOCK_HZ
    start_clock();
#endif
    uint64_t taken = 0;
    for (uint32_t i = 0; i < words[0]; i++) {
        sc_logits logits;
#ifdef CLOCK_HZ
        uint32_t from = now();
#endif
        status = sc_feed(model, words[1 + i]);
#ifdef CLOCK_HZ
        taken = instructions(from, now());
#endif
        if (status != SC_OK) {
            semi_print(sc_status_text(status));
            return 10 + (int)status;
        }
        logits = sc_read_logits(model);
        sc_sha256_add(&hash, logits.stored, logits.count * (logits.bits / 8));
    }
    sc_sha256_finish(&hash, digest);
    for (int i = 0; i < 32; i++) {
        text[2 * i] = "0123456789abcdef"[digest[i] >> 4];
        text[2 * i + 1] = "0123456789abcdef"[digest[i] & 15];
    }
    text[64] = 0;
    semi_print(text);
    semi_print(" ");
    print_number(taken);
    semi_print("\n");
    return 0;
}
