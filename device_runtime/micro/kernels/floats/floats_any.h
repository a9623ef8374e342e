/* Any processor. */

static inline int16_t sc_largest_exact(const int16_t *scores, uint32_t count) {
    int16_t largest = scores[0];
    for (uint32_t i = 1; i < count; i++) {
        largest = scores[i] > largest ? scores[i] : largest;
    }
    return largest;
}

/* sc_exp of x from its bits, x at most 0. */
static inline float sc_exp_below(uint32_t bits) {
    uint64_t power;
    if (bits >= SC_EXP_IS_0) {
        return 0.0f;
    }
    power = 0 - sc_split(bits);
    return sc_power_of_two((int32_t)(power >> 32), (uint32_t)power);
}

static inline float sc_exps_below_exact(const int16_t *scores, float step, float most, float *exps, uint32_t count) {
    float sum = 0.0f;
    for (uint32_t i = 0; i < count; i++) {
        exps[i] = sc_exp_below(sc_bits_of((float)scores[i] * step - most));
        sum += exps[i];
    }
    return sum;
}

static inline void sc_shares_exact(const float *exps, float sum, float step, int16_t *shares, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        int32_t whole = (int32_t)(exps[i] / sum / step + SC_BELOW_HALF);
        shares[i] = (int16_t)(whole < 32767 ? whole : 32767);
    }
}

static inline void sc_from_s8_exact(const int8_t *stored, int32_t zero_point, float scale, float *x, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        x[i] = (float)(stored[i] - zero_point) * scale;
    }
}

static inline void sc_from_s16_exact(const int16_t *stored, int32_t zero_point, float scale, float *x, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        x[i] = (float)(stored[i] - zero_point) * scale;
    }
}

static inline void sc_copy_exact(float *to, const float *x, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        to[i] = x[i];
    }
}

static inline void sc_fill_exact(float *to, float x, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        to[i] = x;
    }
}

static inline void sc_to_s8_exact(const float *x, float scale, int32_t zero_point, int8_t *to, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        to[i] = (int8_t)(sc_rounded(x[i] / scale, -128 - zero_point, 127 - zero_point) + zero_point);
    }
}

static inline void sc_to_s16_exact(const float *x, float scale, int32_t zero_point, int16_t *to, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        to[i] = (int16_t)(sc_rounded(x[i] / scale, -32768 - zero_point, 32767 - zero_point) + zero_point);
    }
}

static inline float sc_sum_exact(const float *x, float sum, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        sum += x[i];
    }
    return sum;
}

#define SC_EACH(expression)                \
    for (uint32_t i = 0; i < count; i++) { \
        r[i] = (expression);               \
    }                                      \
    break

static inline void sc_each_exact(uint32_t code, float *r, const float *a, const float *b, uint32_t count) {
    switch (code) {
    case SC_OP_ADD: SC_EACH(a[i] + b[i]);
    case SC_OP_SUB: SC_EACH(a[i] - b[i]);
    case SC_OP_MUL: SC_EACH(a[i] * b[i]);
    case SC_OP_DIV: SC_EACH(a[i] / b[i]);
    case SC_OP_MAX: SC_EACH(a[i] > b[i] ? a[i] : b[i]);
    case SC_OP_MIN: SC_EACH(a[i] < b[i] ? a[i] : b[i]);
    case SC_OP_LOGISTIC: SC_EACH(sc_logistic(a[i]));
    case SC_OP_TANH: SC_EACH(sc_tanh(a[i]));
    case SC_OP_EXP: SC_EACH(sc_exp(a[i]));
    case SC_OP_SQRT: SC_EACH(sqrtf(a[i]));
    case SC_OP_RSQRT: SC_EACH(1.0f / sqrtf(a[i]));
    case SC_OP_NEG: SC_EACH(-a[i]);
    default: break;
    }
}
