/* exp, logistic and tanh of the engine against double precision, and a hash of their bits: every 4,001st float whose exp
 * is a normal number, and those beside each place where a function changes. Prints the largest error of exp in units of
 * the last place, the largest of the other two in millionths, and the hash. */
#include <float.h>
#include <inttypes.h>
#include <stdio.h>

#include "numbers.h"

static double worst_exp, worst_other;
static uint64_t hash = 14695981039346656037u; /* FNV-1a, a word at a time */

static void keep(float y) { hash = (hash ^ sc_bits_of(y)) * 1099511628211u; }

static void larger(double *worst, double error) {
    error = fabs(error);
    *worst = error > *worst ? error : *worst;
}

static void check(float x) {
    const double e = exp((double)x);
    const float y = sc_exp(x), logistic = sc_logistic(x), tangent = sc_tanh(x);
    int exponent;
    keep(y), keep(logistic), keep(tangent);
    if (y >= FLT_MIN && y <= FLT_MAX) {
        (void)frexp(e, &exponent);
        larger(&worst_exp, ((double)y - e) / ldexp(1, exponent - FLT_MANT_DIG));
    }
    larger(&worst_other, 1e6 * ((double)logistic - 1 / (1 + 1 / e)));
    larger(&worst_other, 1e6 * ((double)tangent - tanh((double)x)));
}

int main(void) {
    static const float ends[] = {-87.33654f, 88.72283f, 16.619047164916992188f, -9.0f, 9.1f, -9.1f, 0.02f, -0.02f};
    const uint32_t last = sc_bits_of(88.72283f);
    for (uint32_t bits = 0x30000000; bits <= last; bits += 4001) {
        check(sc_float_of(bits));
        if (sc_float_of(bits) < 87.33f) {
            check(-sc_float_of(bits));
        }
    }
    for (unsigned i = 0; i < sizeof ends / sizeof *ends; i++) {
        for (uint32_t beside = 0; beside < 3; beside++) {
            const float x = sc_float_of(sc_bits_of(ends[i]) + beside - 1);
            keep(sc_exp(x)), keep(sc_logistic(x)), keep(sc_tanh(x));
        }
    }
    keep(sc_exp(0.0f)), keep(sc_exp(-INFINITY)), keep(sc_exp(INFINITY));
    printf("%.4f %.3f %016" PRIx64 "\n", worst_exp, worst_other, hash);
    return 0;
}
