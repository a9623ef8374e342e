/* The tokenizer for tests in Python (tests/support/c_tokenizer.py). Counts below zero are a status with its sign changed. */
#include <stdint.h>
#include <stdlib.h>

#include "decode.h"
#include "encode.h"

typedef struct {
    uint32_t *tokens;
    uint32_t count, capacity;
} list;

static sc_status keep(void *context, uint32_t token) {
    list *l = (list *)context;
    if (l->count == l->capacity) return SC_CONTEXT_FULL;
    l->tokens[l->count++] = token;
    return SC_OK;
}

int32_t test_open(const uint8_t *table, uint32_t size) {
    sc_tokenizer tokenizer;
    return (int32_t)sc_tokenizer_open(&tokenizer, table, size);
}

/* Encode `bytes` of text, `chunk` bytes at a time. */
int32_t test_encode(const uint8_t *table, uint32_t size, const uint8_t *text, uint32_t bytes, uint32_t chunk,
                    uint32_t work_bytes, uint32_t *tokens, uint32_t capacity) {
    sc_tokenizer tokenizer;
    sc_status status = sc_tokenizer_open(&tokenizer, table, size);
    if (status != SC_OK) return -(int32_t)status;
    sc_encoder encoder;
    list found = {tokens, 0, capacity};
    void *work = malloc(work_bytes);
    status = sc_encoder_begin(&encoder, &tokenizer, work, work_bytes, keep, &found);
    for (uint32_t at = 0; at < bytes && status == SC_OK; at += chunk)
        status = sc_encoder_text(&encoder, text + at, bytes - at < chunk ? bytes - at : chunk);
    if (status == SC_OK) status = sc_encoder_finish(&encoder);
    free(work);
    return status == SC_OK ? (int32_t)found.count : -(int32_t)status;
}

typedef struct {
    uint8_t *bytes;
    uint32_t count, capacity;
} buffer;

static void put(void *context, const uint8_t *text, size_t bytes) {
    buffer *b = (buffer *)context;
    for (size_t i = 0; i < bytes && b->count < b->capacity; i++) b->bytes[b->count++] = text[i];
}

/* Decode tokens; ends[i] is how many bytes there are after token i, ends[count] after the end. */
int32_t test_decode(const uint8_t *table, uint32_t size, const uint32_t *tokens, uint32_t count, uint8_t *out,
                    uint32_t capacity, uint32_t *ends) {
    sc_tokenizer tokenizer;
    sc_status status = sc_tokenizer_open(&tokenizer, table, size);
    if (status != SC_OK) return (int32_t)status;
    buffer text = {out, 0, capacity};
    sc_decoder decoder;
    sc_decoder_begin(&decoder, &tokenizer, put, &text);
    for (uint32_t i = 0; i < count && status == SC_OK; i++) {
        status = sc_decoder_token(&decoder, tokens[i]);
        ends[i] = text.count;
    }
    sc_decoder_finish(&decoder);
    ends[count] = text.count;
    return (int32_t)status;
}
