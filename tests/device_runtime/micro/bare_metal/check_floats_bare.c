#include "../kernels/check_floats.h"
#include "measure.h"
#include "semihosting.h"

int main(void) {
    print_number((uint64_t)check_floats());
    return 0;
}
