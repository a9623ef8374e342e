/* What happens to characters before they are cut into words. */
#ifndef SC_NORMALIZE_H
#define SC_NORMALIZE_H

#include "encode.h"

typedef sc_status (*sc_text_sink)(sc_encoder *encoder, const uint8_t *text, uint32_t size); /* one character */

/* SentencePiece: the normalization map, spaces as U+2581, and which of them are left out. One character at a time. */
sc_status sc_normalize(sc_encoder *encoder, const uint8_t *text, uint32_t size, sc_text_sink next);
sc_status sc_normalize_finish(sc_encoder *encoder, sc_text_sink next);

/* Unicode normalization form C where the table asks for it. One character at a time. */
sc_status sc_compose(sc_encoder *encoder, const uint8_t *text, uint32_t size, sc_text_sink next);
sc_status sc_compose_finish(sc_encoder *encoder, sc_text_sink next);

#endif
