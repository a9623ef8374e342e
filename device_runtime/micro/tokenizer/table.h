/* The tokenizer's table, read where it lies. converters/emit/c/tokenizer.py writes it; docs/explained/tokenizer-table.md
 * describes it. Nothing in it is trusted: sc_tokenizer_open checks every offset and number that the other files of
 * this folder follow. */
#ifndef SC_TABLE_H
#define SC_TABLE_H

#include <stddef.h>
#include <stdint.h>

#include "image.h"
#include "sc_status.h"

#define SC_TOKENIZER_FORMAT 1u
#define SC_NO_TOKEN 0xffffffffu
#define SC_LONGEST_USER_TOKEN 128u /* bytes */

enum { SC_BYTE_LEVEL_BPE = 1, SC_SENTENCEPIECE_BPE = 2, SC_UNIGRAM = 3 };

/* How text is cut before merging. */
enum {
    SC_CUT_NOWHERE = 0,
    SC_CUT_GPT2 = 1,
    SC_CUT_GPT2_DIGITS = 2,   /* each digit apart, then as GPT-2 */
    SC_CUT_GPT4_THREE = 3,    /* GPT-4's expression with runs of up to three digits */
    SC_CUT_GPT4_ONE = 4,      /* the same with single digits */
    SC_CUT_BEFORE_SPACES = 5  /* SentencePiece: no piece has a space after another character */
};

enum {
    SC_WHOLE_WORDS = 1,      /* a word that is a token is that token, whatever the merges say */
    SC_BYTE_FALLBACK = 2,    /* SentencePiece: what has no piece becomes tokens of its bytes */
    SC_DUMMY_PREFIX = 4,     /* SentencePiece: a space before each text */
    SC_FEWER_SPACES = 8,     /* SentencePiece: runs of spaces become one, none at the ends */
    SC_NFC = 16,             /* text is composed (Unicode normalization form C) first */
    SC_WIDE_LENGTHS = 32,    /* text lengths have 2 bytes instead of 1 */
    SC_WIDE_IDS = 64,        /* token ids have 4 bytes instead of 2 */
    SC_SEVERAL_SPLITS = 128, /* a token may come from several merges */
    SC_OWN_SPACE = 256,      /* no space before a text that begins with one */
    SC_ALL_FLAGS = 511
};

/* What a character is, as the expressions that cut text see it. */
enum { SC_LETTER = 1, SC_NUMBER = 2, SC_SPACE = 4, SC_DIGIT = 8 };

/* Byte strings by number: a start for each 16 of them, and a length each. */
typedef struct {
    const uint8_t *starts;  /* uint32 each */
    const uint8_t *lengths; /* uint8 or uint16 each */
    const uint8_t *bytes;
    uint32_t count;
    int wide;
} sc_strings;

typedef struct {
    const uint8_t *text;
    uint32_t size;
} sc_text;

typedef struct {
    uint32_t kind, cut, flags;
    uint32_t vocabulary;   /* tokens that a model knows */
    uint32_t pieces;       /* and those that only merging meets */
    uint32_t unknown;      /* a token, or SC_NO_TOKEN */
    uint32_t longest_user; /* bytes of the longest user-defined token */
    float least_score, greatest_score;
    sc_strings texts;  /* of tokens; control tokens have none, so that no text can match them */
    sc_strings splits; /* how many bytes the left half of a merge has; with SC_SEVERAL_SPLITS */
    const uint8_t *split;      /* the same, one uint8 a piece; NULL with SC_SEVERAL_SPLITS */
    const uint8_t *ranks;      /* uint32 a piece, lower merges first; NULL where the id is the rank */
    const uint8_t *scores;     /* float32 a piece, of unigram; else NULL */
    const uint8_t *sorted;     /* ids of the pieces that text can become, by their bytes */
    const uint8_t *byte_ids;   /* the tokens of the 256 bytes; NULL without byte fallback */
    const uint8_t *controls;   /* uint32 each, ascending */
    const uint8_t *users;      /* ids of user-defined tokens, by their bytes */
    const uint8_t *classes;    /* uint32 each: first code point << 4 | what it is, ascending */
    const uint8_t *trie;       /* SentencePiece's normalization map: a double array, uint32 each */
    const uint8_t *replacements; /* zero-ended strings */
    const uint8_t *decompositions; /* 12 bytes each: code point, first, second (0: none) */
    const uint8_t *compositions;   /* indices (uint16) of decompositions that compose again, by their two parts */
    const uint8_t *combining;      /* uint32 each: code point << 8 | canonical combining class, ascending */
    uint32_t sorted_count, control_count, user_count, class_count, trie_count, replacement_bytes;
    uint32_t decomposition_count, composition_count, combining_count;
} sc_tokenizer;

/* Check a table of `size` bytes and prepare to read it. SC_DAMAGED, SC_UNKNOWN_FORMAT or SC_UNSUPPORTED refuse it. */
sc_status sc_tokenizer_open(sc_tokenizer *tokenizer, const uint8_t *table, size_t size);

/* The bytes of a piece below tokenizer->pieces. */
sc_text sc_piece_text(const sc_tokenizer *tokenizer, uint32_t piece);
sc_text sc_string(const sc_strings *strings, uint32_t number);

/* Entry `i` of a list of ids (`sorted`, `users`, `byte_ids`). */
uint32_t sc_listed_id(const sc_tokenizer *tokenizer, const uint8_t *list, uint32_t i);

/* The token of one byte, or SC_NO_TOKEN; only where there are byte_ids. */
uint32_t sc_byte_token(const sc_tokenizer *tokenizer, uint8_t byte);

/* The piece that is this text exactly, or SC_NO_TOKEN. */
uint32_t sc_find_piece(const sc_tokenizer *tokenizer, const uint8_t *text, uint32_t size);

/* Narrow [*low, *high) of a sorted list of ids to those whose byte at `depth` is `byte`; all of them share the bytes
 * before it. Returns whether any is left. */
int sc_narrow(const sc_tokenizer *tokenizer, const uint8_t *list, uint32_t depth, uint8_t byte, uint32_t *low,
              uint32_t *high);

int sc_is_control(const sc_tokenizer *tokenizer, uint32_t token);
int sc_is_user_token(const sc_tokenizer *tokenizer, uint32_t token);

#endif
