/* The call list of a model image, as it lies there: words of 32 bits, little-endian. converters/emit/c/calls.py writes
 * it and docs/explained/model-image.md describes it. */
#ifndef SC_GRAPH_H
#define SC_GRAPH_H

#include <stdint.h>

#include "image.h"
#include "stonechat.h"

#define SC_GRAPH_VERSION 1u
#define SC_NOTHING 0xffffffffu /* an offset of something that is left out */
#define SC_REGISTERS 8u        /* of an elementwise program */
#define SC_MOST_COLUMNS (1u << 16) /* of a matmul or a program: the sum of so many int8 products fits 32 bits */
#define SC_MOST_ROWS (1u << 24)    /* and tokens, and positions: products of two sizes fit 64 bits */

/* Words of the header. */
enum {
    SC_HEAD_VERSION,
    SC_HEAD_VOCABULARY,
    SC_HEAD_CONTEXT,
    SC_HEAD_ARENA_BYTES,
    SC_HEAD_KV_BYTES,
    SC_HEAD_PREFIX,
    SC_HEAD_CALLS,
    SC_HEAD_LOGITS, /* offset in the arena */
    SC_HEAD_LOGITS_BITS,
    SC_HEAD_LOGITS_SCALE,
    SC_HEAD_LOGITS_ZERO_POINT,
    SC_HEAD_FLAGS, /* 0 */
    SC_HEAD_WORDS
};

/* Word 0 of a call: kind | words << 16, itself among them. The others follow. */
enum {
    SC_CALL_PROGRAM = 1,
    SC_CALL_MATMUL_S8,
    SC_CALL_MATMUL_S16,
    SC_CALL_STORE,
    SC_CALL_ATTENTION,
    SC_CALL_MATMUL_BLOCKS_S8,
    SC_CALL_MATMUL_BLOCKS_S16,
    SC_CALL_KINDS
};

/* An elementwise program: for each row, for each column, the same few operations on registers. */
enum { SC_PROGRAM_ROWS = 1, SC_PROGRAM_COLUMNS, SC_PROGRAM_OPS, SC_PROGRAM_BODY };

/* Word 0 of an operation: code | result register << 8 | first operand << 16 | second operand << 24. */
enum {
    SC_OP_LOAD = 1, /* + words, see below */
    SC_OP_CONST,    /* + one float */
    SC_OP_ADD,
    SC_OP_SUB,
    SC_OP_MUL,
    SC_OP_DIV,
    SC_OP_MAX,
    SC_OP_MIN,
    SC_OP_LOGISTIC,
    SC_OP_TANH,
    SC_OP_EXP,
    SC_OP_SQRT,
    SC_OP_RSQRT,
    SC_OP_NEG,
    SC_OP_STORE, /* + words as of a load; ends the program */
    SC_OP_MEAN,  /* the mean over the columns of a row, stored; ends the program */
    SC_OP_SUM,
    SC_OP_CODES
};

/* Words of a load or a store, after word 0. */
enum {
    SC_AT_WHAT = 1, /* space | type << 8 | index << 16 | flags << 24 */
    SC_AT_OFFSET,
    SC_AT_ROW_STRIDE,   /* bytes */
    SC_AT_INDEX_STRIDE, /* bytes; what the token or the position is multiplied with */
    SC_AT_SCALE,
    SC_AT_ZERO_POINT,
    SC_AT_WORDS
};
enum { SC_SPACE_ARENA, SC_SPACE_CONSTANTS };
enum { SC_TYPE_FLOAT, SC_TYPE_S8, SC_TYPE_S16 };
enum { SC_INDEX_NONE, SC_INDEX_TOKEN, SC_INDEX_POSITION };
enum { SC_FLAG_ONE_PER_ROW = 1 }; /* one value for all columns of a row */

