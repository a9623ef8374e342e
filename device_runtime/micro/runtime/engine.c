#include <string.h>

#include "graph.h"
#include "numbers.h"
#include "sha256.h"
#include "stonechat.h"

struct sc_model {
    sc_image image;
    sc_graph graph;
    sc_memory memory;
    uint32_t position;
};

enum { MODEL_BYTES = (sizeof(sc_model) + 15) / 16 * 16 };

/* The start of a saved kv_cache; the hash says of which image it is. */
typedef struct {
    uint8_t image_hash[32];
    uint32_t position, kv_bytes, reserved[2];
} saved_header;

static uint32_t head(const sc_model *model, unsigned word) { return model->graph.head[word]; }

/* -- the prefix: {u32 version, u32 records, u32 0, u32 0}, records {offset, stride, rows, bytes of a row}, then bytes */

static sc_status check_prefix(const sc_section *section, uint32_t kv_bytes) {
    const uint32_t *words = (const uint32_t *)(const void *)section->bytes;
    uint64_t at;
    if (section->size < 16 || words[0] != 1 || (section->size - 16) / 16 < words[1]) {
        return SC_DAMAGED;
    }
    at = 16 + 16 * (uint64_t)words[1];
    for (uint32_t i = 0; i < words[1]; i++) {
        const uint32_t *record = words + 4 + 4 * (size_t)i;
        uint64_t bytes = (uint64_t)record[2] * record[3];
        if (record[2] - 1 >= SC_MOST_ROWS || record[3] - 1 >= SC_MOST_ROWS || bytes > section->size - at ||
            record[0] + (uint64_t)(record[2] - 1) * record[1] + record[3] > kv_bytes) {
            return SC_DAMAGED;
        }
        at += bytes;
    }
    return SC_OK;
}

static void put_prefix(sc_model *model) {
    sc_section section = sc_image_section(&model->image, SC_SECTION_PREFIX);
    const uint32_t *words = (const uint32_t *)(const void *)section.bytes;
    const uint8_t *from;
    if (words == NULL) {
        return;
    }
    from = section.bytes + 16 + 16 * (size_t)words[1];
    for (uint32_t i = 0; i < words[1]; i++) {
        const uint32_t *record = words + 4 + 4 * (size_t)i;
        for (uint32_t row = 0; row < record[2]; row++, from += record[3]) {
            memcpy(model->memory.kv_cache + record[0] + (size_t)row * record[1], from, record[3]);
        }
    }
}

/* -- opening ---------------------------------------------------------------------------------------------- */

static sc_status read_image(sc_image *image, sc_graph *graph, const void *bytes, size_t size, unsigned flags) {
    sc_section prefix;
    sc_status status =
        flags & SC_TRUST_HASH ? sc_image_open_trusted(image, bytes, size) : sc_image_open(image, bytes, size);
    if (status == SC_OK) {
        status = sc_graph_open(graph, image);
    }
    if (status != SC_OK) {
        return status;
    }
    prefix = sc_image_section(image, SC_SECTION_PREFIX);
    if (prefix.bytes != NULL) {
        return check_prefix(&prefix, graph->head[SC_HEAD_KV_BYTES]);
    }
    return graph->head[SC_HEAD_PREFIX] == 0 ? SC_OK : SC_MISSING_SECTION;
}

sc_status sc_measure(const void *bytes, size_t size, unsigned flags, sc_needs *needs) {
    sc_image image;
    sc_graph graph;
    sc_status status;
    if (needs == NULL) {
        return SC_BAD_ARGUMENT;
    }
    status = read_image(&image, &graph, bytes, size, flags);
    if (status == SC_OK) {
        needs->arena_bytes = MODEL_BYTES + (size_t)graph.head[SC_HEAD_ARENA_BYTES];
        needs->kv_cache_bytes = graph.head[SC_HEAD_KV_BYTES];
        needs->context = graph.head[SC_HEAD_CONTEXT];
        needs->vocabulary = graph.head[SC_HEAD_VOCABULARY];
        needs->prefix = graph.head[SC_HEAD_PREFIX];
    }
    return status;
}

