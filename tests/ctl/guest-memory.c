/*
 * Guest memory for a scripted daemon: writes that of a small Linux (tests/unit/fake-linux.c) to a file.
 *
 *   guest-memory FILE [damaged]
 *
 * Prints "kernel ROOT", then "PID COMM ROOT" of each process. Damaged: its list of processes is.
 */
#include "config.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/fd.h"
#include "tests/unit/fake-linux.h"

int main(int argc, char **argv)
{
    static struct fake_linux fl;
    int fd, r;

    if (argc < 2)
        return 2;
    fake_linux_init(&fl, 4, 0x6400000, FL_BTF_GOOD);
    fake_linux_process(&fl, 1, "init");
    fake_linux_process(&fl, 146, "dirty");
    fake_linux_process(&fl, 150, "a b");
    if (argc > 2 && strcmp(argv[2], "damaged") == 0)
        fake_linux_set(&fl, fl.tasks[1].task + FL_TASKS_LINK, fl.tasks[0].task + FL_TASKS_LINK, 8);
    fd = open(argv[1], O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    r = fd < 0 ? -1 : fd_write_all(fd, mem_ptr(fl.guest.mem, 0, FL_SIZE), FL_SIZE);
    fd_close(fd);
    printf("kernel %llu\n", (unsigned long long)fl.kernel_root);
    for (unsigned int i = 0; i < fl.count; i++)
        printf("%u %s %llu\n", fl.tasks[i].pid, fl.tasks[i].comm, (unsigned long long)fl.tasks[i].root);
    fake_linux_clear(&fl);
    return r < 0;
}
