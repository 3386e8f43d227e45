/*
 * A tiny VMM on raw KVM ioctls, for the programs that show what the least possible costs. It shares nothing with src/
 * on purpose: what it measures and what it harvests is a second opinion.
 *
 * One vCPU, one memory slot from guest physical 0 (at most 3 GiB), in-kernel interrupt controllers and PIT, an 8250
 * at 0x3f8 and an exit port at 0xf4. Functions return 0 or -errno and say what failed on stderr, but for a missing
 * KVM, which ends the program with status 77.
 */
#ifndef BENCH_FLOOR_H
#define BENCH_FLOOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <linux/kvm.h>

#define FLOOR_PAGE_SIZE 4096u
#define FLOOR_RAM_MIN (UINT64_C(2) << 20)
#define FLOOR_RAM_MAX (UINT64_C(3) << 30)
#define FLOOR_START_INFO 0x6000u
#define FLOOR_LINE_SIZE 512
#define FLOOR_SKIP 77

struct floor_config {
    const char *guest;   /* a PVH ELF */
    const char *cmdline;
    uint64_t ram;        /* bytes */
    bool prealloc;       /* populate guest RAM before the guest runs */
    uint32_t ring_entries; /* of the dirty ring, a power of two; 0: dirty bitmap */
};

struct floor_vm {
    int kvm, vm, vcpu;
    struct kvm_run *run;
    size_t run_size;
    uint8_t *ram;
    uint64_t ram_size;
    struct kvm_dirty_gfn *ring;
    uint32_t ring_entries, ring_next;
    bool logging;

    /* The serial port: bytes for the guest, registers that the guest wrote, the byte it sent last. */
    const char *input;
    uint8_t ier, lcr, mcr, scratch, dll, dlm;
    uint8_t sent;
    uint8_t exit_code;
};

enum floor_event {
    FLOOR_OUTPUT,    /* the guest sent vm->sent */
    FLOOR_NO_INPUT,  /* the guest looked for input and there is none */
    FLOOR_RING_FULL, /* harvest before the next run */
    FLOOR_EXIT,      /* the guest wrote vm->exit_code to the exit port, or shut down (255) */
};

/* Name of the program, put in front of messages. Set it first. */
extern const char *floor_name;

void floor_err(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Monotonic time in nanoseconds. */
uint64_t floor_ns(void);

/* Create the VM with the guest loaded, ready to run. Nothing is left open on failure. */
int floor_create(struct floor_vm *vm, const struct floor_config *config);
void floor_destroy(struct floor_vm *vm);

/* Load the guest; the PVH start info is at FLOOR_START_INFO. Part of floor_create(). */
int floor_load(struct floor_vm *vm, const char *path, const char *cmdline, uint32_t *ret_entry);

/* Run up to the next event (enum floor_event), or -errno. */
int floor_run(struct floor_vm *vm);

/*
 * Run until the guest has sent a whole line, stored in line[FLOOR_LINE_SIZE] without its end (cut when longer).
 * on_full is called for each full dirty ring. Returns 0, 1 when the guest ended first, or -errno.
 */
int floor_read_line(struct floor_vm *vm, char *line, int (*on_full)(void *arg), void *arg);

/* -- dirty log ------------------------------------------------------------------- */

/* Switch the log of the slot on or off. On: every page counts as dirty until it is cleared (bitmap). */
int floor_log(struct floor_vm *vm, bool on);

/* Bytes of the dirty bitmap of the slot. */
size_t floor_bitmap_size(const struct floor_vm *vm);

/* KVM_GET_DIRTY_LOG, which clears nothing. */
int floor_get(struct floor_vm *vm, uint64_t *bitmap);

/* KVM_CLEAR_DIRTY_LOG of the pages in bitmap: in one call, or one for each run of words that are not zero. */
int floor_clear_dense(struct floor_vm *vm, uint64_t *bitmap);
int floor_clear_sparse(struct floor_vm *vm, uint64_t *bitmap);

/* Take all entries of the ring, setting their bits. Returns their number. */
uint32_t floor_ring_harvest(struct floor_vm *vm, uint64_t *bitmap);

/* KVM_RESET_DIRTY_RINGS. Returns the number of entries reset, or -errno. */
int floor_ring_reset(struct floor_vm *vm);

/* -- figures ----------------------------------------------------------------------- */

/* Sorts v in place; n > 0. */
double floor_median(double *v, size_t n);

/* A size with K, M or G behind it, or a plain number. Returns 0 or -EINVAL. */
int floor_parse_size(const char *text, uint64_t *ret);

#endif
