/* A model image from outside. The hash is made right first, so that what lies behind it is reached: whatever the image
 * says, the engine refuses it or stays inside of its memory. */
#include "fuzzed_image.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    void *image_owner, *arena_owner, *cache_owner;
    uint8_t *image = aligned_copy(&image_owner, data, size);
    sc_needs needs;
    hash_again(image, size);
    const int small = is_small(image, size, &needs);
    must(small);
    if (small) {
        void *arena = aligned_copy(&arena_owner, NULL, needs.arena_bytes);
        void *cache = aligned_copy(&cache_owner, NULL, needs.kv_cache_bytes);
        sc_model *model;
        const int opened =
            sc_open(&model, image, size, SC_TRUST_HASH, arena, needs.arena_bytes, cache, needs.kv_cache_bytes) == SC_OK;
        must(opened);
        if (opened) {
            sc_feed(model, needs.vocabulary - 1);
            sc_feed(model, needs.vocabulary);
            sc_greedy(model);
            sc_self_test(model);
        }
        free(arena_owner);
        free(cache_owner);
    }
    free(image_owner);
    return 0;
}
