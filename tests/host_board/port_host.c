/* The port of a board that is a process of this machine: a serial line on a file descriptor, flash in a file. main.c and
 * boot.c are those of the firmware. Its power can be cut at any operation of the flash (HOST_CUT).
 *
 *   HOST_LINE   the file descriptor of the line      HOST_FLASH  a file, mapped
 *   HOST_IMAGE  a model image, for a board without slots */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "flash.h"
#include "host_port.h"
#include "port.h"

int firmware_main(void);
int boot_main(void);

port_kept kept;
uint8_t host_run_area[RUN_BYTES];
const uint8_t *host_image;
sc_flash port_flash;

static int line;
static long cut;
static uint64_t started_ms;

static long number(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text != NULL ? atol(text) : otherwise;
}

static void set(const char *name, long value) {
    char text[24];
    snprintf(text, sizeof text, "%ld", value);
    setenv(name, text, 1);
}

static uint64_t clock_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

uint32_t port_now_ms(void) { return (uint32_t)(clock_ms() - started_ms); }
uint32_t port_overruns(void) { return 0; }
void port_feed_watchdog(void) {}

int port_read(void) {
    static uint8_t held[4096];
    static ssize_t have, at;
    if (at == have) {
        struct pollfd waiting = {line, POLLIN, 0};
        if (poll(&waiting, 1, 0) <= 0) return -1;
        at = 0;
        have = read(line, held, sizeof held);
        if (have <= 0) exit(0); /* the other end is gone */
    }
    return held[at++];
}

void port_wait(void) {
    struct pollfd waiting = {line, POLLIN, 0};
    (void)poll(&waiting, 1, 1000);
}

void port_write(const uint8_t *bytes, uint32_t size) {
    while (size > 0) {
        const ssize_t sent = write(line, bytes, size);
        if (sent <= 0) exit(0);
        bytes += sent;
        size -= (uint32_t)sent;
    }
}

static void start_again(const char *mode) {
    setenv("HOST_MODE", mode, 1);
    set("HOST_CUT", cut);
    execl("/proc/self/exe", "board", (char *)NULL);
    abort();
}

void port_restart(uint32_t cause) {
    set("HOST_BOOTS", (long)kept.boots);
    set("HOST_CAUSE", (long)cause);
    start_again("boot");
}

void start_program(const void *at) {
    (void)at;
    start_again("firmware");
}

/* The operation at which the power goes is done by half. */
static uint32_t done_of(uint32_t size) {
    if (cut > 0 && --cut == 0) return size / 2;
    return size;
}

static int erase(void *context, uint32_t offset) {
    const uint32_t done = done_of(FLASH_SECTOR_BYTES);
    memset((uint8_t *)context + offset, 0xff, done);
    if (done < FLASH_SECTOR_BYTES) _exit(9);
    return 0;
}

static int write_bytes(void *context, uint32_t offset, const uint8_t *bytes, uint32_t size) {
    const uint32_t done = done_of(size);
    uint8_t *to = (uint8_t *)context + offset;
    if (offset % 4 != 0 || size % 4 != 0) abort();
    for (uint32_t i = 0; i < done; i++) to[i] &= bytes[i];
    if (done < size) _exit(9);
    return 0;
}

static uint8_t *mapped(const char *path, int shared) {
    struct stat facts;
    const int file = open(path, O_RDWR);
    if (file < 0 || fstat(file, &facts) != 0) abort();
    void *at = mmap(NULL, (size_t)facts.st_size, PROT_READ | PROT_WRITE, shared ? MAP_SHARED : MAP_PRIVATE, file, 0);
    if (at == MAP_FAILED) abort();
    close(file);
    return at;
}

void port_start(void) { started_ms = clock_ms(); }

int main(void) {
    const char *flash = getenv("HOST_FLASH"), *image = getenv("HOST_IMAGE"), *mode = getenv("HOST_MODE");
    line = (int)number("HOST_LINE", 0);
    cut = number("HOST_CUT", 0);
    kept.boots = (uint32_t)number("HOST_BOOTS", 0);
    kept.cause = (uint32_t)number("HOST_CAUSE", 0);
    if (image != NULL) host_image = mapped(image, 0);
    if (flash != NULL) {
        port_flash.context = mapped(flash, 1);
        port_flash.bytes = port_flash.context;
        port_flash.sector_bytes = FLASH_SECTOR_BYTES;
        port_flash.erase = erase;
        port_flash.write = write_bytes;
    }
    return mode != NULL && strcmp(mode, "firmware") == 0 ? firmware_main() : boot_main();
}
