/*
 * The precise source: page tables are write-protected with userfaultfd, so that it is known exactly which of them the guest
 * has written. A protected table costs the guest a stop at its first write; after that it is written natively until it is
 * protected again.
 *
 * Guest memory is mapped twice (mem.h): KVM's memory slots lie in the mapping that is registered here, whatever the VMM writes
 * goes through the other one, which never faults. Such writes are noted by mem and come out of precise_events with the
 * guest's.
 *
 * Threads. A thread of its own ("precise") reads the faults, unprotects and queues, and does nothing else: no lock, no ioctl
 * of KVM, no allocation, no log line. A vCPU that waits for it may hold KVM's locks, so whoever it waited for might wait for that
 * vCPU. All functions here are the consumer's, one thread at a time; none of them waits for a vCPU or is waited for by the
 * thread.
 *
 * Life: made once, when it is first wanted, while the guest may be running; it stays registered until precise_free, because
 * unregistering makes KVM drop all it has shadowed. To switch it off, unwatch every frame (precise_unwatch_all). Freed after the
 * last vCPU thread has ended, and before the memory: until then vCPUs may be waiting in it, also those that are being
 * paused.
 */
#ifndef UMBRA_MMU_PRECISE_H
#define UMBRA_MMU_PRECISE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mmu/mem.h"
#include "mmu/types.h"

struct precise;

/*
 * A userfaultfd that KVM's own accesses fault in too: from /dev/userfaultfd, else from the system call. The descriptor, or
 * -errno with a log line that says what would allow it: -EPERM (vm.unprivileged_userfaultfd, a sandbox), -ENOSYS, -EACCES, or
 * -EOPNOTSUPP (Linux before 5.19 cannot protect shared memory). To be opened before a sandbox closes the door.
 */
int precise_open(void);

/*
 * Register guest memory and start the thread. Takes fd (of precise_open, or -1: it opens one itself) also on failure. 0,
 * -EOPNOTSUPP (memory of 2 MiB pages, or private memory), -EBUSY (registered elsewhere already), -ENOMEM or another -errno; logged.
 * Use re-reading instead then.
 */
int precise_new(struct mem *mem, int fd, struct precise **ret);
/* After the last vCPU thread: a vCPU that still waits goes on, but KVM loses all it has shadowed. NULL is fine. */
void precise_free(struct precise *p);

/*
 * A frame of RAM has become a table (on: it is protected when this returns, read it afterwards) or is none any more (off). Both
 * are idempotent. 0 or -errno: -EFAULT (no RAM), -EIO (see precise_error). Fit for mirror_ops.watch.
 */
int precise_watch(struct precise *p, gfn_t gfn, bool on);
/*
 * Watch a frame that is probably being written just now, as a table is that has just been made: it counts as written, and is
 * protected when precise_reprotect gives it. So the guest pays no stop for what it was about to write, many are protected
 * in one call, and one that lives only for a moment is never. Errors as above.
 */
int precise_watch_soon(struct precise *p, gfn_t gfn);
/* precise_watch for many, merged into runs: a run costs little more than a frame. */
int precise_watch_many(struct precise *p, const gfn_t *gfns, size_t count);
int precise_unwatch_all(struct precise *p);
bool precise_watched(const struct precise *p, gfn_t gfn);

/*
 * Watched frames written since the last call, in the order of their faults (the VMM's own writes come last): for
 * mirror_written, which also says when to let a frame go. At most `max`; call again while it returns that many: that is a
 * round, which gives all that was written before it began, and ends however much is written meanwhile. Frames given here
 * are not in step with the mirror from now until precise_reprotect has given them. Without memory: 0 frames, and none is lost.
 */
size_t precise_events(struct precise *p, gfn_t *gfns, size_t max);

/*
 * Protect again what precise_events gave and was written before `before_ns` (clock_ns; a tick ago, or a vCPU that writes the
 * same table over and over makes no way; UINT64_MAX: all, for a paused VM), and give the frames, each once: read them now,
 * with mirror_sync_gfns. Frames that are not watched any more are left out. At most `max`; call again while it returns that
 * many.
 */
size_t precise_reprotect(struct precise *p, uint64_t before_ns, gfn_t *gfns, size_t max);

/*
 * Of the frames that the mirror may be out of step with, those that neither precise_events nor precise_reprotect has still to
 * give: *at is 0 at first. At most `max`; call again while it returns that many.
 */
size_t precise_unprotected(const struct precise *p, size_t *at, gfn_t *gfns, size_t max);

/* Frames that were written and not protected again yet: the mirror may be out of step there, and nowhere else. */
size_t precise_unsync(const struct precise *p);

/*
 * 0, or -errno: the kernel refused something that cannot be refused, and the source is off: nothing is protected any more, the
 * guest runs on. Logged once. Re-read everything, and from now on by another source.
 */
int precise_error(struct precise *p);

struct precise_stats {
    uint64_t watched;     /* frames, now */
    uint64_t unsync;      /* frames, now */
    uint64_t faults;      /* the guest's, each a stop */
    uint64_t repeats;     /* of them, those of a frame whose event was waiting already (several vCPUs) */
    uint64_t overflows;   /* of them, those that found the queue full and were found by a scan instead */
    uint64_t vmm_writes;  /* frames the VMM itself wrote */
    uint64_t protects;    /* frames protected, calls for it */
    uint64_t protect_calls;
    uint64_t service_ns;  /* from reading a fault to its vCPU's going on, summed up */
};
void precise_stats(const struct precise *p, struct precise_stats *ret);

#endif
