#include "config.h"

#include "toy-vm.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "base/fd.h"
#include "base/util.h"

#define KICK_SIGNAL SIGUSR1
#define CPUID_ENTRIES 128u
/* The unlogged slot. */
#define AUX_BASE UINT64_C(0xd0000000)
#define AUX_SLOT MEM_MAX_SLOTS
/* In no slot: a write there leaves the guest. */
#define BELL UINT64_C(0xc8000000)
#define MAILBOX_STRIDE UINT64_C(4096)
#define CODE_OFFSET (MAILBOX_STRIDE * TOY_MAX_VCPUS)
#define TABLES_OFFSET (CODE_OFFSET + 4096)
#define PAGE_P UINT64_C(0x001)
#define PAGE_RW UINT64_C(0x002)
#define PAGE_US UINT64_C(0x004)
#define PAGE_AD UINT64_C(0x060)
#define PAGE_LARGE UINT64_C(0x080)
#define PAGE_TABLE (PAGE_P | PAGE_RW | PAGE_US | PAGE_AD)
/* Up to here 4 KiB guest pages, as a kernel's user memory has them; beyond, the tables would be large. */
#define SMALL_PAGES_MAX (UINT64_C(2) << 30)

/* What host and guest tell each other. The offsets are known to the guest's code below. */
struct mailbox {
    uint64_t go;     /* 0: host; changed by the host to start */
    uint64_t done;   /* 8: guest; becomes `go` at the end */
    uint64_t count;  /* 16: pages in the list */
    uint64_t list;   /* 24: guest address of the list of guest addresses */
    uint64_t rounds; /* 32: 0 for endless */
    uint64_t stop;   /* 40: host; not 0: end now */
    uint64_t visits; /* 48: guest */
    uint64_t gap;    /* 56: guest */
    uint64_t spin;   /* 64: host; not 0: wait for `go` inside the guest */
};

struct toy_vcpu {
    struct toy_vm *vm;
    unsigned int index;
    int fd;
    struct kvm_run *run;
    struct kvm_dirty_gfn *ring;
    struct mailbox *box;
    uint64_t *list;
    pthread_t thread;
    bool started;
    bool inside; /* under vm->lock: not parked */
    bool rang;   /* the thread's own: the guest has nothing to do */
    bool died;   /* under vm->lock */
};

struct toy_vm {
    struct mem *mem;
    struct toy_config config;
    int kvm, fd;
    size_t run_size, ring_size;
    uint8_t *aux;
    size_t aux_size, tables_end, list_max;
    struct dirty_log *log; /* atomic */
    uint64_t ring_full;    /* atomic */
    struct toy_vcpu vcpus[TOY_MAX_VCPUS];
    pthread_mutex_t lock;
    pthread_cond_t cond; /* something under the lock, or a mailbox's `go`, changed */
    bool paused, quit;   /* under lock; also read by vCPU threads as hints */
};

/*
 * rdi: mailbox, r11: bell. Wait for `go` to change, then visit every page of the list, rounds times, noting the longest
 * gap between two visits.
 */
__asm__(".pushsection .rodata\n"
        "toy_guest_start:\n"
        "1: mov (%rdi), %rax\n"
        "   cmp 8(%rdi), %rax\n"
        "   jne 2f\n"
        "   pause\n"
        "   cmpq $0, 64(%rdi)\n"
        "   jne 1b\n"
        "   movl $1, (%r11)\n"
        "   jmp 1b\n"
        "2: mov 32(%rdi), %r10\n"
        "   rdtsc\n"
        "   shl $32, %rdx\n"
        "   or %rdx, %rax\n"
        "   mov %rax, %r8\n"
        "3: mov 16(%rdi), %rcx\n"
        "   mov 24(%rdi), %rsi\n"
        "4: test %rcx, %rcx\n"
        "   jz 5f\n"
        "   cmpq $0, 40(%rdi)\n"
        "   jne 6f\n"
        "   mov (%rsi), %rbx\n"
        "   add $8, %rsi\n"
        "   incq (%rbx)\n"
        "   incq 48(%rdi)\n"
        "   rdtsc\n"
        "   shl $32, %rdx\n"
        "   or %rdx, %rax\n"
        "   mov %rax, %rdx\n"
        "   sub %r8, %rdx\n"
        "   mov %rax, %r8\n"
        "   cmp 56(%rdi), %rdx\n"
        "   jbe 7f\n"
        "   mov %rdx, 56(%rdi)\n"
        "7: dec %rcx\n"
        "   jmp 4b\n"
        "5: cmpq $0, 40(%rdi)\n"
        "   jne 6f\n"
        "   test %r10, %r10\n"
        "   jz 3b\n"
        "   dec %r10\n"
        "   jnz 3b\n"
        "6: mov (%rdi), %rax\n"
        "   mov %rax, 8(%rdi)\n"
        "   jmp 1b\n"
        "toy_guest_end:\n"
        ".popsection\n");
