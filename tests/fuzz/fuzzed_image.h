/* What the targets that read a model image share. */
#ifndef FUZZED_IMAGE_H
#define FUZZED_IMAGE_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "sha256.h"
#include "stonechat.h"

enum { MOST_MEMORY = 1 << 20, MOST_WORK = 1 << 22 };

static inline void *aligned_copy(void **owner, const uint8_t *from, size_t size) {
    uint8_t *memory = *owner = malloc(size + 32);
    if (memory == NULL) exit(1);
    /* The end is the end of the allocation as nearly as 16 bytes allow, so that a sanitizer sees a read past it. */
    memory += (16 - (uintptr_t)memory % 16) % 16;
    if (from != NULL) memcpy(memory, from, size);
    return memory;
}

/* Whether a step is short enough to run: the fuzzer looks for wrong accesses, not for long loops. */
static inline int is_short(const uint8_t *image, size_t size) {
    uint64_t work = 0;
    for (size_t at = 0; at + 24 <= size; at += 4) { /* rows by columns of anything that may be a call */
        uint32_t words[6];
        memcpy(words, image + at, sizeof words);
        if ((words[0] & 0xffff) >= 1 && (words[0] & 0xffff) <= 7 && words[0] >> 16 >= 4 && words[0] >> 16 < 200) {
            uint64_t a = (words[0] & 0xffff) == 1 ? words[1] : words[3], b = (words[0] & 0xffff) == 1 ? words[2] : words[4];
            work += (a & 0xffffff) * (b & 0xffff);
        }
    }
    return work < MOST_WORK;
}

/* Make the hash right, so that what lies behind it is reached. */
static inline void hash_again(uint8_t *image, size_t size) {
    sc_sha256 hash;
    uint32_t whole;
    if (size < 48) return;
    memcpy(&whole, image + 8, sizeof whole);
    whole = whole <= size && whole >= 48 ? whole : (uint32_t)size;
    sc_sha256_start(&hash);
    sc_sha256_add(&hash, image, 16);
    sc_sha256_add(&hash, image + 48, whole - 48);
    sc_sha256_finish(&hash, image + 16);
}

/* Whether the engine takes it, and it needs little. */
static inline int is_small(const uint8_t *image, size_t size, sc_needs *needs) {
    return sc_measure(image, size, SC_CHECK_HASH, needs) == SC_OK && needs->arena_bytes < MOST_MEMORY &&
           needs->kv_cache_bytes < MOST_MEMORY && is_short(image, size);
}

#endif
