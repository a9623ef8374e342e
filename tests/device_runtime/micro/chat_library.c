/* Conversations for tests in Python: messages are role (one byte), size (uint32), text. */
#include <stdint.h>
#include <string.h>

#include "chat.h"

typedef struct {
    uint32_t *tokens;
    uint32_t count;
} list;

static sc_status keep(void *context, uint32_t token) {
    list *l = (list *)context;
    l->tokens[l->count++] = token;
    return SC_OK;
}

int32_t test_chat(const uint8_t *table, uint32_t table_size, const uint8_t *roles, uint32_t roles_size,
                  const uint8_t *messages, uint32_t bytes, uint32_t *tokens) {
    static uint32_t work[1 << 14];
    sc_tokenizer tokenizer;
    sc_chat chat;
    sc_encoder encoder;
    sc_conversation conversation;
    list found = {tokens, 0};
    sc_status status = sc_tokenizer_open(&tokenizer, table, table_size);
    if (status == SC_OK) status = sc_chat_open(&chat, roles, roles_size, tokenizer.vocabulary);
    if (status == SC_OK) status = sc_encoder_begin(&encoder, &tokenizer, work, sizeof work, keep, &found);
    if (status != SC_OK) return -(int32_t)status;
    sc_conversation_begin(&conversation, &chat, &encoder);
    for (uint32_t at = 0; at < bytes && status == SC_OK;) {
        const uint32_t size = sc_u32(messages + at + 1);
        status = sc_conversation_message(&conversation, messages[at], messages + at + 5, size);
        at += 5 + size;
    }
    if (status == SC_OK) status = sc_conversation_answer(&conversation);
    return status == SC_OK ? (int32_t)found.count : -(int32_t)status;
}
