#include "decode.h"

#include <string.h>

static const uint8_t REPLACEMENT[3] = {0xef, 0xbf, 0xbd};

void sc_decoder_begin(sc_decoder *d, const sc_tokenizer *tokenizer, sc_text_out out, void *context) {
    memset(d, 0, sizeof *d);
    d->tokenizer = tokenizer;
    d->out = out;
    d->context = context;
    d->at_start = 1;
}

/* What is held back is no character: U+FFFD once, or as SentencePiece does it, for each byte. */
static void give_up(sc_decoder *d, uint32_t bytes) {
    const uint32_t marks = d->tokenizer->kind == SC_BYTE_LEVEL_BPE ? 1 : bytes;
    for (uint32_t i = 0; i < marks; i++) d->out(d->context, REPLACEMENT, 3);
}

static void take_byte(sc_decoder *d, uint8_t byte) {
    uint32_t character;
    const uint32_t held = d->utf8.have;
    const int came = sc_utf8_push(&d->utf8, byte, &character);
    if (came == 0) return;
    if (came < 0) {
        give_up(d, held);
        take_byte(d, byte); /* nothing is held now: no deeper */
        return;
    }
    uint8_t text[4];
    d->out(d->context, text, sc_utf8_write(character, text));
}

static void flush(sc_decoder *d) {
    if (d->utf8.need) give_up(d, d->utf8.have);
    d->utf8.need = d->utf8.have = 0;
}

static int is_space_mark(const uint8_t *text, uint32_t size) {
    return size >= 3 && text[0] == 0xe2 && text[1] == 0x96 && text[2] == 0x81;
}

static int byte_of(const sc_tokenizer *t, uint32_t token) {
    for (uint32_t i = 0; i < 256; i++)
        if (sc_listed_id(t, t->byte_ids, i) == token) return (int)i;
    return -1;
}

static void take_piece(sc_decoder *d, sc_text piece, int unknown) {
    const uint32_t flags = d->tokenizer->flags;
    uint32_t at = 0;
    flush(d);
    if (d->at_start && !unknown && flags & (SC_DUMMY_PREFIX | SC_FEWER_SPACES) && is_space_mark(piece.text, piece.size)) {
        at = 3;
        d->at_start = (flags & SC_FEWER_SPACES) != 0;
    }
    if (at < piece.size) d->at_start = 0;
    for (uint32_t start = at; at < piece.size;) {
        const uint32_t length = sc_utf8_length(piece.text[at]);
        const int space = is_space_mark(piece.text + at, piece.size - at);
        const int end = at + length >= piece.size;
        if (space) {
            if (at > start) d->out(d->context, piece.text + start, at - start);
            d->out(d->context, (const uint8_t *)" ", 1);
            start = at + 3;
        } else if (end) {
            d->out(d->context, piece.text + start, piece.size - start);
        }
        at += length;
    }
}

sc_status sc_decoder_token(sc_decoder *d, uint32_t token) {
    const sc_tokenizer *t = d->tokenizer;
    if (token >= t->vocabulary) return SC_BAD_TOKEN;
    if (sc_is_control(t, token)) {
        if (t->kind != SC_BYTE_LEVEL_BPE) flush(d);
        return SC_OK;
    }
    const sc_text piece = sc_piece_text(t, token);
    if (t->kind == SC_BYTE_LEVEL_BPE) {
        for (uint32_t i = 0; i < piece.size; i++) take_byte(d, piece.text[i]);
        return SC_OK;
    }
    const int byte = t->flags & SC_BYTE_FALLBACK ? byte_of(t, token) : -1;
    if (byte < 0) {
        take_piece(d, piece, token == t->unknown);
    } else {
        d->at_start = 0;
        take_byte(d, (uint8_t)byte);
    }
    return SC_OK;
}

void sc_decoder_finish(sc_decoder *d) {
    flush(d);
    d->at_start = 1;
}
