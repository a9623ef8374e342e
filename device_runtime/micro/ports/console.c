/* A console on a serial line: a line in is a user's message, the answer comes out as it is generated.
 *
 * Bytes that come while the model computes wait in the UART; a line longer than LINE_BYTES is refused. IMAGE_AT,
 * IMAGE_ROOM, ARENA_BYTES, KV_BYTES and CONTEXT are of the board and of the bundle that the firmware is built for
 * (toolkit/firmware/build.py); an image that needs more is refused when the board starts. */
#include <string.h>

#include "chat.h"
#include "decode.h"
#include "port.h"
#include "stonechat.h"

enum { LINE_BYTES = 1024, WORK_BYTES = 8192 };

static uint8_t arena[ARENA_BYTES] __attribute__((aligned(16)));
static uint8_t kv_cache[KV_BYTES] __attribute__((aligned(16)));
static uint32_t work[WORK_BYTES / 4];
static uint32_t prompt[CONTEXT];
static uint8_t line[LINE_BYTES];

typedef struct {
    uint32_t count;
} collected;

static void put(void *context, const uint8_t *text, size_t bytes) {
    (void)context;
    for (size_t i = 0; i < bytes; i++) port_write(text[i]);
}

static void say(const char *text) { put(NULL, (const uint8_t *)text, strlen(text)); }

static void say_number(uint32_t number) {
    char digits[11];
    int at = 10;
    digits[10] = 0;
    do digits[--at] = (char)('0' + number % 10);
    while ((number /= 10) > 0);
    say(digits + at);
}

static void say_status(sc_status status) {
    say("stonechat: ");
    say(sc_status_text(status));
    say("\r\n");
}

static sc_status keep(void *context, uint32_t token) {
    collected *c = (collected *)context;
    if (c->count == CONTEXT) return SC_CONTEXT_FULL;
    prompt[c->count++] = token;
    return SC_OK;
}

/* A line without its end; longer than LINE_BYTES where it was cut. */
static uint32_t read_line(void) {
    uint32_t size = 0;
    for (;;) {
        const uint8_t byte = port_read();
        if (byte == '\r' || byte == '\n') {
            if (size > 0) return size;
            continue;
        }
        if (size < LINE_BYTES) line[size] = byte;
        if (size <= LINE_BYTES) size++;
    }
}

static sc_status encode(const sc_tokenizer *tokenizer, const sc_chat *chat, uint32_t size, collected *tokens) {
    sc_encoder encoder;
    sc_status status = sc_encoder_begin(&encoder, tokenizer, work, sizeof work, keep, tokens);
    if (status != SC_OK) return status;
    if (chat == NULL) {
        status = sc_encoder_text(&encoder, line, size);
        return status == SC_OK ? sc_encoder_finish(&encoder) : status;
    }
    sc_conversation conversation;
    sc_conversation_begin(&conversation, chat, &encoder);
    status = sc_conversation_message(&conversation, SC_USER, line, size);
    return status == SC_OK ? sc_conversation_answer(&conversation) : status;
}

static sc_status answer(sc_model *model, const sc_tokenizer *tokenizer, const sc_chat *chat, uint32_t size) {
    collected tokens = {0};
    sc_decoder decoder;
    sc_status status = encode(tokenizer, chat, size, &tokens);
    sc_rewind(model, 0); /* to the prefix */
    const uint32_t known = chat ? sc_chat_after_prefix(chat, prompt, tokens.count) : 0;
    for (uint32_t i = known; i < tokens.count && status == SC_OK; i++) status = sc_feed(model, prompt[i]);
    sc_decoder_begin(&decoder, tokenizer, put, NULL);
    while (status == SC_OK) {
        const uint32_t token = sc_greedy(model);
        if (chat != NULL && sc_chat_is_end(chat, token)) break;
        status = sc_decoder_token(&decoder, token);
        if (status == SC_OK) status = sc_feed(model, token);
    }
    sc_decoder_finish(&decoder);
    return status;
}

int main(void) {
    sc_needs needs;
    sc_model *model;
    sc_image image;
    sc_tokenizer tokenizer;
    sc_chat chat;
    const void *at = (const void *)IMAGE_AT;
    port_start();
    sc_status status = sc_measure(at, IMAGE_ROOM, SC_CHECK_HASH, &needs);
    if (status == SC_OK && needs.context > CONTEXT) status = SC_ARENA_TOO_SMALL;
    if (status == SC_OK)
        status = sc_open(&model, at, IMAGE_ROOM, SC_TRUST_HASH, arena, sizeof arena, kv_cache, sizeof kv_cache);
    if (status == SC_OK) status = sc_self_test(model);
    if (status == SC_MISSING_SECTION) status = SC_OK;
    if (status == SC_OK) status = sc_image_open_trusted(&image, at, IMAGE_ROOM);
    if (status == SC_OK) {
        const sc_section table = sc_image_section(&image, SC_SECTION_TOKENIZER);
        status = table.bytes ? sc_tokenizer_open(&tokenizer, table.bytes, table.size) : SC_MISSING_SECTION;
    }
    int has_chat = 0;
    if (status == SC_OK) {
        const sc_section roles = sc_image_section(&image, SC_SECTION_CHAT);
        has_chat = roles.bytes != NULL;
        if (has_chat) status = sc_chat_open(&chat, roles.bytes, roles.size, tokenizer.vocabulary);
    }
    if (status != SC_OK) {
        say_status(status);
        say("> ");
        for (;;) (void)port_read();
    }
    say("stonechat: ready, context ");
    say_number(needs.context);
    say("\r\n> ");
    for (;;) {
        const uint32_t size = read_line();
        if (size > LINE_BYTES) {
            say("stonechat: the line is longer than 1,024 bytes; shorten it");
        } else {
            status = answer(model, &tokenizer, has_chat ? &chat : NULL, size);
            if (status != SC_OK && status != SC_CONTEXT_FULL) say_status(status);
        }
        say("\r\n> ");
    }
}
