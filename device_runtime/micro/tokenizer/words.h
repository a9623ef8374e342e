/* Where the first word of a text ends: the expressions that tokenizers cut text with, by hand. */
#ifndef SC_WORDS_H
#define SC_WORDS_H

#include "table.h"

/* Bytes of the first word of `text`, which has `size` > 0 bytes of whole characters. 0: that depends on what comes
 * next; never 0 when `last` says that nothing comes. */
uint32_t sc_first_word(const sc_tokenizer *tokenizer, const uint8_t *text, uint32_t size, int last);

#endif
