/* Feeds tokens to a model image. Arguments: the image, then tokens. Writes the stored logits after each token to
 * stdout. Exit status: 0, or 10 + the sc_status of what was refused. */
#define _POSIX_C_SOURCE 200112L

#include <stdio.h>
#include <stdlib.h>

#include "stonechat.h"

static void *aligned_memory(size_t bytes) {
    /* exactly as many bytes as are asked for, so that the sanitizer sees the first one past the end */
    void *memory = NULL;
    return posix_memalign(&memory, 16, bytes > 0 ? bytes : 1) == 0 ? memory : NULL;
}

int main(int count, char **arguments) {
    FILE *file = count >= 2 ? fopen(arguments[1], "rb") : NULL;
    long size;
    void *bytes, *arena = NULL, *kv_cache = NULL;
    sc_needs needs;
    sc_model *model = NULL;
    sc_status status;
    if (file == NULL || fseek(file, 0, SEEK_END) != 0 || (size = ftell(file)) < 0) {
        return 100;
    }
    rewind(file);
    bytes = aligned_memory((size_t)size);
    if (bytes == NULL || fread(bytes, 1, (size_t)size, file) != (size_t)size) {
        return 100;
    }
    status = sc_measure(bytes, (size_t)size, SC_CHECK_HASH, &needs);
    if (status == SC_OK && (needs.arena_bytes > 1u << 24 || needs.kv_cache_bytes > 1u << 26)) {
        status = SC_ARENA_TOO_SMALL; /* as on a board */
    }
    if (status == SC_OK) {
        arena = aligned_memory(needs.arena_bytes);
        kv_cache = aligned_memory(needs.kv_cache_bytes);
        status = sc_open(&model, bytes, (size_t)size, SC_TRUST_HASH, arena, needs.arena_bytes, kv_cache,
                         needs.kv_cache_bytes);
    }
    for (int i = 2; i < count && status == SC_OK; i++) {
        status = sc_feed(model, (uint32_t)strtoul(arguments[i], NULL, 10));
        if (status == SC_OK) {
            sc_logits logits = sc_read_logits(model);
            fwrite(logits.stored, logits.bits / 8, logits.count, stdout);
        }
    }
    free(bytes);
    free(arena);
    free(kv_cache);
    fclose(file);
    return status == SC_OK ? 0 : 10 + (int)status;
}
