/*
 * libseccomp makes a program of the table, once for each kind of thread; each thread loads that of its kind. A call that is not
 * on the list raises SIGSYS in the thread that made it and is not carried out: the handler says which it was, and
 * does what the mode wants.
 *
 * Only mode log needs more: the handler carries the call out itself, by a syscall instruction whose address the program lets pass.
 */
#include "config.h"

#include "daemon/sandbox.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <seccomp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/util.h"

#define CALLS_MAX 512
#define IOCTLS_MAX 64
/* The kernel's BPF_MAXINSNS. */
#define PROGRAM_MAX 4096
/* Why a SIGSYS comes, from the kernel's header, which does not go together with the C library's. */
#ifndef SYS_SECCOMP
#define SYS_SECCOMP 1
#endif
/* What stands before libseccomp's program in mode log. */
#define GATE_LENGTH 5

/* Number to name, from the kernel's header: resolving it in the handler would have to allocate. */
static const char *const call_names[CALLS_MAX] = {
#include "daemon/syscall-names.inc"
};

struct program {
    pthread_once_t once;
    int error;
    struct sock_fprog bpf;
};

static struct {
    enum sandbox_mode mode;
    struct program programs[THREAD_KINDS];
    /* What has been told of already. */
    atomic_uint told[THREAD_KINDS][CALLS_MAX / 32];
    atomic_uint told_ioctls[IOCTLS_MAX];
    atomic_uint violations;
    pthread_t early; /* makes the main thread's program while the machine is put together */
    bool early_started;
} box = {.mode = SANDBOX_OFF};

/* sandbox_gate(nr, six arguments): a system call that the program lets pass by its address, that of sandbox_gate_end. */
long sandbox_gate(long nr, long a, long b, long c, long d, long e, long f);
extern const char sandbox_gate_end[];
__asm__(".text\n"
        ".globl sandbox_gate\n"
        ".type sandbox_gate, @function\n"
        "sandbox_gate:\n"
        "    mov %rdi, %rax\n"
        "    mov %rsi, %rdi\n"
        "    mov %rdx, %rsi\n"
        "    mov %rcx, %rdx\n"
        "    mov %r8, %r10\n"
        "    mov %r9, %r8\n"
        "    mov 8(%rsp), %r9\n"
        "    syscall\n"
        ".globl sandbox_gate_end\n"
        "sandbox_gate_end:\n"
        "    ret\n"
        ".size sandbox_gate, . - sandbox_gate\n");

unsigned int sandbox_violations(void)
{
    return atomic_load(&box.violations);
}

/* -- a violation -- */

static bool first_of_request(unsigned int request)
{
    for (unsigned int i = 0; i < IOCTLS_MAX; i++) {
        unsigned int free_slot = 0;

        if (atomic_compare_exchange_strong(&box.told_ioctls[i], &free_slot, request))
            return true;
        if (free_slot == request)
            return false;
    }
    return false;
}

/* Whether this is the first time that a thread of this kind makes that call; an ioctl counts by its request. */
static bool first_time(unsigned int nr, unsigned int request)
{
    unsigned int bit = 1u << nr % 32;

    if (nr >= CALLS_MAX)
        return true;
    if (nr == SYS_ioctl)
        return first_of_request(request);
    return !(atomic_fetch_or(&box.told[thread_kind_of_caller()][nr / 32], bit) & bit);
}

static void tell(unsigned int nr, unsigned int request)
{
    const char *name = nr < CALLS_MAX && call_names[nr] ? call_names[nr] : "unknown", *what = "ends umbrad";
    const char *kind = thread_kind_name(thread_kind_of_caller());

    if (box.mode == SANDBOX_ERRNO)
        what = "is refused";
    else if (box.mode == SANDBOX_LOG)
        what = "passes";
    if (nr == SYS_ioctl)
        log_err("sandbox: system call ioctl with request %#x by thread %s (%s) is not on its list, and %s", request,
                thread_name(), kind, what);
    else
        log_err("sandbox: system call %s (%u) by thread %s (%s) is not on its list, and %s", name, nr, thread_name(), kind,
                what);
}

