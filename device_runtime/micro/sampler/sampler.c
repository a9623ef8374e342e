#include "sampler.h"

#include <string.h>

#define STEP 0x9e3779b97f4a7c15u /* splitmix64 (Steele, Lea, Flood 2014) */
static const float LEAST_TEMPERATURE = 1e-6f; /* below it, drawing is greedy */
static const float LOG2_E = 1.44269502162933349609375f;

/* 2^x for 0 <= x < 1 to within 9e-8; device_runtime/engine/sampler.py has the same numbers. */
static const float POWER[7] = {1.0f,
                               0.6931470036506653f,
                               0.2402298003435135f,
                               0.05548352375626564f,
                               0.009678472764790058f,
                               0.0012443081941455603f,
                               0.00021690608991775662f};

/* What may be drawn: tokens whose logit has a greater key, and the first `ties` of those that have the same. */
typedef struct {
    uint32_t key, ties;
} limit;

static uint64_t random_bits(sc_sampler *s) {
    uint64_t z = s->state += STEP;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* The upper 64 of the 128 bits of a product. */
static uint64_t multiply_high(uint64_t a, uint64_t b) {
    const uint64_t a0 = (uint32_t)a, a1 = a >> 32, b0 = (uint32_t)b, b1 = b >> 32;
    const uint64_t middle = a1 * b0 + (a0 * b0 >> 32), other = a0 * b1 + (uint32_t)middle;
    return a1 * b1 + (middle >> 32) + (other >> 32);
}

/* Greater for greater numbers; 0 and -0 are one. */
static uint32_t key_of(float logit) {
    const float number = logit + 0.0f;
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

/* 2^30 for the likeliest token, and in proportion for the others; 0 below 2^-30. */
static uint32_t weight_of(const sc_sampler *s, float logit, float greatest) {
    const float below = greatest - logit;
    if (!(below > 0.0f)) return 1u << 30;
    const float power = below * s->scale;
    if (!(power < 31.0f)) return 0;
    uint32_t halvings = (uint32_t)power;
    halvings += (float)halvings < power; /* rounded up */
    const float rest = (float)halvings - power; /* 0 <= rest < 1 */
    float p = POWER[6];
    for (int i = 5; i >= 0; i--) {
        const float product = p * rest;
        p = product + POWER[i];
    }
    return (uint32_t)(p * 1073741824.0f) >> halvings;
}

/* The limit that keeps the likeliest tokens within `within` whose counts (or, with a sampler, weights) reach `needed`,
 * from 1 to their sum: found byte by byte of the keys, from the highest. */
static limit keep(const sc_sampler *s, const float *logits, uint32_t count, float greatest, limit within,
                  uint64_t needed) {
    uint64_t sums[256];
    limit found = {0, 0};
    uint32_t mask = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        uint32_t ties = within.ties;
        memset(sums, 0, sizeof sums);
        for (uint32_t i = 0; i < count; i++) {
            const uint32_t key = key_of(logits[i]);
            if (key < within.key || (key == within.key && ties == 0)) continue;
            ties -= key == within.key;
            if ((key & mask) == found.key) sums[key >> shift & 255] += s ? weight_of(s, logits[i], greatest) : 1;
        }
        uint32_t byte = 255;
        for (; byte > 0 && sums[byte] < needed; byte--) needed -= sums[byte];
        found.key |= byte << shift;
        mask |= 255u << shift;
    }
    uint64_t each = 1; /* of tokens with the limit's key */
    for (uint32_t i = 0; s && i < count; i++)
        if (key_of(logits[i]) == found.key) {
            each = weight_of(s, logits[i], greatest);
            break;
        }
    found.ties = each ? (uint32_t)((needed + each - 1) / each) : 1;
    return found;
}

/* The sum of the weights within a limit; with `until` below it, the token at which it passes `until`. */
static uint64_t add_up(const sc_sampler *s, const float *logits, uint32_t count, float greatest, limit within,
                       uint64_t until, uint32_t *token) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t key = key_of(logits[i]);
        if (key < within.key || (key == within.key && within.ties == 0)) continue;
        within.ties -= key == within.key;
        sum += weight_of(s, logits[i], greatest);
        if (sum > until) {
            *token = i;
            return sum;
        }
    }
    return sum;
}

void sc_sampler_begin(sc_sampler *s, const sc_sampling *sampling) {
    s->scale = sampling->temperature >= LEAST_TEMPERATURE ? LOG2_E / sampling->temperature : 0.0f;
    s->top_k = sampling->top_k;
    const float share = sampling->top_p * 65536.0f;
    const float rounded = share + 0.5f;
    s->top_p = rounded >= 65536.0f ? 65536u : rounded >= 1.0f ? (uint32_t)rounded : 1u;
    s->state = sampling->seed;
}

void sc_sampler_skip(sc_sampler *s, uint64_t tokens) {
    if (s->scale > 0.0f) s->state += tokens * STEP;
}

uint32_t sc_sampler_choose(sc_sampler *s, const float *logits, uint32_t count) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < count; i++)
        if (logits[i] > logits[best]) best = i;
    if (!(s->scale > 0.0f)) return best;
    const float greatest = logits[best];
    limit within = {0, UINT32_MAX};
    if (s->top_k > 0 && s->top_k < count) within = keep(NULL, logits, count, greatest, within, s->top_k);
    uint64_t sum = add_up(s, logits, count, greatest, within, UINT64_MAX, &best);
    if (s->top_p < 65536u) {
        const uint64_t needed = (sum >> 16) * s->top_p + ((sum & 65535u) * s->top_p >> 16);
        within = keep(s, logits, count, greatest, within, needed ? needed : 1);
        sum = add_up(s, logits, count, greatest, within, UINT64_MAX, &best);
    }
    (void)add_up(s, logits, count, greatest, within, multiply_high(random_bits(s), sum), &best);
    return best;
}
