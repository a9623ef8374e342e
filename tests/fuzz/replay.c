/* Runs a fuzz target on files, each once, where libFuzzer is not linked. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int main(int count, char **names) {
    for (int i = 1; i < count; i++) {
        FILE *file = fopen(names[i], "rb");
        if (file == NULL || fseek(file, 0, SEEK_END) != 0) return 1;
        const long size = ftell(file);
        rewind(file);
        uint8_t *data = malloc(size > 0 ? (size_t)size : 1);
        if (size < 0 || data == NULL || fread(data, 1, (size_t)size, file) != (size_t)size) return 1;
        fclose(file);
        LLVMFuzzerTestOneInput(data, (size_t)size);
        free(data);
    }
    printf("%d\n", count - 1);
    return 0;
}
