/* Arguments: an image, a vector file. Prints what run_vectors gives. */
#include "run_vectors.h"

#include <stdio.h>

static uint32_t image[1 << 16], vectors[1 << 14], arena[1 << 12], kv_cache[1 << 12]; /* tiny networks */

static size_t read_file(const char *path, void *to, size_t room) {
    FILE *file = fopen(path, "rb");
    size_t size = file != NULL ? fread(to, 1, room, file) : 0;
    if (file != NULL) {
        fclose(file);
    }
    return size;
}

static void *aligned(uint32_t *memory) { return (void *)(((uintptr_t)memory + 15) & ~(uintptr_t)15); }

int main(int count, char **arguments) {
    sc_model *model;
    size_t size = count == 3 ? read_file(arguments[1], aligned(image), sizeof image - 16) : 0;
    sc_status status = sc_open(&model, aligned(image), size, SC_CHECK_HASH, aligned(arena), sizeof arena - 16,
                               aligned(kv_cache), sizeof kv_cache - 16);
    if (status != SC_OK || read_file(arguments[2], vectors, sizeof vectors) == 0) {
        return 1;
    }
    printf("%d\n", run_vectors(model, vectors));
    return 0;
}