/* rows of weights by one vector. Offsets: x, out and scratch in the arena, the others in the constants. */
enum {
    SC_MATMUL_X = 1,
    SC_MATMUL_WEIGHTS, /* int8 [rows][columns] */
    SC_MATMUL_ROWS,
    SC_MATMUL_COLUMNS, /* a multiple of 16; what rows have in excess is 0 */
    SC_MATMUL_OUT,
    SC_MATMUL_ZERO_POINT, /* of the result */
    SC_MATMUL_SCALES,     /* int8: int32 multiplier [rows]; int16: multiplier | shift << 16 [rows] */
    SC_MATMUL_BIAS,       /* int8: int32 [rows]; int16: int64 [rows]; or nothing */
    SC_MATMUL_SHIFTS,     /* int8: int8 [rows] */
    SC_MATMUL_SCRATCH,    /* int16 [columns], for kernels that widen activations or put them in order once */
    SC_MATMUL_WORDS
};

/* The same with int4 weights in blocks, laid out as kernels/blocks/blocks.h says. Columns are a multiple of SC_BLOCK; the
 * scratch has int32 [columns / SC_BLOCK] more at its end. */
enum {
    SC_BLOCK = 32,               /* columns with one multiplier */
    SC_MOST_BLOCK_COLUMNS = 4096 /* by int8 activations: their sums stay below 2^30 */
};
enum {
    SC_MATMUL_MULTIPLIERS = SC_MATMUL_WORDS, /* uint8 [rows / 4, rounded up][columns / SC_BLOCK][4] */
    SC_MATMUL_BLOCKS_WORDS
};

/* Bytes from the arena into the kv_cache, one by one. */
enum {
    SC_STORE_FROM = 1,
    SC_STORE_COUNT,
    SC_STORE_TO,
    SC_STORE_STRIDE,
    SC_STORE_POSITION_STRIDE,
    SC_STORE_WORDS
};

/* The query heads of one key head: scores, softmax, and the sum of the values. */
enum {
    SC_ATTEND_QUERIES = 1, /* int16 [heads][head_dim] in the arena */
    SC_ATTEND_HEADS,
    SC_ATTEND_HEAD_DIM,
    SC_ATTEND_KEYS, /* int8 [context][head_dim] in the kv_cache */
    SC_ATTEND_VALUES, /* int8 [head_dim][value_stride] in the kv_cache */
    SC_ATTEND_VALUE_STRIDE, /* a multiple of 16, at least the context */
    SC_ATTEND_SCRATCH, /* 4 * value_stride bytes in the arena */
    SC_ATTEND_SCORE_SCALE, /* multiplier | shift << 16, to the int16 scores */
    SC_ATTEND_SCORE_STEP, /* float: an int16 score times this is the score */
    SC_ATTEND_SHARE_STEP, /* float: of the int16 probabilities */
    SC_ATTEND_MIXED_SCALE, /* multiplier | shift << 16, to the int16 result */
    SC_ATTEND_OUT, /* int16 [heads][head_dim] in the arena */
    SC_ATTEND_WINDOW, /* positions that a query sees, its own among them */
    SC_ATTEND_WORDS
};

/* Where a model's memory is. */
typedef struct {
    const uint8_t *constants;
    uint8_t *arena;
    uint8_t *kv_cache;
    uint32_t token, position;
} sc_memory;

/* A checked call list. */
typedef struct {
    const uint32_t *head;
    const uint32_t *calls;
    sc_section constants;
} sc_graph;

/* Check every offset, size and index of the call list: after SC_OK, running it for a token below the vocabulary at a
 * position below the context reads and writes nothing but the constants, the arena and the kv_cache. */
sc_status sc_graph_open(sc_graph *graph, const sc_image *image);

/* Run all calls; `after`, which may be NULL, after each. */
void sc_graph_run(const sc_graph *graph, const sc_memory *memory, sc_after_call after, void *context);

/* The kernels, each in a file of its own. `call` is a checked call of the kind that the name says. */
void sc_run_program(const uint32_t *call, const sc_memory *memory);
void sc_run_matmul_s8(const uint32_t *call, const sc_memory *memory);
void sc_run_matmul_s16(const uint32_t *call, const sc_memory *memory);
void sc_run_matmul_blocks_s8(const uint32_t *call, const sc_memory *memory);
void sc_run_matmul_blocks_s16(const uint32_t *call, const sc_memory *memory);
void sc_run_attention(const uint32_t *call, const sc_memory *memory);

#endif
