#include "table.h"

#include <string.h>

enum { HEADER_BYTES = 112, SECTIONS = 16, SECTIONS_AT = 48 };

enum {
    TEXT_STARTS, TEXT_LENGTHS, TEXT_BYTES, SPLIT_STARTS, SPLITS, SPLIT_BYTES, RANKS, SCORES, SORTED, BYTE_IDS, CONTROLS,
    USERS, CLASSES, CHARSMAP, DECOMPOSITIONS, COMBINING
};

typedef struct {
    const uint8_t *bytes;
    uint32_t size;
} part;

/* Parts of the table lie one after the other, each at a multiple of four; the header has their sizes. */
static int read_parts(part parts[SECTIONS], const uint8_t *table, uint32_t size) {
    uint32_t at = HEADER_BYTES;
    for (int i = 0; i < SECTIONS; i++) {
        const uint32_t bytes = sc_u32(table + SECTIONS_AT + 4 * i);
        if (bytes > size - at) return 0;
        parts[i].bytes = table + at;
        parts[i].size = bytes;
        at += bytes;
        const uint32_t gap = (4 - at % 4) % 4;
        if (gap > size - at) return 0;
        at += gap;
    }
    return at == size;
}

static int open_strings(sc_strings *strings, part starts, part lengths, part bytes, uint32_t count, int wide) {
    strings->starts = starts.bytes;
    strings->lengths = lengths.bytes;
    strings->bytes = bytes.bytes;
    strings->count = count;
    strings->wide = wide;
    if (starts.size != (count + 15) / 16 * 4 || lengths.size != (wide ? 2 * count : count)) return 0;
    uint32_t at = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (i % 16 == 0 && sc_u32(starts.bytes + i / 4) != at) return 0;
        const uint32_t length = wide ? sc_u16(lengths.bytes + 2 * i) : lengths.bytes[i];
        if (length > bytes.size - at) return 0;
        at += length;
    }
    return at == bytes.size;
}

sc_text sc_string(const sc_strings *strings, uint32_t number) {
    uint32_t at = sc_u32(strings->starts + number / 16 * 4);
    sc_text text;
    if (strings->wide) {
        for (uint32_t i = number / 16 * 16; i < number; i++) at += sc_u16(strings->lengths + 2 * i);
        text.size = sc_u16(strings->lengths + 2 * number);
    } else {
        for (uint32_t i = number / 16 * 16; i < number; i++) at += strings->lengths[i];
        text.size = strings->lengths[number];
    }
    text.text = strings->bytes + at;
    return text;
}

sc_text sc_piece_text(const sc_tokenizer *tokenizer, uint32_t piece) { return sc_string(&tokenizer->texts, piece); }

uint32_t sc_listed_id(const sc_tokenizer *tokenizer, const uint8_t *list, uint32_t i) {
    return tokenizer->flags & SC_WIDE_IDS ? sc_u32(list + 4 * i) : sc_u16(list + 2 * i);
}

uint32_t sc_byte_token(const sc_tokenizer *tokenizer, uint8_t byte) {
    const uint32_t id = sc_listed_id(tokenizer, tokenizer->byte_ids, byte);
    return id < tokenizer->vocabulary ? id : SC_NO_TOKEN;
}

static int compare(sc_text a, const uint8_t *text, uint32_t size) {
    const int order = memcmp(a.text, text, a.size < size ? a.size : size);
    return order ? order : (a.size > size) - (a.size < size);
}

uint32_t sc_find_piece(const sc_tokenizer *tokenizer, const uint8_t *text, uint32_t size) {
    uint32_t low = 0, high = tokenizer->sorted_count;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2, id = sc_listed_id(tokenizer, tokenizer->sorted, middle);
        const int order = compare(sc_piece_text(tokenizer, id), text, size);
        if (order == 0) return id;
        if (order < 0) low = middle + 1;
        else high = middle;
    }
    return SC_NO_TOKEN;
}

/* The first entry of [low, high) whose byte at `depth` is at least `least`; a text that ends before has none. */
static uint32_t first_from(const sc_tokenizer *tokenizer, const uint8_t *list, uint32_t depth, uint32_t least,
                           uint32_t low, uint32_t high) {
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        const sc_text text = sc_piece_text(tokenizer, sc_listed_id(tokenizer, list, middle));
        if (text.size <= depth || text.text[depth] < least) low = middle + 1;
        else high = middle;
    }
    return low;
}

int sc_narrow(const sc_tokenizer *tokenizer, const uint8_t *list, uint32_t depth, uint8_t byte, uint32_t *low,
              uint32_t *high) {
    *low = first_from(tokenizer, list, depth, byte, *low, *high);
    *high = first_from(tokenizer, list, depth, (uint32_t)byte + 1, *low, *high);
    return *low < *high;
}

