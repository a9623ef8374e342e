#include "graph.h"

#include <stddef.h>
#include <string.h>

/* What offsets are held against; 64 bits, so that no sum of products of words passes over. */
typedef struct {
    uint64_t arena, constants, kv_cache;
    uint64_t last_token, last_position;
} limits;

static int inside(uint64_t offset, uint64_t bytes, uint64_t limit, unsigned alignment) {
    return offset % alignment == 0 && offset <= limit && bytes <= limit - offset;
}

/* Whether two ranges have no byte in common. */
static int apart(uint64_t a, uint64_t a_bytes, uint64_t b, uint64_t b_bytes) {
    return a + a_bytes <= b || b + b_bytes <= a;
}

static int bits_are_finite(uint32_t bits) { return (bits >> 23 & 255) != 255; }

/* Words of one operation, its own among them; 0 for an unknown code. */
static uint32_t op_words(uint32_t code) {
    switch (code) {
    case SC_OP_CONST: return 2;
    case SC_OP_LOAD:
    case SC_OP_STORE:
    case SC_OP_MEAN:
    case SC_OP_SUM: return SC_AT_WORDS;
    default: return code > SC_OP_CONST && code < SC_OP_CODES ? 1 : 0;
    }
}

static int place_is_right(const uint32_t *op, uint64_t rows, uint64_t columns, const limits *l) {
    static const uint8_t sizes[] = {4, 1, 2};
    uint32_t what = op[SC_AT_WHAT], space = what & 255, type = what >> 8 & 255, index = what >> 16 & 255;
    uint32_t flags = what >> 24, code = op[0] & 255;
    uint64_t size, last;
    if (space > SC_SPACE_CONSTANTS || type > SC_TYPE_S16 || index > SC_INDEX_POSITION ||
        flags > SC_FLAG_ONE_PER_ROW) {
        return 0;
    }
    if (code != SC_OP_LOAD && (space != SC_SPACE_ARENA || flags != 0)) {
        return 0;
    }
    if (type != SC_TYPE_FLOAT && (!bits_are_finite(op[SC_AT_SCALE]) || op[SC_AT_SCALE] << 1 == 0)) {
        return 0;
    }
    if (type != SC_TYPE_FLOAT && op[SC_AT_ZERO_POINT] + 32768u > 65535u) {
        return 0;
    }
    size = sizes[type];
    if (op[SC_AT_ROW_STRIDE] % size != 0 || op[SC_AT_INDEX_STRIDE] % size != 0) {
        return 0;
    }
    last = index == SC_INDEX_NONE ? 0 : index == SC_INDEX_TOKEN ? l->last_token : l->last_position;
    return inside(op[SC_AT_OFFSET],
                  (rows - 1) * op[SC_AT_ROW_STRIDE] + last * op[SC_AT_INDEX_STRIDE] +
                      size * (flags & SC_FLAG_ONE_PER_ROW || code == SC_OP_MEAN || code == SC_OP_SUM ? 1 : columns),
                  space == SC_SPACE_ARENA ? l->arena : l->constants, (unsigned)size);
}

static int program_is_right(const uint32_t *call, uint32_t words, const limits *l) {
    uint32_t written = 0, at = SC_PROGRAM_BODY; /* registers that have a value, a bit each */
    if (words < SC_PROGRAM_BODY || call[SC_PROGRAM_ROWS] - 1 >= SC_MOST_ROWS ||
        call[SC_PROGRAM_COLUMNS] - 1 >= SC_MOST_COLUMNS || call[SC_PROGRAM_OPS] == 0) {
        return 0;
    }
    for (uint32_t i = 0; i < call[SC_PROGRAM_OPS]; i++) {
        const uint32_t *op = call + at;
        uint32_t code, result, first, second, size;
        if (at >= words) {
            return 0;
        }
        code = op[0] & 255, result = op[0] >> 8 & 255, first = op[0] >> 16 & 255, second = op[0] >> 24;
        size = op_words(code);
        if (size == 0 || size > words - at || result >= SC_REGISTERS || first >= SC_REGISTERS ||
            second >= SC_REGISTERS) {
            return 0;
        }
        if (code != SC_OP_LOAD && code != SC_OP_CONST && (~written & (1u << first | 1u << second)) != 0) {
            return 0;
        }
        if (size == SC_AT_WORDS && !place_is_right(op, call[SC_PROGRAM_ROWS], call[SC_PROGRAM_COLUMNS], l)) {
            return 0;
        }
        /* the last operation stores, and no other does */
        if ((i + 1 == call[SC_PROGRAM_OPS]) != (code >= SC_OP_STORE)) {
            return 0;
        }
        written |= 1u << result;
        at += size;
    }
    return at == words;
}