/* Runs on the thread that made the call, in its stead. What it calls itself is on every list. */
static void on_violation(int sig, siginfo_t *info, void *context)
{
    greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
    unsigned int nr = (unsigned int)info->si_syscall, request = (unsigned int)regs[REG_RSI];
    int saved = errno;

    /* Somebody has sent the signal: there is no call. */
    if (info->si_code != SYS_SECCOMP)
        return;
    if (first_time(nr, request)) {
        atomic_fetch_add(&box.violations, 1);
        tell(nr, request);
    }
    if (box.mode == SANDBOX_ENFORCE) {
        /* SIGSYS is blocked here: the same again is the end, and by that signal. */
        syscall(SYS_kexec_load, 0, 0, 0, 0);
        _exit(128 + SIGSYS);
    }
    regs[REG_RAX] = box.mode == SANDBOX_LOG
                        ? sandbox_gate((long)nr, regs[REG_RDI], regs[REG_RSI], regs[REG_RDX], regs[REG_R10],
                                       regs[REG_R8], regs[REG_R9])
                        : -EPERM;
    errno = saved;
}

/* -- programs -- */

static int add_rule(scmp_filter_ctx ctx, const struct sandbox_call *c)
{
    uint32_t action = c->error ? SCMP_ACT_ERRNO((uint32_t)c->error) : SCMP_ACT_ALLOW;
    int nr = seccomp_syscall_resolve_name(c->name);
    struct scmp_arg_cmp arg = {0};

    if (nr == __NR_SCMP_ERROR)
        return -ENOSYS;
    if (c->kind == SANDBOX_ANY)
        return seccomp_rule_add(ctx, action, nr, 0);
    arg.arg = c->arg;
    switch (c->kind) {
    case SANDBOX_REQUEST:
        arg.op = SCMP_CMP_MASKED_EQ;
        arg.datum_a = UINT32_MAX;
        arg.datum_b = c->value;
        break;
    case SANDBOX_NONE_OF:
    case SANDBOX_ALL_OF:
        arg.op = SCMP_CMP_MASKED_EQ;
        arg.datum_a = c->value;
        arg.datum_b = c->kind == SANDBOX_ALL_OF ? c->value : 0;
        break;
    default:
        arg.op = SCMP_CMP_EQ;
        arg.datum_a = c->kind == SANDBOX_OWN_PID ? (uint64_t)getpid() : c->value;
    }
    return seccomp_rule_add_array(ctx, action, nr, 1, &arg);
}

static int add_rules(scmp_filter_ctx ctx, enum thread_kind kind)
{
    int r = 0;

    for (unsigned int i = 0; i < sandbox_call_count && r == 0; i++) {
        if (sandbox_allows(&sandbox_calls[i], kind))
            r = add_rule(ctx, &sandbox_calls[i]);
        if (r < 0)
            log_err_errno(r, "sandbox: no rule for %s %s", sandbox_calls[i].name, sandbox_calls[i].detail);
    }
    return r;
}

/* Room for the gate is left before it. */
static int read_program(int fd, struct sock_fprog *ret)
{
    const size_t unit = sizeof(struct sock_filter);
    off_t size = lseek(fd, 0, SEEK_END);
    struct sock_filter *code;
    int r;

    if (size <= 0 || (size_t)size > (PROGRAM_MAX - GATE_LENGTH) * unit)
        return -E2BIG;
    code = calloc((size_t)size / unit + GATE_LENGTH, unit);
    if (!code)
        return -ENOMEM;
    r = fd_pread_all(fd, code + GATE_LENGTH, (size_t)size, 0);
    if (r < 0) {
        free(code);
        return r;
    }
    *ret = (struct sock_fprog){.len = (unsigned short)((size_t)size / unit + GATE_LENGTH), .filter = code};
    return 0;
}

