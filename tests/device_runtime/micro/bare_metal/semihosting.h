/* What QEMU does for a program without an operating system: print, and end with a status. */
#ifndef SEMIHOSTING_H
#define SEMIHOSTING_H

void semi_print(const char *text);
void semi_exit(int status);

#endif
