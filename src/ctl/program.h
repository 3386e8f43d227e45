/* Other programs: the editor, umbrad, the tools that take a disk image apart. */
#ifndef UMBRA_CTL_PROGRAM_H
#define UMBRA_CTL_PROGRAM_H

#include <stdint.h>

#define PROGRAM_NOT_FOUND 127

struct program {
    char *const *argv; /* argv[0] is looked up in PATH */
    int out;           /* where its standard output goes; -1: where ours goes */
    int err;           /* the same of standard error */
    const char *dir;   /* working directory; NULL: ours */
    uint64_t max_file; /* no file it writes may be larger; 0: no limit */
};

/*
 * Run it and wait for it. Its exit status, 128 + a signal's number, PROGRAM_NOT_FOUND (told on its standard error), or
 * -errno.
 */
int program_run(const struct program *p);

#endif
