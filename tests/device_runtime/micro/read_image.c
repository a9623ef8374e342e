/* Opens a model image from a file and prints its status and its sections: kind, offset, size. */
#include <stdio.h>
#include <stdlib.h>

#include "image.h"

int main(int count, char **arguments) {
    FILE *file = count == 2 ? fopen(arguments[1], "rb") : NULL;
    long size;
    void *bytes;
    sc_image image;
    sc_status status;
    if (file == NULL || fseek(file, 0, SEEK_END) != 0 || (size = ftell(file)) < 0) {
        return 100;
    }
    rewind(file);
    /* exactly as many bytes as the file has, so that the sanitizer sees a read past the end */
    bytes = malloc(size > 0 ? (size_t)size : 1);
    if (bytes == NULL || fread(bytes, 1, (size_t)size, file) != (size_t)size) {
        return 100;
    }
    status = sc_image_open(&image, bytes, (size_t)size);
    printf("%d %s\n", (int)status, sc_status_text(status));
    for (uint32_t kind = 0; status == SC_OK && kind < 64; kind++) {
        sc_section section = sc_image_section(&image, kind);
        if (section.bytes != NULL) {
            printf("%u %u %u\n", (unsigned)kind, (unsigned)(section.bytes - image.bytes), (unsigned)section.size);
        }
    }
    free(bytes);
    fclose(file);
    return status == SC_OK ? 0 : 1;
}