extern const uint8_t toy_guest_start[], toy_guest_end[];

/* -- dirty log operations ----------------------------------------------------- */

static int vm_ioctl(const struct toy_vm *vm, unsigned long request, void *arg)
{
    int r = ioctl(vm->fd, request, arg);

    return r < 0 ? -errno : r;
}

static int set_slot(struct toy_vm *vm, const struct mem_slot *slot, bool log)
{
    struct kvm_userspace_memory_region region = {
        .slot = slot->id,
        .flags = log ? KVM_MEM_LOG_DIRTY_PAGES : 0,
        .guest_phys_addr = slot->base,
        .memory_size = slot->size,
        .userspace_addr = (uintptr_t)slot->hva,
    };

    return vm_ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region);
}

static int op_set_logging(void *opaque, bool on)
{
    struct toy_vm *vm = opaque;
    unsigned int count;
    const struct mem_slot *slots = mem_slots(vm->mem, &count);

    for (unsigned int i = 0; i < count; i++) {
        int r = set_slot(vm, &slots[i], on);

        if (r < 0)
            return r;
    }
    return 0;
}

static int op_get(void *opaque, uint32_t slot, uint64_t *bitmap)
{
    struct kvm_dirty_log log = {.slot = slot, .dirty_bitmap = bitmap};

    return vm_ioctl(opaque, KVM_GET_DIRTY_LOG, &log);
}

static int op_clear(void *opaque, uint32_t slot, uint64_t first_page, uint32_t num_pages, const uint64_t *bitmap)
{
    struct kvm_clear_dirty_log log = {
        .slot = slot, .first_page = first_page, .num_pages = num_pages, .dirty_bitmap = (void *)(uintptr_t)bitmap};

    return vm_ioctl(opaque, KVM_CLEAR_DIRTY_LOG, &log);
}

static int op_reset_rings(void *opaque)
{
    return vm_ioctl(opaque, KVM_RESET_DIRTY_RINGS, NULL);
}

const struct dirty_ops toy_dirty_ops = {
    .set_logging = op_set_logging,
    .get = op_get,
    .clear = op_clear,
    .reset_rings = op_reset_rings,
};

/* -- vCPU threads ------------------------------------------------------------- */

static void on_kick(int sig)
{
    (void)sig;
}

static bool idle(const struct toy_vcpu *v)
{
    return __atomic_load_n(&v->box->go, __ATOMIC_ACQUIRE) == __atomic_load_n(&v->box->done, __ATOMIC_ACQUIRE);
}

/* Park while paused, and while there is nothing to do; false when the VM is to end. */
static bool may_run(struct toy_vcpu *v)
{
    struct toy_vm *vm = v->vm;
    bool quit;

    pthread_mutex_lock(&vm->lock);
    while (!vm->quit && (vm->paused || (v->rang && idle(v)))) {
        v->inside = false;
        pthread_cond_broadcast(&vm->cond);
        pthread_cond_wait(&vm->cond, &vm->lock);
    }
    v->inside = true;
    v->rang = false;
    quit = vm->quit;
    if (!quit)
        __atomic_store_n(&v->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&vm->lock);
    return !quit;
}

static bool ring_full(struct toy_vm *vm, size_t index)
{
    struct dirty_log *log = __atomic_load_n(&vm->log, __ATOMIC_ACQUIRE);

    __atomic_fetch_add(&vm->ring_full, 1, __ATOMIC_RELAXED);
    return log && dirty_log_ring_full(log, index) == 0;
}

