/* Elementwise programs: what lies between two matmuls, a norm or a rotation or a gated activation with the quantize
 * and dequantize at its edges, in one pass over a row and without a tensor between the operations. Each operation runs
 * over a block of columns before the next one starts, so the switch costs little. */
#include "graph.h"
#include "numbers.h"

enum { BLOCK = 32 }; /* columns at a time: 8 registers of them are 1 KiB of stack */

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
        if (read == count) {
            return (const float *)(const void *)from;
        }
        to[0] = *(const float *)(const void *)from;
    } else if (type == SC_TYPE_S8) {
        const int8_t *stored = (const int8_t *)from;
        for (uint32_t i = 0; i < read; i++) {
            to[i] = (float)(stored[i] - zero_point) * scale;
        }
    } else {
        const int16_t *stored = (const int16_t *)(const void *)from;
        for (uint32_t i = 0; i < read; i++) {
            to[i] = (float)(stored[i] - zero_point) * scale;
        }
    }
    for (uint32_t i = read; i < count; i++) {
        to[i] = to[0];
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
        for (uint32_t i = 0; i < count; i++) {
            ((float *)(void *)to)[i] = from[i];
        }
    } else if (type == SC_TYPE_S8) {
        for (uint32_t i = 0; i < count; i++) {
            ((int8_t *)to)[i] = (int8_t)(sc_rounded(from[i] / scale, -128 - zero_point, 127 - zero_point) + zero_point);
        }
    } else {
        for (uint32_t i = 0; i < count; i++) {
            ((int16_t *)(void *)to)[i] =
                (int16_t)(sc_rounded(from[i] / scale, -32768 - zero_point, 32767 - zero_point) + zero_point);
        }
    }
}

#define EACH(expression)                   \
    for (uint32_t i = 0; i < count; i++) { \
        r[i] = (expression);               \
    }                                      \
    break

/* Four at a time where that saves the loop's own instructions; a result may be one of its operands. */
#define EACH_BINARY(operator)                                               \
    for (; i + 4 <= count; i += 4) {                                        \
        float p = a[i] operator b[i], q = a[i + 1] operator b[i + 1];       \
        float s = a[i + 2] operator b[i + 2], t = a[i + 3] operator b[i + 3]; \
        r[i] = p, r[i + 1] = q, r[i + 2] = s, r[i + 3] = t;                 \
    }                                                                       \
    for (; i < count; i++) {                                                \
        r[i] = a[i] operator b[i];                                          \
    }                                                                       \
    break

static void compute(uint32_t code, float *r, const float *a, const float *b, uint32_t count) {
    uint32_t i = 0;
    switch (code) {
    case SC_OP_ADD: EACH_BINARY(+);
    case SC_OP_SUB: EACH_BINARY(-);
    case SC_OP_MUL: EACH_BINARY(*);
    case SC_OP_DIV: EACH_BINARY(/);
    case SC_OP_MAX: EACH(a[i] > b[i] ? a[i] : b[i]);
    case SC_OP_MIN: EACH(a[i] < b[i] ? a[i] : b[i]);
    case SC_OP_LOGISTIC: EACH(sc_logistic(a[i]));
    case SC_OP_TANH: EACH(sc_tanh(a[i]));
    case SC_OP_EXP: EACH(sc_exp(a[i]));
    case SC_OP_SQRT: EACH(sqrtf(a[i]));
    case SC_OP_RSQRT: EACH(1.0f / sqrtf(a[i]));
    case SC_OP_NEG: EACH(-a[i]);
    default: break;
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
    for (uint32_t r = 0; r < rows; r++, from += stride) {
        const uint8_t *at = from;
        uint32_t end = i + columns;
        if (type == SC_TYPE_FLOAT) {
            for (; i < end; i++, at += 4 * step) {
                to[i] = *(const float *)(const void *)at;
            }
        } else if (type == SC_TYPE_S8) {
            for (; i < end; i++, at += step) {
                to[i] = (float)(*(const int8_t *)at - zero_point) * scale;
            }
        } else {
            for (; i < end; i++, at += 2 * step) {
                to[i] = (float)(*(const int16_t *)(const void *)at - zero_point) * scale;
            }
        }
    }
    return to;
}

/* With `together`, as many whole rows as fit a block go through it at a time. Compiled for each of the two. */
__attribute__((always_inline)) static inline void run_program(const uint32_t *call, const sc_memory *m, int together) {
    float registers[SC_REGISTERS][BLOCK];
    const float *values[SC_REGISTERS] = {0}; /* a register's own memory, or where it was loaded from */
    uint32_t columns = call[SC_PROGRAM_COLUMNS];
    uint32_t rows = 1, last_row = call[SC_PROGRAM_ROWS];
    for (uint32_t row = 0; row < last_row; row += rows) {
        float sum = 0.0f; /* in the order of the columns, as the reference kernels add */
        if (together) {
            rows = last_row - row < BLOCK / columns ? last_row - row : BLOCK / columns;
        }
        for (uint32_t column = 0; column < columns; column += BLOCK) {
            const uint32_t *op = call + SC_PROGRAM_BODY;
            uint32_t count = together ? rows * columns : columns - column < BLOCK ? columns - column : BLOCK;
            for (uint32_t n = call[SC_PROGRAM_OPS]; n > 0; n--) {
                uint32_t code = op[0] & 255;
                uint32_t result = op[0] >> 8 & 255;
                float *r = registers[result];
                const float *a = values[op[0] >> 16 & 255];
                switch (code) {
                case SC_OP_LOAD:
                    values[result] = together ? loaded_rows(op, m, row, rows, columns, r)
                                              : loaded(op, m, row, column, count, r);
                    op += SC_AT_WORDS;
                    break;
                case SC_OP_CONST:
                    for (uint32_t i = 0; i < count; i++) {
                        r[i] = sc_float_of(op[1]);
                    }
                    values[result] = r;
                    op += 2;
                    break;
                case SC_OP_STORE:
                    for (uint32_t done = 0; done < rows; done++) {
                        store(op, m, row + done, column, together ? columns : count, a + (size_t)done * columns);
                    }
                    break;
                case SC_OP_MEAN:
                case SC_OP_SUM:
                    for (uint32_t done = 0; done < rows; done++) {
                        uint32_t summed = together ? columns : count;
                        for (uint32_t i = 0; i < summed; i++) {
                            sum += *a++;
                        }
                        if (column + summed == columns) {
                            sum = code == SC_OP_MEAN ? sum / (float)columns : sum;
                            store(op, m, row + done, 0, 1, &sum);
                            sum = 0.0f;
                        }
                    }
                    break;
                default:
                    compute(code, r, a, values[op[0] >> 24], count);
                    values[result] = r;
                    op++;
                    break;
                }
            }
        }
    }
}

void sc_run_program(const uint32_t *call, const sc_memory *m) {
    if (call[SC_PROGRAM_ROWS] > 1 && call[SC_PROGRAM_COLUMNS] <= BLOCK / 2) {
        run_program(call, m, 1);
    } else {
        run_program(call, m, 0);
    }
}
