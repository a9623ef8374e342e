/* The likeliest way to cut a word into pieces (Viterbi), with the sums that SentencePiece computes in single
 * precision. They go on from word to word, since rounding depends on them. */
#include "encode.h"

#include <string.h>

static const float UNKNOWN_PENALTY = 10.0f;
static const double USER_PENALTY = 0.1;
enum { NOTHING = 0 };

static float score_of(const sc_tokenizer *t, uint32_t piece, uint32_t size) {
    if (sc_is_user_token(t, piece)) {
        const float together = (float)size * t->greatest_score;
        return (float)((double)together - USER_PENALTY);
    }
    const uint32_t bits = sc_u32(t->scores + 4 * piece);
    float score;
    memcpy(&score, &bits, sizeof score);
    return score;
}

static void offer(sc_encoder *e, uint32_t from, uint32_t to, float score, uint32_t piece) {
    const float sum = score + e->scores[from];
    if (e->sizes[to] != NOTHING && !(sum > e->scores[to])) return;
    e->scores[to] = sum;
    e->sizes[to] = (uint16_t)(to - from);
    e->keys[to] = piece;
}

sc_status sc_encode_unigram(sc_encoder *e, uint32_t size) {
    const sc_tokenizer *t = e->tokenizer;
    for (uint32_t at = 0; at <= size; at++) e->sizes[at] = NOTHING;
    e->scores[0] = e->score;
    uint32_t length;
    for (uint32_t from = 0; from < size; from += length) {
        uint32_t low = 0, high = t->sorted_count;
        int whole_character = 0;
        length = sc_utf8_length(e->word[from]);
        for (uint32_t depth = 0; from + depth < size; depth++) {
            if (!sc_narrow(t, t->sorted, depth, e->word[from + depth], &low, &high)) break;
            const uint32_t piece = sc_listed_id(t, t->sorted, low);
            if (sc_piece_text(t, piece).size != depth + 1) continue; /* a beginning only: the shortest comes first */
            offer(e, from, from + depth + 1, score_of(t, piece, depth + 1), piece);
            whole_character |= depth + 1 == length;
        }
        if (!whole_character) {
            const float unknown = t->least_score - UNKNOWN_PENALTY;
            const float sum = unknown + e->scores[from];
            if (e->sizes[from + length] == NOTHING || sum > e->scores[from + length])
                offer(e, from, from + length, unknown, SC_NO_TOKEN);
        }
    }
    e->score = e->scores[size];
    /* The best way is found from its end; turn it round in place, so that each piece is where it begins. */
    uint16_t length_here = e->sizes[size];
    uint32_t piece_here = e->keys[size];
    for (uint32_t at = size; at > 0;) {
        at -= length_here;
        const uint16_t length_before = e->sizes[at];
        const uint32_t piece_before = e->keys[at];
        e->sizes[at] = length_here;
        e->keys[at] = piece_here;
        length_here = length_before;
        piece_here = piece_before;
    }
    for (uint32_t at = 0; at < size; at += e->sizes[at]) {
        const sc_status status = e->keys[at] == SC_NO_TOKEN ? sc_emit_unknown(e, e->word + at, e->sizes[at])
                                                            : sc_emit(e, e->keys[at]);
        if (status != SC_OK) return status;
    }
    return SC_OK;
}
