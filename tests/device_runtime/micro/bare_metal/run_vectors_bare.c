/* run_vectors of the image at IMAGE_AT and the vectors at VECTORS_AT; prints what it gives. */
#include "../kernels/run_vectors.h"
#include "measure.h"
#include "semihosting.h"

static uint8_t arena[ARENA_BYTES] __attribute__((aligned(16)));
static uint8_t kv_cache[KV_BYTES] __attribute__((aligned(16)));

int main(void) {
    sc_model *model;
    if (sc_open(&model, (const void *)IMAGE_AT, IMAGE_BYTES, SC_CHECK_HASH, arena, sizeof arena, kv_cache,
                sizeof kv_cache) != SC_OK) {
        return 1;
    }
    print_number((uint64_t)run_vectors(model, (const uint32_t *)VECTORS_AT));
    return 0;
}
