/* The passes that are too long to be in every kernel that calls them: those written in assembly. */
#define SC_DOT_BODIES
#include "dot.h"