/* Let pass what comes from the gate in mode log; in other modes go straight on. */
static void write_gate(struct sock_filter *code)
{
    const uint64_t gate = (uintptr_t)sandbox_gate_end;
    const struct sock_filter gated[GATE_LENGTH] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, instruction_pointer)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)gate, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, instruction_pointer) + 4),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)(gate >> 32), 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };

    memcpy(code, gated, sizeof(gated));
}

static int build(enum thread_kind kind, struct sock_fprog *ret)
{
    scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_TRAP);
    _cleanup_close_ int fd = -1;
    int r;

    if (!ctx)
        return -ENOMEM;
    r = seccomp_attr_set(ctx, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
    if (r == 0)
        r = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2);
    if (r == 0)
        r = add_rules(ctx, kind);
    if (r == 0) {
        fd = memfd_create("umbra-sandbox", MFD_CLOEXEC);
        r = fd < 0 ? -errno : seccomp_export_bpf(ctx, fd);
    }
    if (r == 0)
        r = read_program(fd, ret);
    seccomp_release(ctx);
    return r;
}

static void prepare(enum thread_kind kind)
{
    struct program *p = &box.programs[kind];

    p->error = build(kind, &p->bpf);
    if (p->error < 0)
        return;
    if (box.mode == SANDBOX_LOG) {
        write_gate(p->bpf.filter);
    } else {
        p->bpf.filter += GATE_LENGTH;
        p->bpf.len = (unsigned short)(p->bpf.len - GATE_LENGTH);
    }
}

#define PREPARE(kind)                  \
    static void prepare_##kind(void)   \
    {                                  \
        prepare(kind);                 \
    }
PREPARE(THREAD_MAIN)
PREPARE(THREAD_VCPU)
PREPARE(THREAD_IO)
PREPARE(THREAD_MMU)
PREPARE(THREAD_UFFD)
PREPARE(THREAD_MIGRATE)

/* -- entering -- */

static void *prepare_early(void *arg)
{
    pthread_once(&box.programs[THREAD_MAIN].once, prepare_THREAD_MAIN);
    return NULL;
}

/* The longest program takes a millisecond, which a start does not have to wait for. Where there is no thread it is made in time. */
static void start_early(void)
{
    box.early_started = pthread_create(&box.early, NULL, prepare_early, NULL) == 0;
}

static void join_early(void)
{
    if (box.early_started)
        pthread_join(box.early, NULL);
    box.early_started = false;
}

void sandbox_enter(enum thread_kind kind)
{
    static void (*const prepare_kind[THREAD_KINDS])(void) = {prepare_THREAD_MAIN, prepare_THREAD_VCPU, prepare_THREAD_IO,
                                                             prepare_THREAD_MMU, prepare_THREAD_UFFD, prepare_THREAD_MIGRATE};
    struct program *p = &box.programs[kind];
    int r;

    if (box.mode == SANDBOX_OFF)
        return;
    if (kind == THREAD_MAIN)
        join_early();
    pthread_once(&p->once, prepare_kind[kind]);
    r = p->error;
    if (r == 0 && syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &p->bpf) < 0)
        r = -errno;
    if (r == 0)
        return;
    log_err_errno(r, "sandbox: thread %s cannot be locked in (--sandbox off goes without)", thread_name());
    _exit(1);
}

int sandbox_init(enum sandbox_mode mode)
{
    struct sigaction sa = {.sa_sigaction = on_violation, .sa_flags = SA_SIGINFO};

    box.mode = mode;
    if (mode == SANDBOX_OFF)
        return 0;
    sigfillset(&sa.sa_mask);
    if (sigaction(SIGSYS, &sa, NULL) < 0)
        return -errno;
    for (int kind = 0; kind < THREAD_KINDS; kind++)
        box.programs[kind].once = (pthread_once_t)PTHREAD_ONCE_INIT;
    thread_set_hook(sandbox_enter);
    start_early();
    return 0;
}
