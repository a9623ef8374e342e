#include "check_floats.h"

#include <stdio.h>

int main(void) {
    printf("%d\n", check_floats());
    return 0;
}