static void *vcpu_thread(void *arg)
{
    struct toy_vcpu *v = arg;
    struct toy_vm *vm = v->vm;

    while (may_run(v)) {
        int r = ioctl(v->fd, KVM_RUN, NULL);

        if (r < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (r == 0 && v->run->exit_reason == KVM_EXIT_MMIO && v->run->mmio.phys_addr == BELL) {
            v->rang = true;
            continue;
        }
        if (r == 0 && v->run->exit_reason == KVM_EXIT_DIRTY_RING_FULL && ring_full(vm, v->index))
            continue;
        fprintf(stderr, "# toy vCPU %u ended: r %d errno %d exit %u\n", v->index, r, errno, v->run->exit_reason);
        break;
    }
    pthread_mutex_lock(&vm->lock);
    v->inside = false;
    v->died = true;
    pthread_cond_broadcast(&vm->cond);
    pthread_mutex_unlock(&vm->lock);
    return NULL;
}

/* The flag is for a thread that is about to enter the guest, the signal for one that is in it. */
static void kick_all(struct toy_vm *vm)
{
    for (unsigned int i = 0; i < vm->config.vcpus; i++) {
        if (!vm->vcpus[i].started)
            continue;
        __atomic_store_n(&vm->vcpus[i].run->immediate_exit, 1, __ATOMIC_SEQ_CST);
        pthread_kill(vm->vcpus[i].thread, KICK_SIGNAL);
    }
}

void toy_pause(struct toy_vm *vm)
{
    pthread_mutex_lock(&vm->lock);
    vm->paused = true;
    kick_all(vm);
    for (unsigned int i = 0; i < vm->config.vcpus; i++) {
        while (vm->vcpus[i].started && vm->vcpus[i].inside)
            pthread_cond_wait(&vm->cond, &vm->lock);
    }
    pthread_mutex_unlock(&vm->lock);
}

void toy_resume(struct toy_vm *vm)
{
    pthread_mutex_lock(&vm->lock);
    vm->paused = false;
    for (unsigned int i = 0; i < vm->config.vcpus; i++)
        vm->vcpus[i].inside = vm->vcpus[i].started && !vm->vcpus[i].died;
    pthread_cond_broadcast(&vm->cond);
    pthread_mutex_unlock(&vm->lock);
}

/* -- page tables -------------------------------------------------------------- */

static uint64_t *aux_table(struct toy_vm *vm, uint64_t entry)
{
    return (uint64_t *)(vm->aux + ((entry & ~UINT64_C(0xfff)) - AUX_BASE));
}

static uint64_t *next_table(struct toy_vm *vm, uint64_t *entry)
{
    if (!*entry) {
        *entry = (AUX_BASE + vm->tables_end) | PAGE_TABLE;
        vm->tables_end += 4096;
        assert(vm->tables_end <= vm->aux_size);
    }
    return aux_table(vm, *entry);
}

/* Map [start, start + size) one to one. Accessed and dirty bits are there from the start, so nobody writes the tables. */
static void map_range(struct toy_vm *vm, uint64_t start, uint64_t size, bool small)
{
    for (uint64_t a = start; a < start + size; a += small ? 4 * KiB : 2 * MiB) {
        uint64_t *table = (uint64_t *)(vm->aux + TABLES_OFFSET);

        table = next_table(vm, &table[a >> 39 & 511]);
        table = next_table(vm, &table[a >> 30 & 511]);
        if (small)
            next_table(vm, &table[a >> 21 & 511])[a >> 12 & 511] = a | PAGE_TABLE;
        else
            table[a >> 21 & 511] = a | PAGE_TABLE | PAGE_LARGE;
    }
}

static void make_tables(struct toy_vm *vm)
{
    unsigned int count;
    const struct mem_slot *slots = mem_slots(vm->mem, &count);

    vm->tables_end = TABLES_OFFSET + 4096;
    for (unsigned int i = 0; i < count; i++)
        map_range(vm, slots[i].base, slots[i].size, mem_size(vm->mem) <= SMALL_PAGES_MAX);
    map_range(vm, AUX_BASE, vm->aux_size, true);
    map_range(vm, BELL, 4096, true);
}

/* -- creation ----------------------------------------------------------------- */

static int make_aux(struct toy_vm *vm)
{
    uint64_t size = mem_size(vm->mem), tables;
    struct kvm_userspace_memory_region region = {.slot = AUX_SLOT, .guest_phys_addr = AUX_BASE};
    size_t lists;

    /* Leaf tables, then a page a GiB, and room for what the unlogged slot itself needs. */
    tables = size <= SMALL_PAGES_MAX ? size / 512 : size / (512 * 512);
    vm->list_max = (size_t)MIN(mem_pages(vm->mem), UINT64_C(1) << 19);
    lists = vm->list_max * sizeof(uint64_t) * vm->config.vcpus;
    vm->aux_size = (size_t)align_up(TABLES_OFFSET + tables + lists + 2 * MiB, 2 * MiB);
    vm->aux = mmap(NULL, vm->aux_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (vm->aux == MAP_FAILED) {
        vm->aux = NULL;
        return -errno;
    }
    make_tables(vm);
    memcpy(vm->aux + CODE_OFFSET, toy_guest_start, (size_t)(toy_guest_end - toy_guest_start));
    for (unsigned int i = 0; i < vm->config.vcpus; i++) {
        size_t at = align_up(vm->tables_end, 4096) + i * vm->list_max * sizeof(uint64_t);

        assert(at + vm->list_max * sizeof(uint64_t) <= vm->aux_size);
        vm->vcpus[i].box = (struct mailbox *)(vm->aux + i * MAILBOX_STRIDE);
        vm->vcpus[i].box->list = AUX_BASE + at;
        vm->vcpus[i].list = (uint64_t *)(vm->aux + at);
    }
    region.memory_size = vm->aux_size;
    region.userspace_addr = (uintptr_t)vm->aux;
    return vm_ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region);
}

static int enable_cap(struct toy_vm *vm, uint32_t cap, uint64_t arg)
{
    struct kvm_enable_cap c = {.cap = cap, .args = {arg}};

    return vm_ioctl(vm, KVM_ENABLE_CAP, &c);
}

static int set_registers(struct toy_vm *vm, struct toy_vcpu *v)
{
    struct kvm_segment code = {
        .limit = 0xffffffff, .selector = 0x1b, .type = 11, .present = 1, .dpl = 3, .s = 1, .l = 1, .g = 1};
    struct kvm_segment data = {
        .limit = 0xffffffff, .selector = 0x23, .type = 3, .present = 1, .dpl = 3, .s = 1, .db = 1, .g = 1};
    struct kvm_regs regs = {
        .rip = AUX_BASE + CODE_OFFSET, .rdi = AUX_BASE + v->index * MAILBOX_STRIDE, .r11 = BELL, .rflags = 2};
    struct kvm_mp_state mp = {.mp_state = KVM_MP_STATE_RUNNABLE};
    struct kvm_sregs sregs;

    if (ioctl(v->fd, KVM_GET_SREGS, &sregs) < 0)
        return -errno;
    sregs.cs = code;
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
    sregs.cr0 = 0x80010033; /* PG WP NE ET MP PE */
    sregs.cr4 = 0x20;       /* PAE */
    sregs.cr3 = AUX_BASE + TABLES_OFFSET;
    sregs.efer = 0x500; /* LMA LME */
    if (ioctl(v->fd, KVM_SET_SREGS, &sregs) < 0 || ioctl(v->fd, KVM_SET_REGS, &regs) < 0)
        return -errno;
    /* Only the first vCPU is runnable by itself; refused where there is no in-kernel LAPIC, and not needed there. */
    if (ioctl(v->fd, KVM_SET_MP_STATE, &mp) < 0 && errno != ENXIO && errno != EINVAL)
        return -errno;
    return 0;
}

static int set_cpuid(struct toy_vm *vm, struct toy_vcpu *v)
{
    struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + CPUID_ENTRIES * sizeof(cpuid->entries[0]));
    int r = 0;

    if (!cpuid)
        return -ENOMEM;
    cpuid->nent = CPUID_ENTRIES;
    if (ioctl(vm->kvm, KVM_GET_SUPPORTED_CPUID, cpuid) < 0 || ioctl(v->fd, KVM_SET_CPUID2, cpuid) < 0)
        r = -errno;
    free(cpuid);
    return r;
}

