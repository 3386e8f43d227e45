/*
 * The one table of what threads may ask of the kernel, and why. umbrad(8) has the same list; a test compares the two
 * (tests/unit/test-sandbox --manual prints it).
 *
 * How a row comes in: run the tests with --sandbox log and see what they name.
 */
#include "config.h"

#include <errno.h>
#include <linux/if_tun.h>
#include <linux/kvm.h>
#include <linux/sockios.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include "base/util.h"
#include "daemon/sandbox.h"

#define M (1u << THREAD_MAIN)
#define V (1u << THREAD_VCPU)
#define I (1u << THREAD_IO)
#define P (1u << THREAD_MMU)
#define U (1u << THREAD_UFFD)
#define X (1u << THREAD_MIGRATE)
#define ALL (M | V | I | P | U | X)

#define CALL(name, threads, why) {name, "", why, threads, SANDBOX_ANY, 0, 0, 0}
#define IOCTL(request, threads, why) {"ioctl", #request, why, threads, SANDBOX_REQUEST, 1, request, 0}
#define WITH(name, detail, threads, kind, arg, value, why) {name, detail, why, threads, kind, arg, value, 0}
#define FAILS(name, detail, threads, kind, arg, value, error, why) {name, detail, why, threads, kind, arg, value, error}

const struct sandbox_call sandbox_calls[] = {
    /* Descriptors that are open. */
    CALL("read", ALL, "open files, sockets, eventfds"),
    CALL("write", ALL, "open files, sockets, eventfds, log"),
    CALL("readv", M | I | X, "disks, sockets"),
    CALL("writev", M | V | I | X, "disks, console, sockets"),
    CALL("pread64", M | V | I | P | X, "kernel image, KVM statistics, disks"),
    CALL("pwrite64", M | I | X, "disks, snapshots"),
    CALL("preadv", I, "disks"),
    CALL("pwritev", I, "disks"),
    CALL("pwritev2", I, "disks"),
    CALL("close", ALL, "descriptors that are done with"),
    CALL("fcntl", M | V | I | X, "non-blocking descriptors, duplicates"),
    CALL("fstat", M | V | I | X, "kinds and sizes of open files"),
    CALL("fstatfs", M | X, "pages of guest memory that another daemon hands over"),
    CALL("newfstatat", M | X, "whether a socket's file is still its own"),
    CALL("getdents64", M, "how many descriptors are open, for metrics"),
    CALL("lseek", M | V | I | P | X, "sizes of files, pages of guest memory that are there"),
    CALL("ftruncate", M | I | X, "files that grow"),
    CALL("fallocate", M | I | X, "guest memory is cleared by a reset, disks discard"),
    CALL("fsync", M | I | X, "what was written is on the disk"),
    CALL("sync_file_range", X, "snapshots are on their way to the disk early"),
    CALL("flock", M | X, "one daemon writes a snapshot"),
    CALL("fdatasync", M | I | X, "what was written is on the disk"),
    CALL("fadvise64", M, "a block device that comes with a guest is read anew"),
    CALL("poll", M | V | U | X, "waiting for a descriptor"),
    CALL("ppoll", M | X, "waiting for a descriptor"),
    CALL("epoll_wait", M | I | X, "event loops"),
    CALL("epoll_pwait", M | I | X, "event loops"),
    CALL("epoll_ctl", M | V | I | X, "event loops"),
    CALL("epoll_create1", M | X, "event loops"),
    CALL("eventfd2", M | V | I | X, "wake-ups between threads"),
    CALL("timerfd_settime", M | V | I, "alarms of the clock and the power management timer"),
    CALL("io_uring_enter", I | V | M, "disks"),
    CALL("memfd_create", M, "bitmaps of dirty pages for clients"),
    CALL("fchmod", M | X, "guest memory is handed out for reading only, sockets of one user or group"),
    CALL("dup", M, "descriptors for clients"),

    /* Files: which ones is landlock's business. */
    CALL("openat", M | X, "userfaultfd, snapshots, names of peers, guest memory once more for reading only"),
    CALL("chmod", M | X, "a socket that a migration comes in by is its user's alone"),
    CALL("mkdirat", M | X, "snapshots"),
    CALL("mkdir", M | X, "snapshots"),
    CALL("rename", M | X, "snapshots"),
    CALL("renameat", M | X, "snapshots"),
    CALL("renameat2", M | X, "snapshots"),
    CALL("unlink", M | X, "sockets and pid file at the end"),
    CALL("unlinkat", M | X, "snapshots"),
    CALL("rmdir", M, "the runtime directory at the end"),
    CALL("getcwd", M | X, "snapshots: what a relative path means"),
    CALL("readlink", M | X, "the console's name, where a snapshot's path leads"),
    CALL("access", M, "whether a file is there"),
    CALL("faccessat2", M | X, "snapshots: whether a directory is there"),

    /* Sockets. */
    WITH("socket", "AF_UNIX", M | X, SANDBOX_EQUAL, 0, AF_UNIX, "a peer of a migration"),
    WITH("socket", "AF_INET", M | X, SANDBOX_EQUAL, 0, AF_INET, "a peer of a migration"),
    WITH("socket", "AF_INET6", M | X, SANDBOX_EQUAL, 0, AF_INET6, "a peer of a migration"),
    CALL("connect", M | X, "a peer of a migration"),
    CALL("bind", M | X, "a peer of a migration"),
    CALL("listen", M | X, "a peer of a migration"),
    CALL("accept4", M | X, "control clients, console"),
    CALL("accept", M | X, "a peer of a migration"),
    CALL("getsockname", M | X, "a peer of a migration"),
    CALL("getpeername", M | X, "a peer of a migration"),
    CALL("getsockopt", M | X, "the state of a connection"),
    CALL("setsockopt", M | X, "buffers and timeouts of a connection"),
    CALL("shutdown", M | X, "the end of a connection"),
    CALL("sendto", ALL, "service manager, control clients, console"),
    CALL("sendmsg", ALL, "journal, descriptors for control clients"),
    CALL("sendmmsg", M | X, "names of peers"),
    CALL("recvfrom", M | I | X, "control clients, console"),
    CALL("recvmsg", M | X, "control clients"),

    /* Memory: nothing that could be executed. */
    CALL("brk", ALL, "the heap"),
    WITH("mmap", "without PROT_EXEC", ALL, SANDBOX_NONE_OF, 2, PROT_EXEC, "the heap, guest memory, stacks"),
    WITH("mprotect", "without PROT_EXEC", ALL, SANDBOX_NONE_OF, 2, PROT_EXEC, "guard pages of stacks"),
    CALL("munmap", ALL, "the heap, stacks"),
    CALL("mremap", ALL, "the heap"),
    CALL("madvise", ALL, "memory that is given back"),
    CALL("mincore", M | P | X, "how much memory the bookkeeping uses, pages of a restored guest that are there"),

    /* Threads, time, signals. */
    CALL("futex", ALL, "locks"),
    CALL("membarrier", M | P | U | X, "threads that write guest memory see that writes are recorded"),
    CALL("userfaultfd", M | P | X, "precise tracking, post-copy, where there is no /dev/userfaultfd"),
    CALL("sched_yield", ALL, "waiting for another thread for a moment"),
    CALL("clock_gettime", ALL, "time, where the vDSO cannot tell it"),
    CALL("gettimeofday", ALL, "time, where the vDSO cannot tell it"),
    CALL("clock_nanosleep", ALL, "waiting"),
    CALL("restart_syscall", ALL, "a call goes on after a signal"),
    CALL("rt_sigprocmask", ALL, "new threads begin with signals blocked"),
    CALL("rt_sigreturn", ALL, "signal handlers return"),
    WITH("rt_sigaction", "SIGTERM", M, SANDBOX_EQUAL, 0, SIGTERM, "handlers go away at the end"),
    WITH("rt_sigaction", "SIGINT", M, SANDBOX_EQUAL, 0, SIGINT, "handlers go away at the end"),
    WITH("rt_sigaction", "SIGHUP", M, SANDBOX_EQUAL, 0, SIGHUP, "handlers go away at the end"),
    WITH("tgkill", "umbrad itself", ALL, SANDBOX_OWN_PID, 0, 0, "vCPUs are called out of the guest"),
    CALL("uname", M | X, "snapshots say on what kernel they were taken; names of peers"),
    CALL("geteuid", X, "snapshots with another owner are left alone"),
    CALL("getpid", ALL, "tgkill"),
    CALL("gettid", ALL, "tgkill"),
    CALL("rseq", ALL, "new threads"),
    CALL("set_robust_list", ALL, "new threads"),
    CALL("set_tid_address", M, "new threads"),
    CALL("getrandom", ALL, "the heap, the guest's random numbers"),
    CALL("exit", ALL, "the end of a thread"),
    CALL("exit_group", ALL, "the end of umbrad"),
    WITH("clone", "CLONE_THREAD", M | X, SANDBOX_ALL_OF, 0, CLONE_THREAD, "threads; never a process"),
    WITH("prctl", "PR_SET_NAME", ALL, SANDBOX_EQUAL, 0, PR_SET_NAME, "names of threads"),
    CALL("seccomp", M | X, "new threads lock themselves in further"),
    CALL("getrusage", M, "figures for metrics"),
    WITH("prlimit64", "without a new limit", M, SANDBOX_EQUAL, 2, 0, "figures for metrics"),
    CALL("sysinfo", M | P | X, "metrics; sorting, which looks how much memory there is"),
    CALL("sched_getaffinity", M | X, "how many threads are worth it"),

    /* ioctl, by request. First what is frequent. */
    IOCTL(KVM_RUN, M | V, "runs the guest; main: the proof of paging"),
    IOCTL(KVM_IRQ_LINE, M | V | I, "interrupts"),
    IOCTL(KVM_GET_DIRTY_LOG, M | P | X, "the dirty log"),
    IOCTL(KVM_CLEAR_DIRTY_LOG, M | P | X, "the dirty log"),
    IOCTL(KVM_RESET_DIRTY_RINGS, M | V | P | X, "the dirty log"),
    IOCTL(KVM_GET_REGS, ALL & ~U, "state of a vCPU"),
    IOCTL(KVM_SET_REGS, M | X, "state of a vCPU"),
    IOCTL(KVM_GET_SREGS, ALL & ~U, "state of a vCPU, where its page tables are"),
    IOCTL(KVM_SET_SREGS, M | X, "state of a vCPU"),
    IOCTL(KVM_GET_SREGS2, M | X, "state of a vCPU"),
    IOCTL(KVM_SET_SREGS2, M | X, "state of a vCPU"),
    IOCTL(KVM_IOEVENTFD, M | V | I, "queues of virtio devices"),
    IOCTL(KVM_IRQFD, M | V | I, "interrupts of virtio devices"),
    IOCTL(KVM_SET_USER_MEMORY_REGION, M | X, "dirty logging on and off"),
    IOCTL(KVM_CHECK_EXTENSION, M | X, "what KVM can do"),
    IOCTL(KVM_GET_API_VERSION, M, "what KVM can do"),
    IOCTL(KVM_GET_SUPPORTED_CPUID, M, "what KVM can do"),
    IOCTL(KVM_GET_MSR_INDEX_LIST, M | X, "what KVM can do"),
    IOCTL(KVM_GET_MSR_FEATURE_INDEX_LIST, M | X, "what KVM can do"),
    IOCTL(KVM_GET_VCPU_MMAP_SIZE, M, "a second VM, for a reset and for query-host"),
    IOCTL(KVM_CREATE_VM, M, "a second VM, for a reset and for query-host"),
    IOCTL(KVM_CREATE_VCPU, M, "a second VM, for a reset and for query-host"),
    IOCTL(KVM_CREATE_IRQCHIP, M, "a second VM, for a reset"),
    IOCTL(KVM_CREATE_PIT2, M, "a second VM, for a reset"),
    IOCTL(KVM_SET_TSS_ADDR, M, "a second VM, for a reset"),
    IOCTL(KVM_SET_IDENTITY_MAP_ADDR, M, "a second VM, for a reset"),
    IOCTL(KVM_SET_CPUID2, M | X, "a second VM, for a reset; state of a vCPU"),
    IOCTL(KVM_ENABLE_CAP, M, "a second VM, for a reset and for query-host"),
    IOCTL(KVM_GET_STATS_FD, M, "KVM's statistics"),
    IOCTL(KVM_GET_CPUID2, M | X, "state of a vCPU"),
    IOCTL(KVM_GET_MSRS, M | X, "state of a vCPU"),
    IOCTL(KVM_SET_MSRS, M | X, "state of a vCPU"),
    IOCTL(KVM_GET_XSAVE, M | X, "state of a vCPU"),
    IOCTL(KVM_GET_XSAVE2, M | X, "state of a vCPU"),
    IOCTL(KVM_SET_XSAVE, M | X, "state of a vCPU"),
    IOCTL(KVM_GET_XCRS, M | X, "state of a vCPU"),
    IOCTL(KVM_SET_XCRS, M | X, "state of a vCPU"),
    IOCTL(KVM_GET_LAPIC, M | X, "state of a vCPU"),
    IOCTL(KVM_SET_LAPIC, M | X, "state of a vCPU"),
    IOCTL(KVM_GET_MP_STATE, M | X, "state of a vCPU"),
    IOCTL(KVM_SET_MP_STATE, M | X, "state of a vCPU"),
    IOCTL(KVM_SIGNAL_MSI, M | X, "state of a vCPU: a kick that may have been on its way"),
    IOCTL(KVM_GET_VCPU_EVENTS, M | X, "state of a vCPU"),
    IOCTL(KVM_SET_VCPU_EVENTS, M | X, "state of a vCPU"),
    IOCTL(KVM_GET_DEBUGREGS, M | X, "state of a vCPU"),
    IOCTL(KVM_SET_DEBUGREGS, M | X, "state of a vCPU"),
    IOCTL(KVM_GET_NESTED_STATE, M | X, "state of a vCPU"),
    IOCTL(KVM_SET_NESTED_STATE, M | X, "state of a vCPU"),
    IOCTL(KVM_GET_TSC_KHZ, M | X, "state of a vCPU"),
    IOCTL(KVM_SET_TSC_KHZ, M | X, "state of a vCPU"),
    IOCTL(KVM_HAS_DEVICE_ATTR, M | X, "state of a vCPU: its time-stamp counter"),
    IOCTL(KVM_GET_DEVICE_ATTR, M | X, "state of a vCPU: its time-stamp counter"),
    IOCTL(KVM_SET_DEVICE_ATTR, M | X, "state of a vCPU: its time-stamp counter"),
    IOCTL(KVM_KVMCLOCK_CTRL, M | X, "a paused guest does not take it for a lockup"),
    IOCTL(KVM_GET_IRQCHIP, M | X, "state of the chips"),
    IOCTL(KVM_SET_IRQCHIP, M | X, "state of the chips"),
    IOCTL(KVM_GET_PIT2, M | X, "state of the chips"),
    IOCTL(KVM_SET_PIT2, M | X, "state of the chips"),
    IOCTL(KVM_GET_CLOCK, M | X, "state of the chips"),
    IOCTL(KVM_SET_CLOCK, M | X, "state of the chips"),
    IOCTL(KVM_SET_NR_MMU_PAGES, M | P, "the limit on shadow pages"),
    IOCTL(KVM_GET_NR_MMU_PAGES, M | P, "the limit on shadow pages"),
    IOCTL(USERFAULTFD_IOC_NEW, M | P | X, "precise tracking, post-copy"),
    IOCTL(UFFDIO_API, M | P | U | X, "precise tracking, post-copy"),
    IOCTL(UFFDIO_REGISTER, M | P | U | X, "precise tracking, post-copy"),
    IOCTL(UFFDIO_UNREGISTER, M | P | U | X, "precise tracking, post-copy"),
    IOCTL(UFFDIO_WRITEPROTECT, M | V | I | P | U | X, "precise tracking"),
    IOCTL(UFFDIO_COPY, X, "pages that come in post-copy"),
    IOCTL(UFFDIO_ZEROPAGE, X, "pages that come in post-copy"),
    IOCTL(UFFDIO_WAKE, M | P | U | X, "precise tracking, post-copy"),
    IOCTL(TUNSETOFFLOAD, M | V | I, "a tap: what the guest's driver can take"),
    IOCTL(TUNSETQUEUE, M | V | I, "a tap: as many queues as the guest uses"),
    IOCTL(TUNSETCARRIER, M | V | I, "a tap: the link is up or down"),
    IOCTL(FIONREAD, M | X, "how much a socket holds"),
    IOCTL(SIOCGIFINDEX, M | X, "the interface of a peer with a link-local address"),
    IOCTL(TCGETS, M, "the terminal of --console stdio"),
    IOCTL(TCSETS, M, "the terminal of --console stdio, put back at the end"),
    IOCTL(TCSETSW, M, "the terminal of --console stdio, put back at the end"),
    IOCTL(TIOCGWINSZ, M, "the terminal of --console stdio"),

    /* What the C library tries, and does without. */
    FAILS("socket", "AF_NETLINK", M | X, SANDBOX_EQUAL, 0, AF_NETLINK, EAFNOSUPPORT,
          "fails: which of several addresses of a peer is tried first"),
    FAILS("mmap", "with PROT_EXEC", M | X, SANDBOX_ALL_OF, 2, PROT_EXEC, EACCES,
          "fails: name services that are shared objects are left out"),
    FAILS("clone3", "", M | X, SANDBOX_ANY, 0, 0, ENOSYS, "fails: its flags are where no filter sees them; clone is taken instead"),
};

const unsigned int sandbox_call_count = ARRAY_SIZE(sandbox_calls);

bool sandbox_allows(const struct sandbox_call *call, enum thread_kind kind)
{
    unsigned int threads = call->threads;

    /* Filters add up: what such a thread is to be allowed must be allowed to the thread that makes it. */
    if (threads & (P | U | X))
        threads |= M;
    return threads & (1u << kind);
}

void sandbox_print_manual(FILE *f)
{
    for (unsigned int i = 0; i < sandbox_call_count; i++) {
        const struct sandbox_call *c = &sandbox_calls[i];
        const char *comma = "";

        fprintf(f, ".It Sy %s%s%s\n.Pq ", c->name, *c->detail ? " " : "", c->detail);
        for (int kind = 0; kind < THREAD_KINDS; kind++)
            if (sandbox_allows(c, (enum thread_kind)kind)) {
                fprintf(f, "%s%s", comma, thread_kind_name((enum thread_kind)kind));
                comma = " ";
            }
        fprintf(f, "\n%s\n", c->why);
    }
}
