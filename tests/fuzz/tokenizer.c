/* A tokenizer table and a text from outside: a size (uint32), the table of that size, the text. Whatever they are, the
 * reader stays inside of its memory and comes to an end. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "decode.h"
#include "encode.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static sc_status take(void *context, uint32_t token) {
    return sc_decoder_token((sc_decoder *)context, token);
}

static void put(void *context, const uint8_t *text, size_t bytes) {
    uint8_t *last = (uint8_t *)context;
    for (size_t i = 0; i < bytes; i++) *last ^= text[i];
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 4) return 0;
    uint32_t bytes = sc_u32(data);
    if (bytes > size - 4) bytes = (uint32_t)size - 4;
    /* Copies of their own size, so that a sanitizer sees a read past either end. */
    uint8_t *table = malloc(bytes ? bytes : 1), *text = malloc(size - 4 - bytes + 1);
    memcpy(table, data + 4, bytes);
    memcpy(text, data + 4 + bytes, size - 4 - bytes);
    sc_tokenizer tokenizer;
    if (sc_tokenizer_open(&tokenizer, table, bytes) == SC_OK) {
        enum { WORK = 2048 };
        uint32_t *work = malloc(WORK);
        uint8_t last = 0;
        sc_decoder decoder;
        sc_encoder encoder;
        sc_decoder_begin(&decoder, &tokenizer, put, &last);
        if (sc_encoder_begin(&encoder, &tokenizer, work, WORK, take, &decoder) == SC_OK &&
            sc_encoder_text(&encoder, text, size - 4 - bytes) == SC_OK)
            (void)sc_encoder_finish(&encoder);
        for (size_t i = 0; i < size - 4 - bytes; i++) (void)sc_decoder_token(&decoder, text[i]);
        sc_decoder_finish(&decoder);
        free(work);
    }
    free(table);
    free(text);
    return 0;
}