static int make_vcpu(struct toy_vm *vm, unsigned int index)
{
    struct toy_vcpu *v = &vm->vcpus[index];
    int r;

    v->vm = vm;
    v->index = index;
    v->fd = ioctl(vm->fd, KVM_CREATE_VCPU, index);
    if (v->fd < 0)
        return -errno;
    v->run = mmap(NULL, vm->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
    if (v->run == MAP_FAILED) {
        v->run = NULL;
        return -errno;
    }
    if (vm->ring_size) {
        v->ring = mmap(NULL, vm->ring_size, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, KVM_DIRTY_LOG_PAGE_OFFSET * 4096);
        if (v->ring == MAP_FAILED) {
            v->ring = NULL;
            return -errno;
        }
    }
    r = set_cpuid(vm, v);
    return r < 0 ? r : set_registers(vm, v);
}

static int enable_dirty_log(struct toy_vm *vm)
{
    uint64_t manual = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE;

    if (vm->config.backend == DIRTY_RING) {
        vm->ring_size = vm->config.ring_entries * sizeof(struct kvm_dirty_gfn);
        return enable_cap(vm, KVM_CAP_DIRTY_LOG_RING, vm->ring_size);
    }
    if (vm->config.initially_set)
        manual |= KVM_DIRTY_LOG_INITIALLY_SET;
    return enable_cap(vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, manual);
}

static int create(struct toy_vm *vm, const char **ret_reason)
{
    const char *path = getenv("UMBRA_KVM");
    int r;

    *ret_reason = "cannot open /dev/kvm";
    vm->kvm = open(path && *path ? path : "/dev/kvm", O_RDWR | O_CLOEXEC);
    if (vm->kvm < 0)
        return -ENODEV;
    *ret_reason = "no KVM virtual machine can be created";
    vm->fd = ioctl(vm->kvm, KVM_CREATE_VM, 0);
    if (vm->fd < 0)
        return -ENODEV;
    *ret_reason = vm->config.backend == DIRTY_RING ? "KVM has no dirty ring" : "KVM has no manual dirty log protection";
    if (enable_dirty_log(vm) < 0)
        return -ENODEV;
    *ret_reason = "the virtual machine cannot be set up";
    vm->run_size = (size_t)ioctl(vm->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    r = op_set_logging(vm, false);
    if (r >= 0)
        r = make_aux(vm);
    for (unsigned int i = 0; r >= 0 && i < vm->config.vcpus; i++)
        r = make_vcpu(vm, i);
    for (unsigned int i = 0; r >= 0 && i < vm->config.vcpus; i++) {
        vm->vcpus[i].inside = true;
        r = -pthread_create(&vm->vcpus[i].thread, NULL, vcpu_thread, &vm->vcpus[i]);
        vm->vcpus[i].started = r == 0;
    }
    return r;
}

int toy_new(const struct toy_config *config, struct mem *mem, struct toy_vm **ret, const char **ret_reason)
{
    struct sigaction action = {.sa_handler = on_kick};
    struct toy_vm *vm = calloc(1, sizeof(*vm));
    int r;

    assert(config->vcpus >= 1 && config->vcpus <= TOY_MAX_VCPUS);
    if (!vm)
        return -ENOMEM;
    vm->mem = mem;
    vm->config = *config;
    vm->kvm = vm->fd = -1;
    for (unsigned int i = 0; i < TOY_MAX_VCPUS; i++)
        vm->vcpus[i].fd = -1;
    pthread_mutex_init(&vm->lock, NULL);
    pthread_cond_init(&vm->cond, NULL);
    sigaction(KICK_SIGNAL, &action, NULL);
    r = create(vm, ret_reason);
    if (r < 0)
        toy_free(vm);
    else
        *ret = vm;
    return r;
}

void toy_free(struct toy_vm *vm)
{
    if (!vm)
        return;
    pthread_mutex_lock(&vm->lock);
    vm->quit = true;
    pthread_cond_broadcast(&vm->cond);
    kick_all(vm);
    pthread_mutex_unlock(&vm->lock);
    for (unsigned int i = 0; i < vm->config.vcpus; i++) {
        struct toy_vcpu *v = &vm->vcpus[i];

        if (v->started)
            pthread_join(v->thread, NULL);
        if (v->ring)
            munmap(v->ring, vm->ring_size);
        if (v->run)
            munmap(v->run, vm->run_size);
        fd_close(v->fd);
    }
    fd_close(vm->fd);
    fd_close(vm->kvm);
    if (vm->aux)
        munmap(vm->aux, vm->aux_size);
    pthread_cond_destroy(&vm->cond);
    pthread_mutex_destroy(&vm->lock);
    free(vm);
}

/* -- use ---------------------------------------------------------------------- */

int toy_attach_log(struct toy_vm *vm, struct dirty_log *log)
{
    int r = 0;

    for (unsigned int i = 0; log && vm->ring_size && r == 0 && i < vm->config.vcpus; i++)
        r = dirty_log_add_ring(log, vm->vcpus[i].ring, vm->config.ring_entries);
    __atomic_store_n(&vm->log, log, __ATOMIC_RELEASE);
    return r;
}

struct kvm_dirty_gfn *toy_ring(struct toy_vm *vm, unsigned int vcpu)
{
    return vm->vcpus[vcpu].ring;
}

size_t toy_list_max(const struct toy_vm *vm)
{
    return vm->list_max;
}

void toy_set_list(struct toy_vm *vm, unsigned int vcpu, const pfn_t *pages, size_t count)
{
    struct toy_vcpu *v = &vm->vcpus[vcpu];

    assert(count <= vm->list_max);
    for (size_t i = 0; i < count; i++)
        v->list[i] = gfn_to_gpa(mem_pfn_to_gfn(vm->mem, pages[i]));
    v->box->count = count;
}

void toy_go(struct toy_vm *vm, unsigned int vcpu, uint64_t rounds)
{
    struct mailbox *box = vm->vcpus[vcpu].box;

    box->rounds = rounds;
    box->stop = 0;
    box->visits = 0;
    box->gap = 0;
    pthread_mutex_lock(&vm->lock);
    __atomic_store_n(&box->go, box->go + 1, __ATOMIC_RELEASE);
    pthread_cond_broadcast(&vm->cond);
    pthread_mutex_unlock(&vm->lock);
}

int toy_wait(struct toy_vm *vm, unsigned int vcpu)
{
    struct toy_vcpu *v = &vm->vcpus[vcpu];
    int r;

    /* One that spins inside the guest tells nobody. */
    while (v->box->spin && !idle(v))
        sched_yield();
    pthread_mutex_lock(&vm->lock);
    while (!idle(v) && !v->died)
        pthread_cond_wait(&vm->cond, &vm->lock);
    r = idle(v) ? 0 : -EIO;
    pthread_mutex_unlock(&vm->lock);
    return r;
}

int toy_stop(struct toy_vm *vm, unsigned int vcpu)
{
    __atomic_store_n(&vm->vcpus[vcpu].box->stop, 1, __ATOMIC_RELEASE);
    return toy_wait(vm, vcpu);
}

void toy_spin(struct toy_vm *vm, unsigned int vcpu, bool on)
{
    __atomic_store_n(&vm->vcpus[vcpu].box->spin, on, __ATOMIC_RELEASE);
}

uint64_t toy_visits(const struct toy_vm *vm, unsigned int vcpu)
{
    return __atomic_load_n(&vm->vcpus[vcpu].box->visits, __ATOMIC_RELAXED);
}

uint64_t toy_longest_gap(const struct toy_vm *vm, unsigned int vcpu)
{
    return __atomic_load_n(&vm->vcpus[vcpu].box->gap, __ATOMIC_RELAXED);
}

void toy_clear_longest_gap(struct toy_vm *vm, unsigned int vcpu)
{
    __atomic_store_n(&vm->vcpus[vcpu].box->gap, 0, __ATOMIC_RELAXED);
}

uint64_t toy_ring_full_exits(const struct toy_vm *vm)
{
    return __atomic_load_n(&vm->ring_full, __ATOMIC_RELAXED);
}

int toy_fd(const struct toy_vm *vm)
{
    return vm->fd;
}
