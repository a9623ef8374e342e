/* Text to tokens, as it comes in. Text is never markup: control tokens are not found in it, they are put in by id. */
#ifndef SC_ENCODE_H
#define SC_ENCODE_H

#include <stddef.h>
#include <stdint.h>

#include "sc_status.h"
#include "table.h"
#include "utf8.h"

/* Takes tokens one by one; anything but SC_OK ends the encoding and is handed on. */
typedef sc_status (*sc_token_sink)(void *context, uint32_t token);

/* What encoding needs of memory for words of at most `bytes` bytes. A longer word is refused: SC_WORD_TOO_LONG. */
#define SC_ENCODER_BYTES(bytes) (((size_t)(bytes) + 4) * 11 + 8)

#define SC_NORMALIZER_BYTES 64u  /* of characters that one rule of the normalization map may span */
#define SC_COMPOSED_CHARACTERS 34u /* a character and the marks that it is composed with */

typedef struct {
    const sc_tokenizer *tokenizer;
    sc_token_sink sink;
    void *context;
    /* The caller's memory: a word, and what its encoding needs for each of its bytes. */
    uint8_t *word;
    float *scores;    /* unigram: the best sum of scores that ends here */
    uint32_t *keys;   /* BPE: how early a symbol merges with the next one; unigram: the last piece of the best way */
    uint16_t *sizes;  /* BPE: bytes of a symbol, at its first and its last byte; unigram: of the last piece */
    uint32_t capacity, size; /* bytes */
    float score;      /* unigram: of all words before */
    int after_unknown;
    /* From bytes to words. */
    sc_utf8 utf8;
    uint8_t user[SC_LONGEST_USER_TOKEN + 4]; /* what may become a user-defined token */
    uint32_t user_size;
    uint8_t raw[SC_NORMALIZER_BYTES + 4]; /* what the normalization map may still change */
    uint32_t raw_size;
    uint32_t marks[SC_COMPOSED_CHARACTERS]; /* what may still be composed (NFC) */
    uint32_t mark_count;
    uint32_t held_spaces; /* at the end so far; left out if nothing follows */
    int begun, after_space;
} sc_encoder;

/* Start with `work` of `work_bytes`, at a multiple of 4. */
sc_status sc_encoder_begin(sc_encoder *encoder, const sc_tokenizer *tokenizer, void *work, size_t work_bytes,
                           sc_token_sink sink, void *context);

/* More of a text, in UTF-8; a character may be split between calls. Bytes that are no UTF-8 become U+FFFD. */
sc_status sc_encoder_text(sc_encoder *encoder, const uint8_t *utf8, size_t bytes);

/* The end of a text: what was held back becomes tokens. The next text begins as if it were the first. */
sc_status sc_encoder_finish(sc_encoder *encoder);

/* The parts, for encode.c alone. */
sc_status sc_emit_unknown(sc_encoder *encoder, const uint8_t *text, uint32_t size);
sc_status sc_emit(sc_encoder *encoder, uint32_t token);
sc_status sc_encode_bpe(sc_encoder *encoder, uint32_t size);     /* the first `size` bytes of encoder->word */
sc_status sc_encode_unigram(sc_encoder *encoder, uint32_t size); /* the same */

#endif
