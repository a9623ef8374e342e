#include "sc_status.h"

const char *sc_status_text(sc_status status) {
    switch (status) {
    case SC_OK: return "ok";
    case SC_MISALIGNED: return "the image and the arena have to start at a multiple of 16 bytes";
    case SC_TRUNCATED: return "the image is shorter than its header says; copy it again";
    case SC_NOT_AN_IMAGE: return "this is not a model image; write the model.image of a bundle here";
    case SC_UNKNOWN_FORMAT: return "the image has another format version; convert again or update the firmware";
    case SC_DAMAGED: return "the image is damaged; copy it again";
    case SC_MISSING_SECTION: return "the image lacks a part that is needed; convert the checkpoint again";
    case SC_UNSUPPORTED: return "this build has no kernel for the image; convert for this board, or update the firmware";
    case SC_ARENA_TOO_SMALL: return "the arena is too small for the image";
    case SC_CONTEXT_FULL: return "the kv_cache is full";
    case SC_BAD_TOKEN: return "the vocabulary has no such token";
    case SC_BAD_ARGUMENT: return "an argument is null or out of range";
    case SC_WORD_TOO_LONG: return "a word of the text is longer than the encoder's memory; shorten it";
    case SC_ANSWER_TOO_LONG: return "the shortest answer that fits the schema has more tokens than it may have";
    case SC_ANSWER_INCOMPLETE: return "the answer's limit cuts one of its values; allow more tokens";
    case SC_SELF_TEST_FAILED: return "the kernels of this build do not compute what the image expects";
    }
    return "unknown status";
}
