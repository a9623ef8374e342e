/* Holds what each call of a model image leaves in the arena against a vector file (scripts/kernel_vectors.py). What a
 * call gets wrong is put right before the next one runs, so every call is judged by itself. */
#ifndef RUN_VECTORS_H
#define RUN_VECTORS_H

#include <string.h>

#include "stonechat.h"

typedef struct {
    const uint32_t *entry; /* the next one */
    uint32_t left, wrong;
    uint32_t first_wrong; /* number of the call */
} vector_check;

static inline void check_call_against(uint32_t call, const void *arena, void *context) {
    vector_check *check = context;
    while (check->left > 0 && check->entry[0] == call) {
        uint8_t *found = (uint8_t *)(uintptr_t)arena + check->entry[1];
        uint32_t bytes = check->entry[2];
        if (memcmp(found, check->entry + 3, bytes) != 0) {
            check->first_wrong = check->wrong++ == 0 ? call : check->first_wrong;
            memcpy(found, check->entry + 3, bytes);
        }
        check->entry += 3 + (bytes + 3) / 4;
        check->left--;
    }
}

/* 0, or 1 + the first wrong call, or 1000 + a status; 999 if an entry has no call. */
static inline int run_vectors(sc_model *model, const uint32_t *words) {
    uint32_t tokens = words[0];
    vector_check check = {words + tokens + 2, words[tokens + 1], 0, 0};
    for (uint32_t i = 0; i < tokens; i++) {
        sc_status status = sc_feed_watched(model, words[1 + i], i + 1 == tokens ? check_call_against : NULL, &check);
        if (status != SC_OK) {
            return 1000 + (int)status;
        }
    }
    return check.left > 0 ? 999 : check.wrong > 0 ? 1 + (int)check.first_wrong : 0;
}

#endif