static int is_blocks(const uint32_t *call) { return (call[0] & 0xffff) >= SC_CALL_MATMUL_BLOCKS_S8; }

static int is_s8(const uint32_t *call) {
    return (call[0] & 0xffff) == SC_CALL_MATMUL_S8 || (call[0] & 0xffff) == SC_CALL_MATMUL_BLOCKS_S8;
}

/* What the largest sum of int8 products leaves below 2^30 for a bias: kernels double a sum. Below 0: nothing. */
static int32_t room_for_bias(const uint32_t *call) {
    const int32_t largest = is_blocks(call) ? 255 << 10 : 1 << 14; /* of a column: multiplier * half * activation */
    return (1 << 30) - (int32_t)call[SC_MATMUL_COLUMNS] * largest;
}

static int weights_are_right(const uint32_t *call, const limits *l) {
    uint64_t rows = call[SC_MATMUL_ROWS], columns = call[SC_MATMUL_COLUMNS], activation_bytes, scratch_bytes;
    if (!is_blocks(call)) {
        return columns % 16 == 0 && inside(call[SC_MATMUL_WEIGHTS], rows * columns, l->constants, 16) &&
               inside(call[SC_MATMUL_SCRATCH], columns * 2, l->arena, 16);
    }
    activation_bytes = is_s8(call) ? 1 : 2;
    scratch_bytes = columns * 2 + columns / SC_BLOCK * 4;
    /* the sums of blocks are made before the products: what they are sums of may not change in between */
    if (!apart(call[SC_MATMUL_X], columns * activation_bytes, call[SC_MATMUL_SCRATCH], scratch_bytes) ||
        !apart(call[SC_MATMUL_X], columns * activation_bytes, call[SC_MATMUL_OUT], rows * activation_bytes) ||
        !apart(call[SC_MATMUL_OUT], rows * activation_bytes, call[SC_MATMUL_SCRATCH], scratch_bytes)) {
        return 0;
    }
    rows = (rows + 3) & ~(uint64_t)3;
    return columns % SC_BLOCK == 0 && (!is_s8(call) || columns <= SC_MOST_BLOCK_COLUMNS) &&
           inside(call[SC_MATMUL_WEIGHTS], rows * columns / 2, l->constants, 16) &&
           inside(call[SC_MATMUL_MULTIPLIERS], rows * columns / SC_BLOCK, l->constants, 4) &&
           inside(call[SC_MATMUL_SCRATCH], scratch_bytes, l->arena, 16);
}

static int matmul_is_right(const uint32_t *call, const limits *l) {
    uint64_t rows = call[SC_MATMUL_ROWS], columns = call[SC_MATMUL_COLUMNS];
    int s8 = is_s8(call);
    unsigned activation_bytes = s8 ? 1 : 2;
    if (rows - 1 >= SC_MOST_ROWS || columns - 1 >= SC_MOST_COLUMNS || !weights_are_right(call, l)) {
        return 0;
    }
    if (!inside(call[SC_MATMUL_X], columns * activation_bytes, l->arena, 16) ||
        !inside(call[SC_MATMUL_OUT], rows * activation_bytes, l->arena, activation_bytes) ||
        !inside(call[SC_MATMUL_SCALES], rows * 4, l->constants, 4) || call[SC_MATMUL_ZERO_POINT] + 32768u > 65535u) {
        return 0;
    }
    if (call[SC_MATMUL_BIAS] != SC_NOTHING &&
        !inside(call[SC_MATMUL_BIAS], rows * (s8 ? 4 : 8), l->constants, s8 ? 4 : 8)) {
        return 0;
    }
    return !s8 || inside(call[SC_MATMUL_SHIFTS], rows, l->constants, 1);
}

