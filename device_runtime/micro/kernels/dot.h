/* Four rows of int8 weights by one vector: the inner loop of every matmul. Which file gives it is decided here, when
 * the engine is compiled. Sums of int8 products stay within 32 bits for 2^17 columns; those of int16 products are
 * added up in 64 bits before 32 are full.
 *
 * sc_dot4_s8:  x of the type sc_wide, `columns` a multiple of 16
 * sc_dot4_s16: any number of columns
 */
#ifndef SC_DOT_H
#define SC_DOT_H

#include <stdint.h>

#if defined(__AVX2__)
#include "dot_avx2.h"
#else
#include "dot_scalar.h"
#endif

#endif