sc_status sc_open(sc_model **result, const void *bytes, size_t size, unsigned flags, void *arena, size_t arena_bytes,
                  void *kv_cache, size_t kv_cache_bytes) {
    sc_image image;
    sc_graph graph;
    sc_model *model = arena;
    sc_status status;
    if (result == NULL || arena == NULL || kv_cache == NULL) {
        return SC_BAD_ARGUMENT;
    }
    if ((uintptr_t)arena % 16 != 0 || (uintptr_t)kv_cache % 16 != 0) {
        return SC_MISALIGNED;
    }
    status = read_image(&image, &graph, bytes, size, flags);
    if (status != SC_OK) {
        return status;
    }
    if (arena_bytes < MODEL_BYTES + (size_t)graph.head[SC_HEAD_ARENA_BYTES] ||
        kv_cache_bytes < graph.head[SC_HEAD_KV_BYTES]) {
        return SC_ARENA_TOO_SMALL;
    }
    memset(arena, 0, MODEL_BYTES + (size_t)graph.head[SC_HEAD_ARENA_BYTES]);
    memset(kv_cache, 0, graph.head[SC_HEAD_KV_BYTES]);
    model->image = image;
    model->graph = graph;
    model->memory.constants = graph.constants.bytes;
    model->memory.arena = (uint8_t *)arena + MODEL_BYTES;
    model->memory.kv_cache = kv_cache;
    model->position = graph.head[SC_HEAD_PREFIX];
    put_prefix(model);
    *result = model;
    return SC_OK;
}

/* -- running ---------------------------------------------------------------------------------------------- */

sc_status sc_feed_watched(sc_model *model, uint32_t token, sc_after_call after, void *context) {
    if (token >= head(model, SC_HEAD_VOCABULARY)) {
        return SC_BAD_TOKEN;
    }
    if (model->position >= head(model, SC_HEAD_CONTEXT)) {
        return SC_CONTEXT_FULL;
    }
    model->memory.token = token;
    model->memory.position = model->position;
    sc_graph_run(&model->graph, &model->memory, after, context);
    model->position++;
    return SC_OK;
}

sc_status sc_feed(sc_model *model, uint32_t token) { return sc_feed_watched(model, token, NULL, NULL); }

sc_logits sc_read_logits(const sc_model *model) {
    sc_logits logits;
    logits.stored = model->memory.arena + head(model, SC_HEAD_LOGITS);
    logits.count = head(model, SC_HEAD_VOCABULARY);
    logits.bits = head(model, SC_HEAD_LOGITS_BITS);
    logits.scale = sc_float_of(head(model, SC_HEAD_LOGITS_SCALE));
    logits.zero_point = (int32_t)head(model, SC_HEAD_LOGITS_ZERO_POINT);
    return logits;
}

static int32_t stored_logit(const sc_logits *logits, uint32_t token) {
    return logits->bits == 8 ? ((const int8_t *)logits->stored)[token] : ((const int16_t *)logits->stored)[token];
}

float sc_logit(const sc_model *model, uint32_t token) {
    sc_logits logits = sc_read_logits(model);
    if (token >= logits.count) {
        return 0.0f;
    }
    return ((float)stored_logit(&logits, token) - (float)logits.zero_point) * logits.scale;
}

uint32_t sc_greedy(const sc_model *model) {
    sc_logits logits = sc_read_logits(model);
    int32_t most = INT32_MIN;
    uint32_t best = 0;
    for (uint32_t token = 0; token < logits.count; token++) {
        int32_t value = stored_logit(&logits, token);
        if (value > most) {
            most = value;
            best = token;
        }
    }
    return best;
}

