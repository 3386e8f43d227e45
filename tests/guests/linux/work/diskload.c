/*
 * diskload DISK WRITE RANDOM DEPTH COUNT [BLOCK [PAUSE]]: transfer COUNT blocks of BLOCK bytes (4096) past the page cache of a
 * virtio disk (0 is vda), DEPTH at a time, in order or all over it. Writes are of a pattern that says where they went. With PAUSE
 * it says when it is ready, and waits so many milliseconds, then and when it is through: for those who count nothing but the
 * transfers, and not how a program begins and ends.
 */
#define _GNU_SOURCE
#include "work.h"

#include <fcntl.h>
#include <inttypes.h>
#include <linux/aio_abi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static const char name[] = "diskload";

enum { MAX_DEPTH = 256 };

struct load {
    int fd;
    aio_context_t aio;
    int write;
    int random;
    uint64_t block, blocks; /* bytes of one; how many the disk has */
    uint64_t issued;
    unsigned char *buffers;
    struct iocb iocbs[MAX_DEPTH];
};

/* A permutation of sorts: every place as likely, the same each time. */
static uint64_t place_of(const struct load *load, uint64_t index)
{
    return load->random ? index * UINT64_C(0x9e3779b97f4a7c15) % load->blocks : index % load->blocks;
}

static void submit(struct load *load, unsigned int slot)
{
    struct iocb *iocb = &load->iocbs[slot];
    uint64_t place = place_of(load, load->issued++);
    unsigned char *buffer = load->buffers + slot * load->block;

    memset(iocb, 0, sizeof(*iocb));
    iocb->aio_data = slot;
    iocb->aio_lio_opcode = load->write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
    iocb->aio_fildes = (uint32_t)load->fd;
    iocb->aio_buf = (uintptr_t)buffer;
    iocb->aio_nbytes = load->block;
    iocb->aio_offset = (int64_t)(place * load->block);
    if (load->write)
        memcpy(buffer, &place, sizeof(place));
}

static void hand_over(struct load *load, const unsigned int *slots, long count)
{
    struct iocb *list[MAX_DEPTH];

    for (long i = 0; i < count; i++)
        list[i] = &load->iocbs[slots[i]];
    for (long done = 0; done < count;) {
        long n = syscall(SYS_io_submit, load->aio, count - done, list + done);

        if (n <= 0)
            work_fail(name, "io_submit");
        done += n;
    }
}

static void open_disk(struct load *load, uint64_t disk)
{
    char path[16];
    off_t size;

    snprintf(path, sizeof(path), "/dev/vd%c", (char)('a' + disk % 26));
    load->fd = open(path, (load->write ? O_RDWR : O_RDONLY) | O_DIRECT);
    if (load->fd < 0)
        work_fail(name, path);
    size = lseek(load->fd, 0, SEEK_END);
    load->blocks = (uint64_t)size / load->block;
    if (load->blocks == 0)
        work_fail(name, "size");
}

static void pause_for(uint64_t ms)
{
    fflush(stdout);
    usleep((useconds_t)ms * 1000);
}

static int run(const uint64_t *args, int count)
{
    static struct load load;
    struct io_event events[MAX_DEPTH];
    unsigned int slots[MAX_DEPTH];
    uint64_t depth = args[3], total = args[4], pause_ms = work_arg(args, count, 6, 0), done = 0;
    double start;

    load.write = args[1] != 0;
    load.random = args[2] != 0;
    load.block = work_arg(args, count, 5, PAGE_BYTES);
    if (depth == 0 || depth > MAX_DEPTH || load.block == 0 || load.block % 512 != 0 || load.block > 1 << 20)
        return 2;
    open_disk(&load, args[0]);
    load.buffers = work_map(name, depth * load.block);
    memset(load.buffers, 0x5a, depth * load.block);
    if (syscall(SYS_io_setup, depth, &load.aio) < 0)
        work_fail(name, "io_setup");
    if (pause_ms > 0) {
        printf("umbra-ready: %s\n", name);
        pause_for(pause_ms);
    }
    start = work_now();
    for (unsigned int i = 0; i < depth && load.issued < total; i++) {
        slots[i] = i;
        submit(&load, i);
    }
    hand_over(&load, slots, (long)load.issued);
    while (done < total) {
        long n = syscall(SYS_io_getevents, load.aio, 1, (long)depth, events, NULL), again = 0;

        if (n <= 0)
            work_fail(name, "io_getevents");
        for (long i = 0; i < n; i++) {
            if (events[i].res != (int64_t)load.block) {
                printf("umbra-work: %s error=transfer: %" PRId64 "\n", name, (int64_t)events[i].res);
                return 1;
            }
            done++;
            if (load.issued == total)
                continue;
            slots[again++] = (unsigned int)events[i].data;
            submit(&load, (unsigned int)events[i].data);
        }
        hand_over(&load, slots, again);
    }
    printf("umbra-work: %s disk=%" PRIu64 " write=%d random=%d depth=%" PRIu64 " count=%" PRIu64 " us=%.0f\n", name, args[0],
           load.write, load.random, depth, done, (work_now() - start) * 1e6);
    pause_for(pause_ms);
    return 0;
}

const struct program work_diskload = { "diskload", "DISK WRITE RANDOM DEPTH COUNT [BLOCK [PAUSE]]", 5, 7, run };
