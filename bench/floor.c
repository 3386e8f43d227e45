#include "config.h"

#include "floor.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define ADDR_IDENTITY_MAP UINT64_C(0xfffbc000)
#define ADDR_TSS UINT64_C(0xfffbd000)

#define CPUID_ENTRIES 256u

#define UART 0x3f8
#define EXIT_PORT 0xf4

const char *floor_name = "floor";

void floor_err(const char *fmt, ...)
{
    va_list ap;

    fprintf(stderr, "%s: ", floor_name);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
}

uint64_t floor_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static int fail_errno(const char *what)
{
    int e = errno;

    floor_err("%s: %s", what, strerror(e));
    return -e;
}

static int vm_ioctl(int fd, unsigned long request, const char *what, void *arg)
{
    int r = ioctl(fd, request, arg);

    return r < 0 ? fail_errno(what) : r;
}

/* -- VM ----------------------------------------------------------------------------- */

static void open_kvm(struct floor_vm *vm)
{
    const char *path = getenv("UMBRA_KVM");

    if (!path || !*path)
        path = "/dev/kvm";
    vm->kvm = open(path, O_RDWR | O_CLOEXEC);
    if (vm->kvm < 0 || ioctl(vm->kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION) {
        floor_err("%s: no KVM: %s", path, strerror(errno));
        exit(FLOOR_SKIP);
    }
}

static int enable_cap(struct floor_vm *vm, uint32_t cap, uint64_t arg, const char *what)
{
    struct kvm_enable_cap c = {.cap = cap, .args = {arg}};

    return vm_ioctl(vm->vm, KVM_ENABLE_CAP, what, &c);
}

static int create_devices(struct floor_vm *vm)
{
    struct kvm_pit_config pit = {.flags = KVM_PIT_SPEAKER_DUMMY};
    uint64_t identity = ADDR_IDENTITY_MAP;
    int r;

    r = vm_ioctl(vm->vm, KVM_SET_IDENTITY_MAP_ADDR, "KVM_SET_IDENTITY_MAP_ADDR", &identity);
    if (r == 0 && ioctl(vm->vm, KVM_SET_TSS_ADDR, ADDR_TSS) < 0)
        r = fail_errno("KVM_SET_TSS_ADDR");
    if (r == 0)
        r = vm_ioctl(vm->vm, KVM_CREATE_IRQCHIP, "KVM_CREATE_IRQCHIP", NULL);
    if (r == 0)
        r = vm_ioctl(vm->vm, KVM_CREATE_PIT2, "KVM_CREATE_PIT2", &pit);
    return r;
}

static int set_memory(struct floor_vm *vm, bool log)
{
    struct kvm_userspace_memory_region slot = {
        .slot = 0,
        .flags = log ? KVM_MEM_LOG_DIRTY_PAGES : 0,
        .guest_phys_addr = 0,
        .memory_size = vm->ram_size,
        .userspace_addr = (uintptr_t)vm->ram,
    };

    return vm_ioctl(vm->vm, KVM_SET_USER_MEMORY_REGION, "KVM_SET_USER_MEMORY_REGION", &slot);
}

static int create_memory(struct floor_vm *vm, const struct floor_config *config)
{
    int fd = memfd_create("guest", MFD_CLOEXEC);
    void *p;

    if (fd < 0 || ftruncate(fd, (off_t)config->ram) < 0) {
        int r = fail_errno("guest memory");

        if (fd >= 0)
            close(fd);
        return r;
    }
    p = mmap(NULL, config->ram, PROT_READ | PROT_WRITE, MAP_SHARED | (config->prealloc ? MAP_POPULATE : 0), fd, 0);
    close(fd);
    if (p == MAP_FAILED)
        return fail_errno("guest memory");
    vm->ram = p;
    vm->ram_size = config->ram;
    return set_memory(vm, false);
}

static int set_cpuid(struct floor_vm *vm)
{
    struct kvm_cpuid2 *c = calloc(1, sizeof(*c) + CPUID_ENTRIES * sizeof(c->entries[0]));
    int r;

    if (!c)
        return -ENOMEM;
    c->nent = CPUID_ENTRIES;
    r = vm_ioctl(vm->kvm, KVM_GET_SUPPORTED_CPUID, "KVM_GET_SUPPORTED_CPUID", c);
    for (uint32_t i = 0; r == 0 && i < c->nent; i++) {
        if (c->entries[i].function == 1) {
            c->entries[i].ecx |= UINT32_C(1) << 31; /* a hypervisor is there */
            c->entries[i].ebx &= 0xffffff;          /* APIC id 0 */
        }
        if (c->entries[i].function == 0xb || c->entries[i].function == 0x1f)
            c->entries[i].edx = 0;
    }
    if (r == 0)
        r = vm_ioctl(vm->vcpu, KVM_SET_CPUID2, "KVM_SET_CPUID2", c);
    free(c);
    return r;
}

/* The state that the PVH ABI asks for: flat 32-bit protected mode, paging off, rbx at the start info. */
static int set_registers(struct floor_vm *vm, uint32_t entry)
{
    struct kvm_segment code = {.limit = 0xffffffff, .selector = 8, .type = 0xb, .present = 1, .db = 1, .s = 1, .g = 1};
    struct kvm_segment data = {.limit = 0xffffffff, .selector = 16, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1};
    struct kvm_segment tss = {.limit = 0x67, .selector = 24, .type = 0xb, .present = 1};
    struct kvm_regs regs = {.rip = entry, .rbx = FLOOR_START_INFO, .rflags = 2};
    struct kvm_sregs sregs;
    int r = vm_ioctl(vm->vcpu, KVM_GET_SREGS, "KVM_GET_SREGS", &sregs);

    if (r < 0)
        return r;
    sregs.cs = code;
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
    sregs.tr = tss;
    sregs.cr0 = 0x11;
    sregs.cr4 = 0;
    sregs.efer = 0;
    r = vm_ioctl(vm->vcpu, KVM_SET_SREGS, "KVM_SET_SREGS", &sregs);
    if (r == 0)
        r = vm_ioctl(vm->vcpu, KVM_SET_REGS, "KVM_SET_REGS", &regs);
    return r;
}

static int create_vcpu(struct floor_vm *vm)
{
    int size = ioctl(vm->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    void *p;

    if (size < 0)
        return fail_errno("KVM_GET_VCPU_MMAP_SIZE");
    vm->vcpu = ioctl(vm->vm, KVM_CREATE_VCPU, 0);
    if (vm->vcpu < 0)
        return fail_errno("KVM_CREATE_VCPU");
    p = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, vm->vcpu, 0);
    if (p == MAP_FAILED)
        return fail_errno("kvm_run");
    vm->run = p;
    vm->run_size = (size_t)size;
    if (!vm->ring_entries)
        return 0;
    p = mmap(NULL, vm->ring_entries * sizeof(*vm->ring), PROT_READ | PROT_WRITE, MAP_SHARED, vm->vcpu,
             KVM_DIRTY_LOG_PAGE_OFFSET * FLOOR_PAGE_SIZE);
    if (p == MAP_FAILED)
        return fail_errno("dirty ring");
    vm->ring = p;
    return 0;
}

static int create_vm(struct floor_vm *vm, const struct floor_config *config)
{
    uint32_t entry = 0;
    int r;

    vm->vm = ioctl(vm->kvm, KVM_CREATE_VM, 0);
    if (vm->vm < 0)
        return fail_errno("KVM_CREATE_VM");
    if (config->ring_entries)
        r = enable_cap(vm, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, config->ring_entries * sizeof(struct kvm_dirty_gfn),
                       "KVM_CAP_DIRTY_LOG_RING_ACQ_REL");
    else
        r = enable_cap(vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
                       KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET,
                       "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2");
    /* Before the devices: after them, setting the slot waits for a grace period that their bus registration began. */
    if (r == 0)
        r = create_memory(vm, config);
    if (r == 0)
        r = create_devices(vm);
    if (r == 0)
        r = floor_load(vm, config->guest, config->cmdline, &entry);
    if (r == 0)
        r = create_vcpu(vm);
    if (r == 0)
        r = set_cpuid(vm);
    if (r == 0)
        r = set_registers(vm, entry);
    return r;
}

int floor_create(struct floor_vm *vm, const struct floor_config *config)
{
    int r;

    *vm = (struct floor_vm){.kvm = -1, .vm = -1, .vcpu = -1, .ring_entries = config->ring_entries, .input = ""};
    if (config->ram < FLOOR_RAM_MIN || config->ram > FLOOR_RAM_MAX || config->ram % FLOOR_PAGE_SIZE) {
        floor_err("guest memory of %llu bytes is not between 2M and 3G in whole pages",
                  (unsigned long long)config->ram);
        return -EINVAL;
    }
    open_kvm(vm);
    r = create_vm(vm, config);
    if (r < 0)
        floor_destroy(vm);
    return r;
}

void floor_destroy(struct floor_vm *vm)
{
    if (vm->ring)
        munmap(vm->ring, vm->ring_entries * sizeof(*vm->ring));
    if (vm->run)
        munmap(vm->run, vm->run_size);
    if (vm->vcpu >= 0)
        close(vm->vcpu);
    if (vm->vm >= 0)
        close(vm->vm);
    if (vm->kvm >= 0)
        close(vm->kvm);
    if (vm->ram)
        munmap(vm->ram, vm->ram_size);
    *vm = (struct floor_vm){.kvm = -1, .vm = -1, .vcpu = -1, .input = ""};
}

/* -- run ------------------------------------------------------------------------------ */

/* Returns an event, or -1 to go on. */
static int uart_read(struct floor_vm *vm, unsigned int reg, uint8_t *ret)
{
    bool dlab = vm->lcr & 0x80;

    switch (reg) {
    case 0:
        *ret = dlab ? vm->dll : (uint8_t)*vm->input;
        if (!dlab && *vm->input)
            vm->input++;
        return -1;
    case 1:
        *ret = dlab ? vm->dlm : vm->ier;
        return -1;
    case 2:
        *ret = 0xc1; /* FIFOs on, no interrupt */
        return -1;
    case 3:
        *ret = vm->lcr;
        return -1;
    case 4:
        *ret = vm->mcr;
        return -1;
    case 5:
        *ret = 0x60 | (*vm->input != '\0');
        return *vm->input ? -1 : FLOOR_NO_INPUT;
    case 6:
        *ret = 0xb0;
        return -1;
    default:
        *ret = vm->scratch;
        return -1;
    }
}

static int uart_write(struct floor_vm *vm, unsigned int reg, uint8_t v)
{
    bool dlab = vm->lcr & 0x80;

    switch (reg) {
    case 0:
        if (dlab) {
            vm->dll = v;
            return -1;
        }
        vm->sent = v;
        return FLOOR_OUTPUT;
    case 1:
        *(dlab ? &vm->dlm : &vm->ier) = v;
        return -1;
    case 3:
        vm->lcr = v;
        return -1;
    case 4:
        vm->mcr = v;
        return -1;
    case 7:
        vm->scratch = v;
        return -1;
    default:
        return -1;
    }
}

/* The guests written for this send and take single bytes; other devices are absent and read as ones. */
static int handle_io(struct floor_vm *vm)
{
    struct kvm_run *run = vm->run;
    uint8_t *data = (uint8_t *)run + run->io.data_offset;
    uint16_t port = run->io.port;
    bool in = run->io.direction == KVM_EXIT_IO_IN;

    if (port >= UART && port < UART + 8 && run->io.size == 1 && run->io.count == 1)
        return in ? uart_read(vm, port - UART, data) : uart_write(vm, port - UART, *data);
    if (port == EXIT_PORT && !in) {
        vm->exit_code = *data;
        return FLOOR_EXIT;
    }
    if (in)
        memset(data, 0xff, (size_t)run->io.size * run->io.count);
    return -1;
}

int floor_run(struct floor_vm *vm)
{
    for (;;) {
        int r = ioctl(vm->vcpu, KVM_RUN, 0);

        if (r < 0 && errno != EINTR && errno != EAGAIN)
            return fail_errno("KVM_RUN");
        if (r < 0)
            continue;
        switch (vm->run->exit_reason) {
        case KVM_EXIT_IO:
            r = handle_io(vm);
            if (r >= 0)
                return r;
            break;
        case KVM_EXIT_MMIO:
            if (!vm->run->mmio.is_write)
                memset(vm->run->mmio.data, 0xff, sizeof(vm->run->mmio.data));
            break;
        case KVM_EXIT_DIRTY_RING_FULL:
            return FLOOR_RING_FULL;
        case KVM_EXIT_SHUTDOWN:
        case KVM_EXIT_SYSTEM_EVENT:
            vm->exit_code = 255;
            return FLOOR_EXIT;
        default:
            floor_err("unexpected exit reason %u", vm->run->exit_reason);
            return -EIO;
        }
    }
}

int floor_read_line(struct floor_vm *vm, char *line, int (*on_full)(void *arg), void *arg)
{
    size_t len = 0;

    for (;;) {
        int r = floor_run(vm);

        if (r == FLOOR_RING_FULL && on_full) {
            r = on_full(arg);
            if (r == 0)
                continue;
        }
        if (r < 0)
            return r;
        if (r == FLOOR_EXIT)
            return 1;
        if (r != FLOOR_OUTPUT)
            continue;
        if (vm->sent == '\n') {
            line[len] = '\0';
            return 0;
        }
        if (len < FLOOR_LINE_SIZE - 1)
            line[len++] = (char)vm->sent;
    }
}

/* -- dirty log -------------------------------------------------------------------------- */

int floor_log(struct floor_vm *vm, bool on)
{
    int r = set_memory(vm, on);

    if (r == 0)
        vm->logging = on;
    return r;
}

size_t floor_bitmap_size(const struct floor_vm *vm)
{
    uint64_t pages = vm->ram_size / FLOOR_PAGE_SIZE;

    return (size_t)((pages + 63) / 64 * 8);
}

int floor_get(struct floor_vm *vm, uint64_t *bitmap)
{
    struct kvm_dirty_log log = {.slot = 0, .dirty_bitmap = bitmap};

    return vm_ioctl(vm->vm, KVM_GET_DIRTY_LOG, "KVM_GET_DIRTY_LOG", &log);
}

static int clear_words(struct floor_vm *vm, uint64_t *bitmap, uint64_t first, uint64_t count)
{
    uint64_t pages = vm->ram_size / FLOOR_PAGE_SIZE;
    uint64_t end = (first + count) * 64;
    struct kvm_clear_dirty_log log = {
        .slot = 0,
        .first_page = first * 64,
        .num_pages = (uint32_t)((end > pages ? pages : end) - first * 64),
        .dirty_bitmap = bitmap + first,
    };

    return vm_ioctl(vm->vm, KVM_CLEAR_DIRTY_LOG, "KVM_CLEAR_DIRTY_LOG", &log);
}

int floor_clear_dense(struct floor_vm *vm, uint64_t *bitmap)
{
    return clear_words(vm, bitmap, 0, floor_bitmap_size(vm) / 8);
}

int floor_clear_sparse(struct floor_vm *vm, uint64_t *bitmap)
{
    uint64_t words = floor_bitmap_size(vm) / 8, i = 0, first;
    int r = 0;

    while (r == 0) {
        while (i < words && !bitmap[i])
            i++;
        if (i == words)
            return 0;
        first = i;
        while (i < words && bitmap[i])
            i++;
        r = clear_words(vm, bitmap, first, i - first);
    }
    return r;
}

uint32_t floor_ring_harvest(struct floor_vm *vm, uint64_t *bitmap)
{
    uint64_t pages = vm->ram_size / FLOOR_PAGE_SIZE;
    uint32_t n = 0;

    for (;;) {
        struct kvm_dirty_gfn *e = &vm->ring[vm->ring_next & (vm->ring_entries - 1)];

        if (!(__atomic_load_n(&e->flags, __ATOMIC_ACQUIRE) & KVM_DIRTY_GFN_F_DIRTY))
            return n;
        /* Other slots are KVM's own. */
        if (e->slot == 0 && e->offset < pages)
            bitmap[e->offset / 64] |= UINT64_C(1) << (e->offset % 64);
        __atomic_store_n(&e->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
        vm->ring_next++;
        n++;
    }
}

int floor_ring_reset(struct floor_vm *vm)
{
    return vm_ioctl(vm->vm, KVM_RESET_DIRTY_RINGS, "KVM_RESET_DIRTY_RINGS", NULL);
}

/* -- figures ---------------------------------------------------------------------------- */

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

double floor_median(double *v, size_t n)
{
    qsort(v, n, sizeof(*v), compare);
    return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

int floor_parse_size(const char *text, uint64_t *ret)
{
    static const char units[] = "KMG";
    const char *unit;
    unsigned long long v;
    unsigned int shift;
    char *end;

    if (*text < '0' || *text > '9')
        return -EINVAL;
    errno = 0;
    v = strtoull(text, &end, 10);
    if (errno)
        return -EINVAL;
    if (*end) {
        unit = strchr(units, *end);
        if (!unit || end[1])
            return -EINVAL;
        shift = 10 * (unsigned int)(unit - units + 1);
        if (v > UINT64_MAX >> shift)
            return -EINVAL;
        v <<= shift;
    }
    *ret = v;
    return 0;
}