/* Shifts are data of the constants: a kernel that shifts by more than its type has bits would be undefined. */
static int tables_are_right(const uint32_t *call, const uint8_t *constants) {
    if (!is_s8(call)) {
        const uint32_t *scales = (const uint32_t *)(const void *)(constants + call[SC_MATMUL_SCALES]);
        for (uint32_t row = 0; row < call[SC_MATMUL_ROWS]; row++) {
            if ((scales[row] >> 16) - 1 > 61) {
                return 0;
            }
        }
        return 1;
    }
    for (uint32_t row = 0; row < call[SC_MATMUL_ROWS]; row++) {
        const int8_t *shifts = (const int8_t *)(constants + call[SC_MATMUL_SHIFTS]);
        if (shifts[row] < -31 || shifts[row] > 30) {
            return 0;
        }
    }
    if (call[SC_MATMUL_BIAS] != SC_NOTHING) {
        const int32_t *bias = (const int32_t *)(const void *)(constants + call[SC_MATMUL_BIAS]);
        const int32_t most = room_for_bias(call);
        for (uint32_t row = 0; row < call[SC_MATMUL_ROWS]; row++) {
            if (bias[row] > most || bias[row] < -most) {
                return 0;
            }
        }
    }
    return 1;
}

static int store_is_right(const uint32_t *call, const limits *l) {
    uint64_t count = call[SC_STORE_COUNT];
    return count > 0 && inside(call[SC_STORE_FROM], count, l->arena, 1) &&
           inside(call[SC_STORE_TO],
                  (count - 1) * call[SC_STORE_STRIDE] + l->last_position * call[SC_STORE_POSITION_STRIDE] + 1,
                  l->kv_cache, 1);
}

/* 2^-64, below which a product with a score may be no normal number; 2^96; 2^-16 */
enum { SMALLEST_SCORE_STEP = 0x1f800000, LARGEST_SCORE_STEP = 0x6f800000, SMALLEST_SHARE_STEP = 0x37800000, ONE = 0x3f800000 };

static int attention_is_right(const uint32_t *call, const limits *l) {
    uint64_t heads = call[SC_ATTEND_HEADS], dim = call[SC_ATTEND_HEAD_DIM], stride = call[SC_ATTEND_VALUE_STRIDE];
    if (heads - 1 >= SC_MOST_COLUMNS || dim - 1 >= SC_MOST_COLUMNS || dim % 2 != 0 || stride % 16 != 0 || stride <= l->last_position ||
        call[SC_ATTEND_WINDOW] == 0) {
        return 0;
    }
    if ((call[SC_ATTEND_SCORE_SCALE] >> 16) - 1 > 61 || (call[SC_ATTEND_MIXED_SCALE] >> 16) - 1 > 61) {
        return 0;
    }
    /* float words of positive numbers are in order: no difference of scores overflows, and no share has 2^16 steps */
    if (call[SC_ATTEND_SCORE_STEP] - SMALLEST_SCORE_STEP > LARGEST_SCORE_STEP - SMALLEST_SCORE_STEP ||
        call[SC_ATTEND_SHARE_STEP] < SMALLEST_SHARE_STEP ||
        call[SC_ATTEND_SHARE_STEP] > ONE) {
        return 0;
    }
    return inside(call[SC_ATTEND_QUERIES], heads * dim * 2, l->arena, 4) &&
           inside(call[SC_ATTEND_OUT], heads * dim * 2, l->arena, 2) &&
           inside(call[SC_ATTEND_KEYS], (l->last_position + 1) * dim, l->kv_cache, 16) &&
           inside(call[SC_ATTEND_VALUES], dim * stride, l->kv_cache, 16) &&
           inside(call[SC_ATTEND_SCRATCH], stride * 4, l->arena, 16);
}

static sc_status check_call(const uint32_t *call, uint32_t words, const limits *l, const uint8_t *constants) {
    switch (call[0] & 0xffff) {
    case SC_CALL_PROGRAM: return program_is_right(call, words, l) ? SC_OK : SC_DAMAGED;
    case SC_CALL_MATMUL_S8:
    case SC_CALL_MATMUL_S16:
    case SC_CALL_MATMUL_BLOCKS_S8:
    case SC_CALL_MATMUL_BLOCKS_S16:
        return words == (is_blocks(call) ? SC_MATMUL_BLOCKS_WORDS : SC_MATMUL_WORDS) && matmul_is_right(call, l) &&
                       tables_are_right(call, constants)
                   ? SC_OK
                   : SC_DAMAGED;
    case SC_CALL_STORE: return words == SC_STORE_WORDS && store_is_right(call, l) ? SC_OK : SC_DAMAGED;
    case SC_CALL_ATTENTION: return words == SC_ATTEND_WORDS && attention_is_right(call, l) ? SC_OK : SC_DAMAGED;
    default: return SC_UNSUPPORTED;
    }
}

