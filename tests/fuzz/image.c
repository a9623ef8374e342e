/* A model image from outside. The hash is made right first, so that what lies behind it is reached: whatever the image
 * says, the engine refuses it or stays inside of its memory. */
#include "fuzzed_image.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzzed_image f;
    if (open_image(&f, data, size)) {
        sc_model *model;
        const int opened = sc_open(&model, f.image, size, SC_TRUST_HASH, f.arena, f.needs.arena_bytes, f.kv_cache,
                                   f.needs.kv_cache_bytes) == SC_OK;
        must(opened);
        if (opened) {
            sc_feed(model, f.needs.vocabulary - 1);
            sc_feed(model, f.needs.vocabulary);
            sc_greedy(model);
            sc_self_test(model);
        }
    }
    close_image(&f);
    return 0;
}
