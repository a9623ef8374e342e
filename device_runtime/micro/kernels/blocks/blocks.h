/* Rows of int4 weights in blocks by one vector, four rows at a time. Which file gives it is decided here, when the
 * engine is compiled.
 *
 * A block is 32 columns of a row in 16 bytes: byte i has column i in its low half and column 16 + i in its high half,
 * each 8 more than the weight. The blocks of four rows lie side by side, and after them the next 32 columns of the four:
 * one pointer walks through all. Each block has a multiplier of 1 to 255, laid out alike. What a row sums up is
 *
 *     sum of multiplier * (start + dot of halves and x),   start = -8 * (sum of the block's x)
 *
 * so the 8 is taken away once for all rows, and no half is sign-extended. All of it is integers, which add up to the
 * same in any order: no target differs from another.
 *
 *   sc_block_x            the type of int8 activations after sc_block_ordered_s8
 *   sc_block_ordered_s8   int8 [columns] -> sc_block_x [columns], in `scratch` if need be
 *   sc_block_ordered_s16  int16 [columns] in the order that the next one wants, in `scratch` if need be
 *   sc_block_sums_s8      sums of four rows; |a sum| stays below 2^30 (graph.c)
 *   sc_block_sums_s16     the same for int16 activations, in 64 bits
 */
#ifndef SC_BLOCKS_H
#define SC_BLOCKS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "graph.h"
#include "numbers.h"

enum { SC_BLOCK_ROWS = 4, SC_BLOCK_BYTES = SC_BLOCK / 2, SC_GROUP_BYTES = SC_BLOCK_ROWS * SC_BLOCK_BYTES };

#if defined(__ARM_FEATURE_MVE) && !defined(SC_SCALAR)
#include "blocks_mve.h"
#elif defined(SC_USES_DSP)
#include "blocks_dsp.h"
#elif defined(__AVX2__) && !defined(SC_SCALAR)
#include "blocks_avx2.h"
#elif defined(__ARM_NEON) && !defined(SC_SCALAR)
#include "blocks_neon.h"
#else
#include "blocks_scalar.h"
#endif

#endif
