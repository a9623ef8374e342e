/* The expressions (Python's `tokenizers` calls them Split and ByteLevel), alternatives in this order:
 *   GPT-2:  's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 *   GPT-4:  (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|
 *           \s+(?!\S)|\s+
 */
#include "words.h"

#include "utf8.h"

enum { UNDECIDED = 0 };
enum { ANY_CLASS = SC_LETTER | SC_NUMBER | SC_SPACE };

typedef struct {
    const sc_tokenizer *tokenizer;
    const uint8_t *text;
    uint32_t size;
    int last;
} input;

static uint32_t class_of(const sc_tokenizer *tokenizer, uint32_t character) {
    uint32_t low = 0, high = tokenizer->class_count; /* the last entry that starts at or before the character */
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (sc_u32(tokenizer->classes + 4 * middle) >> 4 <= character) low = middle + 1;
        else high = middle;
    }
    return low ? sc_u32(tokenizer->classes + 4 * (low - 1)) & 15 : 0;
}

static uint32_t class_at(const input *in, uint32_t at, uint32_t *length) {
    return class_of(in->tokenizer, sc_utf8_read(in->text + at, in->size - at, length));
}

/* The end of the run of characters from `at` whose class is `wanted` (0: neither letter, number nor space). At most
 * `most` characters. UNDECIDED where the run reaches the end of what is known. */
static uint32_t run(const input *in, uint32_t at, uint32_t wanted, uint32_t most) {
    uint32_t length;
    for (; at < in->size && most > 0; at += length, most--) {
        const uint32_t found = class_at(in, at, &length) & ANY_CLASS;
        if (wanted ? !(found & wanted) : found != 0) return at;
    }
    return at < in->size || most == 0 || in->last ? at : UNDECIDED;
}

/* Bytes of 's, 't, 're, 've, 'm, 'll or 'd; -1: there is none; UNDECIDED. */
static int32_t contraction(const input *in, int any_case) {
    static const char *const two = "stmd", *const three = "revell";
    if (in->text[0] != '\'') return -1;
    if (in->size < 2) return in->last ? -1 : UNDECIDED;
    const uint8_t upper = any_case ? 0x20 : 0;
    if (any_case && in->text[1] == 0xc5) { /* U+017F, the long s, is an s in another case */
        if (in->size < 3) return in->last ? -1 : UNDECIDED;
        return in->text[2] == 0xbf ? 3 : -1;
    }
    const uint8_t second = in->text[1] | (in->text[1] >= 'A' && in->text[1] <= 'Z' ? upper : 0);
    for (int i = 0; i < 4; i++)
        if (second == two[i]) return 2;
    for (int i = 0; i < 6; i += 2) {
        if (second != three[i]) continue;
        if (in->size < 3) return in->last ? -1 : UNDECIDED;
        const uint8_t third = in->text[2] | (in->text[2] >= 'A' && in->text[2] <= 'Z' ? upper : 0);
        if (third == three[i + 1]) return 3;
    }
    return -1;
}

/* \s+(?!\S)|\s+: all but the last space where a word follows, unless there is only one. */
static uint32_t spaces(const input *in) {
    const uint32_t end = run(in, 0, SC_SPACE, SC_NO_TOKEN);
    if (end == UNDECIDED || end == in->size) return end;
    uint32_t before = 0, at = 0, length;
    while (at < end) {
        before = at;
        sc_utf8_read(in->text + at, in->size - at, &length);
        at += length;
    }
    return before ? before : end;
}

static uint32_t gpt2(const input *in) {
    const int32_t short_form = contraction(in, 0);
    if (short_form >= 0) return (uint32_t)short_form;
    uint32_t length, start = 0;
    uint32_t first = class_at(in, 0, &length) & ANY_CLASS;
    if (in->text[0] == ' ') {
        if (in->size == 1) return in->last ? 1 : UNDECIDED;
        uint32_t next;
        const uint32_t second = class_at(in, 1, &next) & ANY_CLASS;
        if (!(second & SC_SPACE)) {
            start = 1;
            first = second;
        }
    }
    if (first & SC_SPACE) return spaces(in);
    return run(in, start, first, SC_NO_TOKEN);
}

static int is_line_end(uint8_t byte) { return byte == '\r' || byte == '\n'; }

static uint32_t gpt4(const input *in, uint32_t most_digits) {
    const int32_t short_form = contraction(in, 1);
    if (short_form >= 0) return (uint32_t)short_form;
    uint32_t length, next;
    const uint32_t first = class_at(in, 0, &length) & ANY_CLASS;
    if (first & SC_LETTER) return run(in, 0, SC_LETTER, SC_NO_TOKEN);
    if (first & SC_NUMBER) return run(in, 0, SC_NUMBER, most_digits);
    if (!is_line_end(in->text[0])) {
        if (length == in->size) {
            if (!in->last) return UNDECIDED;
        } else if (class_at(in, length, &next) & SC_LETTER) {
            return run(in, length, SC_LETTER, SC_NO_TOKEN);
        }
    }
    uint32_t start = 0;
    if (in->text[0] == ' ' && in->size > 1 && !(class_at(in, 1, &next) & ANY_CLASS)) start = 1;
    if (start == 1 || !(first & SC_SPACE)) {
        uint32_t end = run(in, start, 0, SC_NO_TOKEN);
        if (end == UNDECIDED) return end;
        while (end < in->size && is_line_end(in->text[end])) end++;
        return end < in->size || in->last ? end : UNDECIDED;
    }
    const uint32_t end = run(in, 0, SC_SPACE, SC_NO_TOKEN);
    if (end == UNDECIDED) return end;
    for (uint32_t at = end; at > 0; at--)
        if (is_line_end(in->text[at - 1])) return at;
    return spaces(in);
}

/* Digits are cut off first; what is between two of them is a text of its own. */
static uint32_t gpt2_digits(input *in) {
    uint32_t length, at = 0;
    if (class_at(in, 0, &length) & SC_DIGIT) return length;
    while (at < in->size) {
        if (class_at(in, at, &length) & SC_DIGIT) {
            in->size = at;
            in->last = 1;
            break;
        }
        at += length;
    }
    return gpt2(in);
}

/* U+2581, which SentencePiece writes for a space. */
static int is_space_mark(const uint8_t *text, uint32_t size) {
    return size >= 3 && text[0] == 0xe2 && text[1] == 0x96 && text[2] == 0x81;
}

static uint32_t before_spaces(const input *in) {
    int after_other = 0;
    for (uint32_t at = 0; at < in->size; at += sc_utf8_length(in->text[at])) {
        const int space = is_space_mark(in->text + at, in->size - at);
        if (space && after_other) return at;
        after_other |= !space;
    }
    return in->last ? in->size : UNDECIDED;
}

uint32_t sc_first_word(const sc_tokenizer *tokenizer, const uint8_t *text, uint32_t size, int last) {
    input in = {tokenizer, text, size, last};
    switch (tokenizer->cut) {
    case SC_CUT_GPT2: return gpt2(&in);
    case SC_CUT_GPT2_DIGITS: return gpt2_digits(&in);
    case SC_CUT_GPT4_THREE: return gpt4(&in, 3);
    case SC_CUT_GPT4_ONE: return gpt4(&in, 1);
    case SC_CUT_BEFORE_SPACES: return before_spaces(&in);
    default: return last ? size : UNDECIDED;
    }
}
