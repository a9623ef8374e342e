/* Byte-pair encoding of one word: the pair of neighbours that merges earliest is merged, the left one of equals, until
 * none is left. Two pieces merge if their bytes together are a piece and, of byte-level models, if it is cut there. */
#include "encode.h"

#define NEVER 0xffffffffu

static uint32_t rank_of(const sc_tokenizer *tokenizer, uint32_t piece) {
    return tokenizer->ranks ? sc_u32(tokenizer->ranks + 4 * piece) : piece;
}

/* How early the symbols at `at` and after it merge; lower is earlier. */
static uint32_t key_of(const sc_encoder *e, uint32_t at, uint32_t size) {
    const sc_tokenizer *t = e->tokenizer;
    const uint32_t left = e->sizes[at];
    if (at + left >= size) return NEVER;
    const uint32_t piece = sc_find_piece(t, e->word + at, left + e->sizes[at + left]);
    if (piece == SC_NO_TOKEN) return NEVER;
    const uint32_t rank = rank_of(t, piece) << 8;
    if (t->kind == SC_SENTENCEPIECE_BPE) return rank;
    if (t->split != NULL) return t->split[piece] == left ? rank : NEVER;
    const sc_text splits = sc_string(&t->splits, piece);
    for (uint32_t i = 0; i < splits.size; i++)
        if (splits.text[i] == left) return rank | i;
    return NEVER;
}

static sc_status emit_symbol(sc_encoder *e, const uint8_t *text, uint32_t size) {
    if (e->tokenizer->kind == SC_BYTE_LEVEL_BPE && size == 1)
        return sc_emit(e, sc_byte_token(e->tokenizer, text[0]));
    const uint32_t piece = sc_find_piece(e->tokenizer, text, size);
    return piece == SC_NO_TOKEN ? sc_emit_unknown(e, text, size) : sc_emit(e, piece);
}

/* Bytes without a token vanish, as in `tokenizers`, and what was around them are neighbours. */
static uint32_t without_unknown_bytes(sc_encoder *e, uint32_t size) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < size; i++)
        if (sc_byte_token(e->tokenizer, e->word[i]) != SC_NO_TOKEN) e->word[kept++] = e->word[i];
    return kept;
}

sc_status sc_encode_bpe(sc_encoder *e, uint32_t size) {
    const sc_tokenizer *t = e->tokenizer;
    if (t->flags & SC_WHOLE_WORDS) {
        const uint32_t piece = sc_find_piece(t, e->word, size);
        if (piece != SC_NO_TOKEN) return sc_emit(e, piece);
    }
    if (t->kind == SC_BYTE_LEVEL_BPE) size = without_unknown_bytes(e, size);
    for (uint32_t at = 0; at < size;) {
        const uint32_t length = t->kind == SC_BYTE_LEVEL_BPE ? 1 : sc_utf8_length(e->word[at]);
        e->sizes[at] = e->sizes[at + length - 1] = (uint16_t)length;
        at += length;
    }
    for (uint32_t at = 0; at < size; at += e->sizes[at]) e->keys[at] = key_of(e, at, size);
    for (;;) {
        uint32_t best = 0, least = NEVER, before = 0, before_best = 0;
        for (uint32_t at = 0; at < size; before = at, at += e->sizes[at]) {
            if (e->keys[at] >= least) continue;
            least = e->keys[at];
            best = at;
            before_best = before;
        }
        if (least == NEVER) break;
        const uint32_t merged = (uint32_t)e->sizes[best] + e->sizes[best + e->sizes[best]];
        e->sizes[best] = e->sizes[best + merged - 1] = (uint16_t)merged;
        e->keys[best] = key_of(e, best, size);
        if (best > 0) e->keys[before_best] = key_of(e, before_best, size);
    }
    for (uint32_t at = 0; at < size; at += e->sizes[at]) {
        const sc_status status = emit_symbol(e, e->word + at, e->sizes[at]);
        if (status != SC_OK) return status;
    }
    return SC_OK;
}
