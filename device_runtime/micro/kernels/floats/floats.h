/* Loops over floats: softmax, and the operations of elementwise programs. Which file gives them is decided here, when
 * the engine is compiled. All give the same bits, those of floats_any.h.
 *
 *   sc_largest        of int16 scores, at least one
 *   sc_exps_below     exps[i] = sc_exp(scores[i] * step - most), none of which is above 0; returns their sum in the order
 *                     of i. `exps` may lie over scores that have been read. step is 2^-64 to 2^96 (graph.c).
 *   sc_shares         exps[i] / sum / step, 0 to 2^16 (graph.c), as int16, count a multiple of 4; with SC_SHARES_ORDERED
 *                     in the order that sc_ordered gives. `shares` may lie over exps that have been read.
 *   sc_from_s8, s16   (stored - zero_point) * scale
 *   sc_copy, sc_fill  floats; one float, `count` times
 *   sc_to_s8, s16     x / scale + zero_point, rounded as sc_rounded does; may lie over x that has been read
 *   sc_each           an operation with one or two operands on each of `count` columns; the result may be one of them
 *                     With SC_FOURS_ONLY, operands have room for a multiple of four.
 *   sc_sum            `sum` and all of x, one after the other
 *   sc_flags_clear    start of a block of a program
 *   sc_flags_set      whether sc_from… and sc_each may have computed something else than sc_each_exact since: a number
 *                     that is too small to be normal, or none; then the block is computed again with that
 */
#ifndef SC_FLOATS_H
#define SC_FLOATS_H

#include <stddef.h>
#include <stdint.h>

#include "graph.h"
#include "numbers.h"
#include "power.h"

#define SC_BELOW_HALF 0.49999997f /* the float before 0.5: (int)(x + this) rounds every x >= 0, halves upwards */

#include "floats_any.h"

#if defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 2) && !defined(SC_SCALAR)
#include "floats_mve.h"
#elif defined(SC_USES_DSP) && defined(__ARM_FP) && !defined(__ARM_FEATURE_MVE)
/* the order of its shares is that of dot_dsp.h, which integer Helium does not take */
#include "floats_dsp.h"
#else
#define sc_largest sc_largest_exact
#define sc_exps_below sc_exps_below_exact
#define sc_shares sc_shares_exact
#define sc_from_s8 sc_from_s8_exact
#define sc_from_s16 sc_from_s16_exact
#define sc_copy sc_copy_exact
#define sc_fill sc_fill_exact
#define sc_to_s8 sc_to_s8_exact
#define sc_to_s16 sc_to_s16_exact
#define sc_each sc_each_exact
#define sc_sum sc_sum_exact
#endif

#ifndef SC_HAS_FLAGS
static inline void sc_flags_clear(void) {}
static inline int sc_flags_set(void) { return 0; }
#endif

#endif
