/* Tokens to text, as they come. What is handed out is valid UTF-8: a character waits until all its bytes are there. */
#ifndef SC_DECODE_H
#define SC_DECODE_H

#include <stddef.h>
#include <stdint.h>

#include "sc_status.h"
#include "table.h"
#include "utf8.h"

/* Takes whole characters. */
typedef void (*sc_text_out)(void *context, const uint8_t *utf8, size_t bytes);

typedef struct {
    const sc_tokenizer *tokenizer;
    sc_text_out out;
    void *context;
    sc_utf8 utf8;
    int at_start; /* SentencePiece: the space before a text is not part of it */
} sc_decoder;

void sc_decoder_begin(sc_decoder *decoder, const sc_tokenizer *tokenizer, sc_text_out out, void *context);

/* The next token. Control tokens have no text. SC_BAD_TOKEN: the vocabulary does not have it. */
sc_status sc_decoder_token(sc_decoder *decoder, uint32_t token);

/* The end of a text: U+FFFD for a character that never became whole. The next token begins a new text. */
void sc_decoder_finish(sc_decoder *decoder);

#endif
