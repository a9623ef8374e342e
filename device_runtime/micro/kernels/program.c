/* Elementwise programs: what lies between two matmuls, a norm or a rotation or a gated activation with the quantize
 * and dequantize at its edges, in one pass over a row and without a tensor between the operations. Each operation runs
 * over a block of columns before the next one starts, so the switch costs little. */
#include "floats.h"
#include "graph.h"
#include "numbers.h"

/* Floats that a program's registers share: 1 KiB of stack; where an operation takes fewer instructions than what surrounds
 * it, twice as much. */
#ifdef SC_FOURS_ONLY
enum { ROOM = 512 };
#else
enum { ROOM = 256 };
#endif

#ifdef SC_FOURS_ONLY
#define READ_IN_PLACE(count) ((count) % 4 == 0)
#else
#define READ_IN_PLACE(count) 1
#endif

static const uint8_t SIZES[] = {4, 1, 2}; /* bytes, by type */

static size_t offset_of(const uint32_t *op, const sc_memory *m, uint32_t row) {
    uint32_t index = op[SC_AT_WHAT] >> 16 & 255;
    size_t at = index == SC_INDEX_NONE ? 0 : index == SC_INDEX_TOKEN ? m->token : m->position;
    return op[SC_AT_OFFSET] + at * op[SC_AT_INDEX_STRIDE] + (size_t)row * op[SC_AT_ROW_STRIDE];
}

/* Columns of a row of a place in memory as floats: where they are, if they are floats already, or else in `to`. */
static const float *loaded(const uint32_t *op, const sc_memory *m, uint32_t row, uint32_t column, uint32_t count,
                           float *to) {
    uint32_t what = op[SC_AT_WHAT], type = what >> 8 & 255;
    const uint8_t *from = ((what & 255) == SC_SPACE_ARENA ? m->arena : m->constants) + offset_of(op, m, row);
    float scale = sc_float_of(op[SC_AT_SCALE]);
    int32_t zero_point = (int32_t)op[SC_AT_ZERO_POINT];
    uint32_t read = count;
    if (what >> 24 & SC_FLAG_ONE_PER_ROW) {
        read = 1;
    } else {
        from += (size_t)column * SIZES[type];
    }
    if (type == SC_TYPE_FLOAT) {
        if (read == count && READ_IN_PLACE(count)) {
            return (const float *)(const void *)from;
        }
        sc_copy(to, (const float *)(const void *)from, read);
    } else if (type == SC_TYPE_S8) {
        const int8_t *stored = (const int8_t *)from;
        sc_from_s8(stored, zero_point, scale, to, read);
    } else {
        const int16_t *stored = (const int16_t *)(const void *)from;
        sc_from_s16(stored, zero_point, scale, to, read);
    }
    if (read < count) {
        sc_fill(to, to[0], count);
    }
    return to;
}

/* `from` may be the place itself. */
static void store(const uint32_t *op, const sc_memory *m, uint32_t row, uint32_t column, uint32_t count,
                  const float *from) {
    uint32_t type = op[SC_AT_WHAT] >> 8 & 255;
    uint8_t *to = m->arena + offset_of(op, m, row) + (size_t)column * SIZES[type];
    float scale = sc_float_of(op[SC_AT_SCALE]);
    int32_t zero_point = (int32_t)op[SC_AT_ZERO_POINT];
    if (type == SC_TYPE_FLOAT) {
        sc_copy((float *)(void *)to, from, count);
    } else if (type == SC_TYPE_S8) {
        sc_to_s8(from, scale, zero_point, (int8_t *)to, count);
    } else {
        sc_to_s16(from, scale, zero_point, (int16_t *)(void *)to, count);
    }
}

/* The same for several whole rows, one after the other. */
static const float *loaded_rows(const uint32_t *op, const sc_memory *m, uint32_t row, uint32_t rows, uint32_t columns,
                                float *to) {
    uint32_t what = op[SC_AT_WHAT], type = what >> 8 & 255, stride = op[SC_AT_ROW_STRIDE], i = 0;
    const uint8_t *from = ((what & 255) == SC_SPACE_ARENA ? m->arena : m->constants) + offset_of(op, m, row);
    uint32_t step = what >> 24 & SC_FLAG_ONE_PER_ROW ? 0 : 1;
    float scale = sc_float_of(op[SC_AT_SCALE]);
    int32_t zero_point = (int32_t)op[SC_AT_ZERO_POINT];
    if (step && stride == columns * SIZES[type]) { /* nothing between them */
        return loaded(op, m, row, 0, rows * columns, to);
    }
    for (uint32_t r = 0; r < rows; r++, from += stride, i += columns) {
        const uint32_t read = step ? columns : 1;
        if (type == SC_TYPE_FLOAT) {
            sc_copy(to + i, (const float *)(const void *)from, read);
        } else if (type == SC_TYPE_S8) {
            sc_from_s8((const int8_t *)from, zero_point, scale, to + i, read);
        } else {
            sc_from_s16((const int16_t *)(const void *)from, zero_point, scale, to + i, read);
        }
        if (!step) {
            sc_fill(to + i, to[i], columns);
        }
    }
    return to;
}