int sc_is_control(const sc_tokenizer *tokenizer, uint32_t token) {
    uint32_t low = 0, high = tokenizer->control_count;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2, found = sc_u32(tokenizer->controls + 4 * middle);
        if (found == token) return 1;
        if (found < token) low = middle + 1;
        else high = middle;
    }
    return 0;
}

int sc_is_user_token(const sc_tokenizer *tokenizer, uint32_t token) {
    for (uint32_t i = 0; i < tokenizer->user_count; i++)
        if (sc_listed_id(tokenizer, tokenizer->users, i) == token) return 1;
    return 0;
}

/* Ids below `limit`, sorted by their texts, no text twice. */
static int ids_are_sound(const sc_tokenizer *tokenizer, const uint8_t *list, uint32_t count, uint32_t limit) {
    sc_text before = {NULL, 0};
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t id = sc_listed_id(tokenizer, list, i);
        if (id >= limit) return 0;
        const sc_text text = sc_piece_text(tokenizer, id);
        if (text.size == 0 || (i > 0 && compare(before, text.text, text.size) >= 0)) return 0;
        before = text;
    }
    return 1;
}

static int ascends(const uint8_t *list, uint32_t count, uint32_t shift) {
    for (uint32_t i = 1; i < count; i++)
        if (sc_u32(list + 4 * i) >> shift <= sc_u32(list + 4 * i - 4) >> shift) return 0;
    return 1;
}

static int open_lists(sc_tokenizer *t, const part *parts) {
    const uint32_t width = t->flags & SC_WIDE_IDS ? 4 : 2;
    t->sorted = parts[SORTED].bytes;
    t->sorted_count = parts[SORTED].size / width;
    t->users = parts[USERS].bytes;
    t->user_count = parts[USERS].size / width;
    t->controls = parts[CONTROLS].bytes;
    t->control_count = parts[CONTROLS].size / 4;
    t->classes = parts[CLASSES].bytes;
    t->class_count = parts[CLASSES].size / 4;
    t->byte_ids = parts[BYTE_IDS].size ? parts[BYTE_IDS].bytes : NULL;
    if (parts[SORTED].size % width || parts[USERS].size % width || parts[CONTROLS].size % 4 || parts[CLASSES].size % 4)
        return 0;
    if (!ids_are_sound(t, t->sorted, t->sorted_count, t->pieces)) return 0;
    if (!ids_are_sound(t, t->users, t->user_count, t->vocabulary)) return 0;
    t->longest_user = 0;
    for (uint32_t i = 0; i < t->user_count; i++) {
        const uint32_t length = sc_piece_text(t, sc_listed_id(t, t->users, i)).size;
        if (length > t->longest_user) t->longest_user = length;
    }
    if (t->longest_user > SC_LONGEST_USER_TOKEN) return 0;
    if (t->byte_ids != NULL) {
        if (parts[BYTE_IDS].size != 256 * width) return 0;
    } else if (t->kind == SC_BYTE_LEVEL_BPE || t->flags & SC_BYTE_FALLBACK) {
        return 0;
    }
    return ascends(t->controls, t->control_count, 0) && ascends(t->classes, t->class_count, 4);
}

static int open_merges(sc_tokenizer *t, const part *parts) {
    t->split = NULL;
    t->splits.count = 0;
    if (t->kind != SC_BYTE_LEVEL_BPE) {
        if (parts[SPLIT_STARTS].size || parts[SPLITS].size || parts[SPLIT_BYTES].size) return 0;
    } else if (t->flags & SC_SEVERAL_SPLITS) {
        if (!open_strings(&t->splits, parts[SPLIT_STARTS], parts[SPLITS], parts[SPLIT_BYTES], t->pieces, 0)) return 0;
    } else {
        t->split = parts[SPLITS].bytes;
        if (parts[SPLITS].size != t->pieces || parts[SPLIT_STARTS].size || parts[SPLIT_BYTES].size) return 0;
    }
    t->ranks = parts[RANKS].size ? parts[RANKS].bytes : NULL;
    if (t->ranks != NULL) {
        if (parts[RANKS].size != 4 * t->pieces) return 0;
        for (uint32_t i = 0; i < t->pieces; i++)
            if (sc_u32(t->ranks + 4 * i) >= 1u << 24) return 0;
    }
    t->scores = parts[SCORES].size ? parts[SCORES].bytes : NULL;
    return parts[SCORES].size == (t->kind == SC_UNIGRAM ? 4 * t->pieces : 0);
}

