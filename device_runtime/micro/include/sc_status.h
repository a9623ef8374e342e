/* What a function of the engine says when it returns. */
#ifndef SC_STATUS_H
#define SC_STATUS_H

typedef enum {
    SC_OK = 0,
    SC_MISALIGNED,      /* the image or the arena does not start at a multiple of 16 bytes */
    SC_TRUNCATED,       /* fewer bytes than the header says */
    SC_NOT_AN_IMAGE,    /* the first four bytes are not those of a model image */
    SC_UNKNOWN_FORMAT,  /* an image of another format version: make it again, or update the firmware */
    SC_DAMAGED,         /* the hash or an offset, size or value inside the image is wrong */
    SC_MISSING_SECTION, /* the image has no section of the kind that was asked for */
    SC_UNSUPPORTED,     /* this build has no kernel for what the image asks for */
    SC_ARENA_TOO_SMALL, /* sc_arena_bytes() says how large it has to be */
    SC_CONTEXT_FULL,    /* the kv_cache holds as many positions as the image has */
    SC_BAD_TOKEN,       /* a token that the vocabulary does not have */
    SC_BAD_ARGUMENT,    /* a null pointer, or a number outside of its range */
    SC_SELF_TEST_FAILED, /* the kernels do not compute what they computed when the image was made */
    SC_WORD_TOO_LONG,   /* a word longer than the memory that the encoder was given */
    SC_ANSWER_TOO_LONG, /* the shortest answer that fits the schema has more tokens than it may have */
    SC_ANSWER_INCOMPLETE /* the limit cuts a value of the answer */
} sc_status;

/* A sentence for people, in static memory. */
const char *sc_status_text(sc_status status);

#endif