/* The operation that ends a program: `count` columns of each of some rows are stored, or their sum is when it is whole. */
static inline void finish(const uint32_t *op, const sc_memory *m, uint32_t row, uint32_t rows, uint32_t column,
                          uint32_t count, uint32_t columns, const float *a, float *sum) {
    uint32_t code = op[0] & 255;
    for (uint32_t end = row + rows; row < end; row++, a += count) {
        if (code == SC_OP_STORE) {
            store(op, m, row, column, count, a);
            continue;
        }
        *sum = sc_sum(a, *sum, count);
        if (column + count == columns) {
            *sum = code == SC_OP_MEAN ? *sum / (float)columns : *sum;
            store(op, m, row, 0, 1, sum);
            *sum = 0.0f;
        }
    }
}

/* Columns at a time: the fewer registers a program has, the more. */
static uint32_t block_of(const uint32_t *call) {
    const uint32_t *op = call + SC_PROGRAM_BODY;
    uint32_t most = 0, code;
    if (call[SC_PROGRAM_ROWS] == 1 && call[SC_PROGRAM_COLUMNS] <= ROOM / SC_REGISTERS) {
        return ROOM / SC_REGISTERS;
    }
    for (; (code = op[0] & 255) < SC_OP_STORE; op += code == SC_OP_LOAD ? SC_AT_WORDS : code == SC_OP_CONST ? 2 : 1) {
        uint32_t result = op[0] >> 8 & 255;
        most = result > most ? result : most;
    }
    return ROOM / (most + 1) & ~7u;
}

/* With `together`, as many whole rows as fit a block go through it at a time. Compiled for each of the two. */
__attribute__((always_inline)) static inline void run_program(const uint32_t *call, const sc_memory *m, uint32_t block,
                                                              int together) {
    float registers[ROOM];
    const float *values[SC_REGISTERS]; /* a register's own memory, or where it was loaded from; none is read before */
    uint32_t columns = call[SC_PROGRAM_COLUMNS];
    const uint32_t most_rows = together ? block / columns : 1, last_row = call[SC_PROGRAM_ROWS];
    uint32_t rows = 1;
    for (uint32_t row = 0; row < last_row; row += rows) {
        float sum = 0.0f; /* in the order of the columns, as the reference kernels add */
        if (together) {
            rows = last_row - row < most_rows ? last_row - row : most_rows;
        }
        for (uint32_t column = 0; column < columns; column += block) {
            const uint32_t *op = call + SC_PROGRAM_BODY;
            uint32_t count = together ? rows * columns : columns - column < block ? columns - column : block;
            int exactly = 0;
            sc_flags_clear();
            for (;;) {
                uint32_t code = op[0] & 255;
                uint32_t result = op[0] >> 8 & 255;
                float *r = registers + (size_t)result * block;
                const float *a = values[op[0] >> 16 & 255];
                if (code == SC_OP_LOAD) {
                    values[result] = together ? loaded_rows(op, m, row, rows, columns, r)
                                              : loaded(op, m, row, column, count, r);
                    op += SC_AT_WORDS;
                } else if (code == SC_OP_CONST) {
                    sc_fill(r, sc_float_of(op[1]), count);
                    values[result] = r;
                    op += 2;
                } else if (code < SC_OP_STORE) {
                    if (exactly) {
                        sc_each_exact(code, r, a, values[op[0] >> 24], count);
                    } else {
                        sc_each(code, r, a, values[op[0] >> 24], count);
                    }
                    values[result] = r;
                    op++;
                } else if (!exactly && sc_flags_set()) { /* nothing has been stored yet: the block once more */
                    exactly = 1;
                    op = call + SC_PROGRAM_BODY;
                } else {
                    finish(op, m, row, rows, column, together ? columns : count, columns, a, &sum);
                    break;
                }
            }
        }
    }
}

void sc_run_program(const uint32_t *call, const sc_memory *m) {
    const uint32_t block = block_of(call);
    if (call[SC_PROGRAM_ROWS] > 1 && call[SC_PROGRAM_COLUMNS] <= block / 2) {
        run_program(call, m, block, 1);
    } else {
        run_program(call, m, block, 0);
    }
}
