/*
 * Damages what names the processes of a Linux guest, from the host, as root: writes into guest memory through the file that
 * umbrad holds.
 *
 *   spoil-guest PID ROOT LEVELS WHAT     PID: umbrad's; ROOT: an address space of the guest's, LEVELS its page tables have
 *   spoil-guest PID undo OFFSET          damage the same again: it is as it was
 *
 * WHAT: btf (a type), pgd (of a process), list (an entry points back at itself), init (the first task's pid), end (an entry
 * points at the first process again). Prints the OFFSET in the file that it changed. The guest should be paused for all but btf.
 */
#include "config.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/fd.h"
#include "inspect/btf-check.h"
#include "inspect/inspect-internal.h"

static int fail(const char *what)
{
    fprintf(stderr, "spoil-guest: %s\n", what);
    return 1;
}

/* The RAM file among the descriptors of the process, opened for writing. */
static int open_ram(const char *pid)
{
    char dir[64], path[400], name[64];
    const struct dirent *d;
    DIR *fds;
    int fd = -1;

    snprintf(dir, sizeof(dir), "/proc/%.20s/fd", pid);
    fds = opendir(dir);
    while (fds && fd < 0 && (d = readdir(fds))) {
        ssize_t n;

        snprintf(path, sizeof(path), "%s/%s", dir, d->d_name);
        n = readlink(path, name, sizeof(name) - 1);
        name[n > 0 ? n : 0] = '\0';
        if (strncmp(name, "/memfd:umbra-ram", 16) == 0)
            fd = open(path, O_RDWR | O_CLOEXEC);
    }
    if (fds)
        closedir(fds);
    return fd;
}

/* Change the 8 bytes there; twice is as if never. */
static int flip(int fd, uint64_t offset, uint64_t mask)
{
    uint64_t v;

    if (fd_pread_all(fd, &v, sizeof(v), offset) < 0)
        return fail("cannot read guest memory");
    v ^= mask;
    if (pwrite(fd, &v, sizeof(v), (off_t)offset) != sizeof(v))
        return fail("cannot write guest memory");
    printf("%llu:%llu\n", (unsigned long long)offset, (unsigned long long)mask);
    return 0;
}

static uint64_t pointer_at(struct inspect_memory *m, gva_t gva)
{
    uint8_t bytes[8] = {0};

    inspect_read_virtual(m, gva, bytes, sizeof(bytes));
    return le64_get(bytes);
}

/* The process that is last in the list, and the first: of both the entry. */
static int spoil(int fd, struct inspect_memory *m, const struct inspect_kernel *k, const char *what)
{
    const struct inspect_layout *l = &k->layout;
    gva_t head = k->init_task + l->tasks, first = pointer_at(m, head + l->next), last = pointer_at(m, head + l->prev), at;
    uint64_t mask = 0;
    gpa_t gpa;

    if (strcmp(what, "btf") == 0) {
        at = k->btf + BTF_HEADER_SIZE; /* the first type's name and kind */
        mask = UINT64_C(0x1f0000007fffffff);
    } else if (strcmp(what, "pgd") == 0) {
        at = pointer_at(m, first - l->tasks + l->mm) + l->pgd;
        mask = UINT64_C(1) << 13;
    } else if (strcmp(what, "list") == 0) {
        at = last + l->prev;
        mask = pointer_at(m, at) ^ last;
    } else if (strcmp(what, "end") == 0) {
        at = last + l->next;
        mask = pointer_at(m, at) ^ first;
    } else if (strcmp(what, "init") == 0) {
        at = k->init_task + l->pid;
        mask = 1;
    } else {
        return fail("damage what?");
    }
    /* Guest RAM below 3 GiB is at its address in the file. */
    if (inspect_translate(m, at, &gpa) < 0 || gpa >= MEM_HOLE_START)
        return fail("what is to be damaged is not there");
    return flip(fd, gpa, mask);
}

int main(int argc, char **argv)
{
    static struct inspect_memory m;
    struct inspect_slot slot = {.size = 0};
    struct inspect_kernel k;
    struct inspect_why why = {""};
    unsigned long long offset, mask;
    int fd = argc >= 4 ? open_ram(argv[1]) : -1;
    off_t size = fd < 0 ? 0 : lseek(fd, 0, SEEK_END);

    if (size <= 0)
        return fail("no guest memory");
    if (strcmp(argv[2], "undo") == 0)
        return sscanf(argv[3], "%llu:%llu", &offset, &mask) == 2 ? flip(fd, offset, mask) : fail("undo what?");
    slot.size = MIN((uint64_t)size, MEM_HOLE_START);
    if (argc < 5 || inspect_memory_init(&m, fd, &slot, 1) < 0 ||
        inspect_memory_use(&m, strtoull(argv[2], NULL, 0), (unsigned int)atoi(argv[3])) < 0)
        return fail("wrong arguments");
    if (inspect_find_kernel(&m, &k, &why) < 0)
        return fail(why.text);
    return spoil(fd, &m, &k, argv[4]);
}
