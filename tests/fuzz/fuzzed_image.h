/* What the targets that read a model image share. */
#ifndef FUZZED_IMAGE_H
#define FUZZED_IMAGE_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "graph.h"
#include "sha256.h"
#include "stonechat.h"

enum { MOST_MEMORY = 1 << 20, MOST_WORK = 1 << 20 };

/* With MUST_RUN, a target ends at the first image that it does not run: the corpus must not be refused in silence. */
static inline void must(int holds) {
#ifdef MUST_RUN
    if (!holds) abort();
#else
    (void)holds;
#endif
}

static inline void *aligned_copy(void **owner, const uint8_t *from, size_t size) {
    uint8_t *memory = *owner = malloc(size + 32);
    if (memory == NULL) exit(1);
    /* The end is the end of the allocation as nearly as 16 bytes allow, so that a sanitizer sees a read past it. */
    memory += (16 - (uintptr_t)memory % 16) % 16;
    if (from != NULL) memcpy(memory, from, size);
    return memory;
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

/* Elements that a step computes, of a call list that the engine has checked. */
static inline uint64_t work_of(const uint8_t *image, size_t size) {
    sc_image whole;
    sc_graph graph;
    uint64_t work = 0;
    if (sc_image_open_trusted(&whole, image, size) != SC_OK || sc_graph_open(&graph, &whole) != SC_OK) return UINT64_MAX;
    const uint32_t *call = graph.calls;
    for (uint32_t i = 0; i < graph.head[SC_HEAD_CALLS]; i++, call += call[0] >> 16) {
        switch (call[0] & 0xffff) {
        case SC_CALL_PROGRAM:
            work += (uint64_t)call[SC_PROGRAM_ROWS] * call[SC_PROGRAM_COLUMNS] * call[SC_PROGRAM_OPS];
            break;
        case SC_CALL_STORE: work += call[SC_STORE_COUNT]; break;
        case SC_CALL_ATTENTION:
            work += (uint64_t)call[SC_ATTEND_HEADS] * call[SC_ATTEND_HEAD_DIM] * call[SC_ATTEND_VALUE_STRIDE];
            break;
        default: work += (uint64_t)call[SC_MATMUL_ROWS] * call[SC_MATMUL_COLUMNS]; break;
        }
    }
    return work;
}

/* Whether the engine takes it, and a step needs little memory and is short enough to run: the fuzzer looks for wrong
 * accesses, not for long loops. */
static inline int is_small(const uint8_t *image, size_t size, sc_needs *needs) {
    return sc_measure(image, size, SC_CHECK_HASH, needs) == SC_OK && needs->arena_bytes < MOST_MEMORY &&
           needs->kv_cache_bytes < MOST_MEMORY && work_of(image, size) < MOST_WORK;
}

/* An image in memory of its own with its hash made right, and what it asks for. */
typedef struct {
    const uint8_t *image;
    void *arena, *kv_cache;
    sc_needs needs;
    void *owners[3];
} fuzzed_image;

/* Whether it is one that is small enough to run; `close_image` in any case. */
static inline int open_image(fuzzed_image *f, const uint8_t *data, size_t size) {
    uint8_t *image;
    memset(f, 0, sizeof *f);
    f->image = image = aligned_copy(&f->owners[0], data, size);
    hash_again(image, size);
    const int small = is_small(image, size, &f->needs);
    must(small);
    if (small) {
        f->arena = aligned_copy(&f->owners[1], NULL, f->needs.arena_bytes);
        f->kv_cache = aligned_copy(&f->owners[2], NULL, f->needs.kv_cache_bytes);
    }
    return small;
}

static inline void close_image(fuzzed_image *f) {
    for (int i = 0; i < 3; i++) free(f->owners[i]);
}

#endif