sc_status sc_graph_open(sc_graph *graph, const sc_image *image) {
    sc_section section = sc_image_section(image, SC_SECTION_GRAPH);
    const uint32_t *words = (const uint32_t *)(const void *)section.bytes; /* sections start at multiples of 16 */
    uint32_t count = section.size / 4, at = SC_HEAD_WORDS;
    limits l;
    graph->constants = sc_image_section(image, SC_SECTION_CONSTANTS);
    if (section.bytes == NULL || graph->constants.bytes == NULL) {
        return SC_MISSING_SECTION;
    }
    if (count < SC_HEAD_WORDS) {
        return SC_DAMAGED;
    }
    if (words[SC_HEAD_VERSION] != SC_GRAPH_VERSION) {
        return SC_UNKNOWN_FORMAT;
    }
    if (words[SC_HEAD_VOCABULARY] - 1 >= SC_MOST_ROWS || words[SC_HEAD_CONTEXT] - 1 >= SC_MOST_ROWS ||
        words[SC_HEAD_PREFIX] >= words[SC_HEAD_CONTEXT] || words[SC_HEAD_FLAGS] != 0) {
        return SC_DAMAGED;
    }
    l.arena = words[SC_HEAD_ARENA_BYTES];
    l.kv_cache = words[SC_HEAD_KV_BYTES];
    l.constants = graph->constants.size;
    l.last_token = words[SC_HEAD_VOCABULARY] - 1;
    l.last_position = words[SC_HEAD_CONTEXT] - 1;
    if ((words[SC_HEAD_LOGITS_BITS] != 8 && words[SC_HEAD_LOGITS_BITS] != 16) ||
        !inside(words[SC_HEAD_LOGITS], (l.last_token + 1) * (words[SC_HEAD_LOGITS_BITS] / 8), l.arena,
                words[SC_HEAD_LOGITS_BITS] / 8)) {
        return SC_DAMAGED;
    }
    for (uint32_t i = 0; i < words[SC_HEAD_CALLS]; i++) {
        uint32_t size;
        sc_status status;
        if (at >= count) {
            return SC_DAMAGED;
        }
        size = words[at] >> 16;
        if (size == 0 || size > count - at) {
            return SC_DAMAGED;
        }
        status = check_call(words + at, size, &l, graph->constants.bytes);
        if (status != SC_OK) {
            return status;
        }
        at += size;
    }
    graph->head = words;
    graph->calls = words + SC_HEAD_WORDS;
    return SC_OK;
}

static void run_store(const uint32_t *call, const sc_memory *memory) {
    const uint8_t *from = memory->arena + call[SC_STORE_FROM];
    uint8_t *to = memory->kv_cache + call[SC_STORE_TO] + (size_t)memory->position * call[SC_STORE_POSITION_STRIDE];
    const uint8_t *const end = from + call[SC_STORE_COUNT];
    const size_t stride = call[SC_STORE_STRIDE];
    if (stride == 1) {
        memcpy(to, from, (size_t)(end - from));
        return;
    }
    for (; from < end; to += stride) {
        *to = *from++;
    }
}

void sc_graph_run(const sc_graph *graph, const sc_memory *memory, sc_after_call after, void *context) {
    const uint32_t *call = graph->calls;
    for (uint32_t i = 0; i < graph->head[SC_HEAD_CALLS]; i++) {
        switch (call[0] & 0xffff) {
        case SC_CALL_PROGRAM: sc_run_program(call, memory); break;
        case SC_CALL_MATMUL_S8: sc_run_matmul_s8(call, memory); break;
        case SC_CALL_MATMUL_S16: sc_run_matmul_s16(call, memory); break;
        case SC_CALL_STORE: run_store(call, memory); break;
        case SC_CALL_ATTENTION: sc_run_attention(call, memory); break;
        case SC_CALL_MATMUL_BLOCKS_S8: sc_run_matmul_blocks_s8(call, memory); break;
        case SC_CALL_MATMUL_BLOCKS_S16: sc_run_matmul_blocks_s16(call, memory); break;
        default: break; /* sc_graph_open lets no other kind through */
        }
        if (after != NULL) {
            after(i, memory->arena, context);
        }
        call += call[0] >> 16;
    }
}