sc_status sc_generate(sc_model *model, const uint32_t *prompt, size_t prompt_tokens, size_t max_new, sc_choose choose,
                      void *choose_context, sc_on_token on_token, void *on_token_context, sc_finish *finish) {
    sc_finish ignored;
    finish = finish != NULL ? finish : &ignored;
    *finish = SC_LENGTH;
    if (prompt == NULL || prompt_tokens == 0 || on_token == NULL) {
        return SC_BAD_ARGUMENT;
    }
    for (size_t i = 0; i < prompt_tokens; i++) {
        sc_status status = sc_feed(model, prompt[i]);
        if (status != SC_OK) {
            return status;
        }
    }
    for (size_t i = 0; i < max_new; i++) {
        uint32_t token = choose != NULL ? choose(model, choose_context) : sc_greedy(model);
        sc_status status;
        if (on_token(token, on_token_context) != 0) {
            *finish = SC_STOPPED;
            return SC_OK;
        }
        if (i + 1 == max_new) {
            return SC_OK; /* nobody asks what follows the last one */
        }
        status = sc_feed(model, token);
        if (status != SC_OK) {
            return status;
        }
    }
    return SC_OK;
}

uint32_t sc_position(const sc_model *model) { return model->position; }

void sc_rewind(sc_model *model, uint32_t position) {
    uint32_t prefix = head(model, SC_HEAD_PREFIX);
    position = position < prefix ? prefix : position;
    model->position = position < model->position ? position : model->position;
}

/* -- keeping the kv_cache --------------------------------------------------------------------------------- */

size_t sc_saved_bytes(const sc_model *model) { return sizeof(saved_header) + head(model, SC_HEAD_KV_BYTES); }

sc_status sc_save(const sc_model *model, void *to, size_t bytes) {
    saved_header header = {{0}, model->position, head(model, SC_HEAD_KV_BYTES), {0, 0}};
    if (to == NULL || bytes < sc_saved_bytes(model)) {
        return SC_BAD_ARGUMENT;
    }
    memcpy(header.image_hash, model->image.bytes + 16, sizeof header.image_hash);
    memcpy(to, &header, sizeof header);
    memcpy((uint8_t *)to + sizeof header, model->memory.kv_cache, header.kv_bytes);
    return SC_OK;
}

sc_status sc_restore(sc_model *model, const void *from, size_t bytes) {
    saved_header header;
    if (from == NULL || bytes < sc_saved_bytes(model)) {
        return SC_BAD_ARGUMENT;
    }
    memcpy(&header, from, sizeof header);
    if (memcmp(header.image_hash, model->image.bytes + 16, sizeof header.image_hash) != 0 ||
        header.kv_bytes != head(model, SC_HEAD_KV_BYTES) || header.position < head(model, SC_HEAD_PREFIX) ||
        header.position > head(model, SC_HEAD_CONTEXT)) {
        return SC_DAMAGED;
    }
    memcpy(model->memory.kv_cache, (const uint8_t *)from + sizeof header, header.kv_bytes);
    model->position = header.position;
    return SC_OK;
}

/* -- the golden test: {u32 version, u32 tokens, token …, SHA-256 of all logits as they are stored} --------- */

sc_status sc_self_test(sc_model *model) {
    sc_section section = sc_image_section(&model->image, SC_SECTION_SELF_TEST);
    const uint32_t *words = (const uint32_t *)(const void *)section.bytes;
    sc_logits logits = sc_read_logits(model);
    sc_sha256 hash;
    uint8_t digest[32];
    if (words == NULL) {
        return SC_MISSING_SECTION;
    }
    if (section.size < 40 || words[0] != 1 || words[1] != (section.size - 40) / 4) {
        return SC_DAMAGED;
    }
    sc_rewind(model, 0);
    sc_sha256_start(&hash);
    for (uint32_t i = 0; i < words[1]; i++) {
        sc_status status = sc_feed(model, words[2 + i]);
        if (status != SC_OK) {
            return status;
        }
        sc_sha256_add(&hash, logits.stored, logits.count * (size_t)(logits.bits / 8));
    }
    sc_rewind(model, 0);
    sc_sha256_finish(&hash, digest);
    return memcmp(digest, words + 2 + words[1], sizeof digest) == 0 ? SC_OK : SC_SELF_TEST_FAILED;
}
