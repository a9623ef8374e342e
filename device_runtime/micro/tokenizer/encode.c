/* A text's way: bytes, characters, normalization, user-defined tokens, words, tokens. SentencePiece normalizes before
 * it looks for user-defined tokens, byte-level models after. */
#include "encode.h"

#include <string.h>

#include "normalize.h"
#include "words.h"

sc_status sc_emit(sc_encoder *e, uint32_t token) {
    e->after_unknown = 0;
    return e->sink(e->context, token);
}

/* Without byte fallback, a run of unknown characters is one unknown token. */
sc_status sc_emit_unknown(sc_encoder *e, const uint8_t *text, uint32_t size) {
    const sc_tokenizer *t = e->tokenizer;
    if (t->flags & SC_BYTE_FALLBACK) {
        for (uint32_t i = 0; i < size; i++) {
            const uint32_t token = sc_byte_token(t, text[i]);
            const sc_status status = token == SC_NO_TOKEN ? SC_OK : sc_emit(e, token);
            if (status != SC_OK) return status;
        }
        return SC_OK;
    }
    if (e->after_unknown || t->unknown == SC_NO_TOKEN) return SC_OK;
    const sc_status status = sc_emit(e, t->unknown);
    e->after_unknown = 1;
    return status;
}

/* Encode the words that are whole; with `last`, all. */
static sc_status encode_words(sc_encoder *e, int last) {
    uint32_t done = 0;
    while (done < e->size) {
        const uint32_t size = sc_first_word(e->tokenizer, e->word + done, e->size - done, last);
        if (size == 0) break;
        if (done > 0) {
            memmove(e->word, e->word + done, e->size - done);
            e->size -= done;
        }
        done = size;
        const sc_status status =
            e->tokenizer->kind == SC_UNIGRAM ? sc_encode_unigram(e, size) : sc_encode_bpe(e, size);
        if (status != SC_OK) return status;
    }
    if (done > 0) memmove(e->word, e->word + done, e->size - done);
    e->size -= done;
    return SC_OK;
}

static sc_status append(sc_encoder *e, const uint8_t *text, uint32_t size) {
    if (e->capacity - e->size < size) {
        const sc_status status = encode_words(e, 0);
        if (status != SC_OK) return status;
        if (e->capacity - e->size < size) return SC_WORD_TOO_LONG;
    }
    memcpy(e->word + e->size, text, size);
    e->size += size;
    return SC_OK;
}

static sc_status past_users(sc_encoder *e, const uint8_t *text, uint32_t size) {
    if (e->tokenizer->kind != SC_BYTE_LEVEL_BPE) return append(e, text, size);
    return sc_compose(e, text, size, append);
}

/* The longest user-defined token that the bytes in `user` begin with; its size or 0. */
static uint32_t user_token(const sc_encoder *e, uint32_t *token) {
    const sc_tokenizer *t = e->tokenizer;
    uint32_t low = 0, high = t->user_count, found = 0;
    for (uint32_t depth = 0; depth < e->user_size; depth++) {
        if (!sc_narrow(t, t->users, depth, e->user[depth], &low, &high)) break;
        const uint32_t id = sc_listed_id(t, t->users, low);
        if (sc_piece_text(t, id).size != depth + 1) continue;
        found = depth + 1;
        *token = id;
    }
    return found;
}

static sc_status end_words(sc_encoder *e) {
    if (e->tokenizer->kind == SC_BYTE_LEVEL_BPE) {
        const sc_status status = sc_compose_finish(e, append);
        if (status != SC_OK) return status;
    }
    return encode_words(e, 1);
}

/* Take user-defined tokens out of what is held in `user`, as far as it is certain. */
static sc_status find_users(sc_encoder *e, int last) {
    while (e->user_size > 0 && (last || e->user_size >= e->tokenizer->longest_user)) {
        uint32_t token = 0, size = user_token(e, &token);
        sc_status status;
        if (size > 0) {
            status = end_words(e);
            if (status == SC_OK) status = sc_emit(e, token);
        } else {
            size = sc_utf8_length(e->user[0]);
            status = past_users(e, e->user, size);
        }
        if (status != SC_OK) return status;
        e->user_size -= size;
        memmove(e->user, e->user + size, e->user_size);
    }
    return SC_OK;
}

static sc_status to_users(sc_encoder *e, const uint8_t *text, uint32_t size) {
    /* Unigram finds its user-defined pieces by their scores. */
    if (e->tokenizer->longest_user == 0 || e->tokenizer->kind == SC_UNIGRAM) return past_users(e, text, size);
    memcpy(e->user + e->user_size, text, size);
    e->user_size += size;
    return find_users(e, 0);
}

static sc_status take_character(sc_encoder *e, uint32_t character) {
    uint8_t bytes[4];
    const uint32_t size = sc_utf8_write(character, bytes);
    if (e->tokenizer->kind == SC_BYTE_LEVEL_BPE) return to_users(e, bytes, size);
    return sc_normalize(e, bytes, size, to_users);
}

sc_status sc_encoder_text(sc_encoder *e, const uint8_t *utf8, size_t bytes) {
    for (size_t i = 0; i < bytes;) {
        uint32_t character;
        const int came = sc_utf8_push(&e->utf8, utf8[i], &character);
        if (came != 0) {
            const sc_status status = take_character(e, character);
            if (status != SC_OK) return status;
        }
        if (came >= 0) i++;
    }
    return encode_words(e, 0);
}

static void start_text(sc_encoder *e) {
    e->size = e->user_size = e->raw_size = e->mark_count = e->held_spaces = 0;
    e->score = 0;
    e->after_unknown = e->begun = 0;
    e->after_space = (e->tokenizer->flags & SC_FEWER_SPACES) != 0;
    e->utf8.have = e->utf8.need = 0;
}

sc_status sc_encoder_finish(sc_encoder *e) {
    sc_status status = SC_OK;
    if (e->utf8.need) status = take_character(e, SC_REPLACEMENT);
    if (status == SC_OK && e->tokenizer->kind != SC_BYTE_LEVEL_BPE) status = sc_normalize_finish(e, to_users);
    if (status == SC_OK) status = find_users(e, 1);
    if (status == SC_OK) status = end_words(e);
    start_text(e);
    return status;
}

sc_status sc_encoder_begin(sc_encoder *e, const sc_tokenizer *tokenizer, void *work, size_t work_bytes,
                           sc_token_sink sink, void *context) {
    if (tokenizer == NULL || work == NULL || sink == NULL || (uintptr_t)work % 4) return SC_BAD_ARGUMENT;
    if (work_bytes < SC_ENCODER_BYTES(16)) return SC_ARENA_TOO_SMALL;
    memset(e, 0, sizeof *e);
    e->tokenizer = tokenizer;
    e->sink = sink;
    e->context = context;
    size_t places = work_bytes / 11; /* for each byte of a word, and one past it */
    if (places > 65000) places = 65000; /* sizes have 16 bits */
    places -= places % 4;
    e->scores = (float *)work;
    e->keys = (uint32_t *)(void *)((uint8_t *)work + 4 * places);
    e->sizes = (uint16_t *)(void *)((uint8_t *)work + 8 * places);
    e->word = (uint8_t *)work + 10 * places;
    e->capacity = (uint32_t)places - 1;
    start_text(e);
    return SC_OK;
}
