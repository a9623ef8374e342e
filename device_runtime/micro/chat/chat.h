/* Messages of a chat to tokens, by a table of what comes before and after each role's words. converters/emit/c/
 * chat_roles.py makes it of the chat template. What a message says is text: it never becomes a control token. */
#ifndef SC_CHAT_H
#define SC_CHAT_H

#include "encode.h"

#define SC_CHAT_FORMAT 1u

enum { SC_SYSTEM, SC_USER, SC_ASSISTANT, SC_ROLES };

typedef struct {
    const uint8_t *table;
    uint32_t size, vocabulary;
} sc_chat;

/* A conversation on its way to tokens. */
typedef struct {
    const sc_chat *chat;
    sc_encoder *encoder;
    uint32_t messages;
} sc_conversation;

/* Check a table, for a model of `vocabulary` tokens. */
sc_status sc_chat_open(sc_chat *chat, const uint8_t *table, size_t size, uint32_t vocabulary);

/* Whether the template takes messages of a role. */
int sc_chat_has_role(const sc_chat *chat, uint32_t role);

/* Whether a token ends an answer. */
int sc_chat_is_end(const sc_chat *chat, uint32_t token);

/* How many of a prompt's tokens the image's prefix holds already: all of the prefix, or none where they differ. */
uint32_t sc_chat_after_prefix(const sc_chat *chat, const uint32_t *tokens, uint32_t count);

void sc_conversation_begin(sc_conversation *conversation, const sc_chat *chat, sc_encoder *encoder);

/* The next message. SC_BAD_ARGUMENT: the template has no such role, or a system message is not the first. */
sc_status sc_conversation_message(sc_conversation *conversation, uint32_t role, const uint8_t *text, size_t bytes);

/* The opening of the assistant's answer; all tokens have been given to the encoder's sink then. */
sc_status sc_conversation_answer(sc_conversation *conversation);

#endif