/* A double array after 4 bytes with its size, then the strings that its values point to. */
static int open_charsmap(sc_tokenizer *t, part map) {
    t->trie = NULL;
    t->trie_count = t->replacement_bytes = 0;
    if (map.size == 0) return 1;
    if (map.size < 4 || t->kind == SC_BYTE_LEVEL_BPE) return 0;
    const uint32_t bytes = sc_u32(map.bytes);
    if (bytes > map.size - 4 || bytes % 4 || bytes == 0) return 0;
    t->trie = map.bytes + 4;
    t->trie_count = bytes / 4;
    t->replacements = map.bytes + 4 + bytes;
    t->replacement_bytes = map.size - 4 - bytes;
    return t->replacement_bytes > 0 && t->replacements[t->replacement_bytes - 1] == 0;
}

static int open_composition(sc_tokenizer *t, const part *parts) {
    const part d = parts[DECOMPOSITIONS], c = parts[COMBINING];
    t->decomposition_count = t->composition_count = t->combining_count = 0;
    if (!(t->flags & SC_NFC)) return d.size == 0 && c.size == 0;
    if (d.size < 8 || c.size % 4) return 0;
    const uint32_t count = sc_u32(d.bytes), composed = sc_u32(d.bytes + 4);
    if (count > 65536 || composed > count || d.size != 8 + 12 * count + (2 * composed + 3) / 4 * 4) return 0;
    t->decompositions = d.bytes + 8;
    t->compositions = d.bytes + 8 + 12 * count;
    t->combining = c.bytes;
    t->decomposition_count = count;
    t->composition_count = composed;
    t->combining_count = c.size / 4;
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *entry = t->decompositions + 12 * i;
        if (i > 0 && sc_u32(entry) <= sc_u32(entry - 12)) return 0;
        for (int k = 0; k < 3; k++)
            if (sc_u32(entry + 4 * k) > 0x10ffff) return 0;
    }
    for (uint32_t i = 0; i < composed; i++)
        if (sc_u16(t->compositions + 2 * i) >= count) return 0;
    return ascends(t->combining, t->combining_count, 8);
}

sc_status sc_tokenizer_open(sc_tokenizer *t, const uint8_t *table, size_t size) {
    memset(t, 0, sizeof *t);
    if (table == NULL) return SC_BAD_ARGUMENT;
    if (size < HEADER_BYTES) return SC_TRUNCATED;
    if (memcmp(table, "SCTK", 4) != 0) return SC_NOT_AN_IMAGE;
    if (sc_u32(table + 4) != SC_TOKENIZER_FORMAT) return SC_UNKNOWN_FORMAT;
    const uint32_t bytes = sc_u32(table + 8);
    if (bytes > size) return SC_TRUNCATED;
    part parts[SECTIONS];
    if (bytes < HEADER_BYTES || !read_parts(parts, table, bytes)) return SC_DAMAGED;
    t->kind = sc_u32(table + 12);
    t->cut = sc_u32(table + 16);
    t->flags = sc_u32(table + 20);
    t->vocabulary = sc_u32(table + 24);
    t->pieces = sc_u32(table + 28);
    t->unknown = sc_u32(table + 32);
    const uint32_t least = sc_u32(table + 36), greatest = sc_u32(table + 40);
    memcpy(&t->least_score, &least, 4);
    memcpy(&t->greatest_score, &greatest, 4);
    if (t->kind < SC_BYTE_LEVEL_BPE || t->kind > SC_UNIGRAM || t->cut > SC_CUT_BEFORE_SPACES ||
        t->flags & ~(uint32_t)SC_ALL_FLAGS)
        return SC_UNSUPPORTED;
    if ((t->kind == SC_BYTE_LEVEL_BPE) != (t->cut >= SC_CUT_GPT2 && t->cut <= SC_CUT_GPT4_ONE)) return SC_DAMAGED;
    if (t->pieces > (t->flags & SC_WIDE_IDS ? 1u << 22 : 65535u) || t->vocabulary > t->pieces || t->vocabulary == 0)
        return SC_DAMAGED;
    if (t->unknown != SC_NO_TOKEN && t->unknown >= t->vocabulary) return SC_DAMAGED;
    if (t->kind == SC_BYTE_LEVEL_BPE && t->flags & (SC_BYTE_FALLBACK | SC_DUMMY_PREFIX | SC_FEWER_SPACES | SC_OWN_SPACE))
        return SC_DAMAGED;
    if (t->kind != SC_BYTE_LEVEL_BPE && t->flags & (SC_WHOLE_WORDS | SC_NFC | SC_SEVERAL_SPLITS)) return SC_DAMAGED;
    if (!open_strings(&t->texts, parts[TEXT_STARTS], parts[TEXT_LENGTHS], parts[TEXT_BYTES], t->pieces,
                      (t->flags & SC_WIDE_LENGTHS) != 0))
        return SC_DAMAGED;
    if (!open_lists(t, parts) || !open_merges(t, parts) || !open_charsmap(t, parts[CHARSMAP]) ||
        !open_composition(t, parts))
        return SC_DAMAGED;
    return SC_OK;
}
