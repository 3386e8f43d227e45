#include "config.h"

#include "daemon/machine-mmu.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "mmu/page-limit.h"
#include "vcpu/stats.h"

/* How long a question in mode on-demand waits for vCPUs to say what they have in CR3. */
#define LOOK_NS (20 * NSEC_PER_MSEC)

struct machine_mmu {
    struct vm *vm;
    struct tracker *tracker;
    void (*on_page_limit)(void *opaque);
    void *opaque;
    unsigned int share; /* of the host's memory for shadow pages, percent */

    /* The last attributed snapshot, by root. */
    struct mmu_space *spaces;
    size_t space_count;

    pthread_mutex_t lock; /* protects what follows; the tracker's thread and the main thread take it, for some ioctls */
    struct kvm_stats_source *stats; /* NULL where KVM gives none */
    const struct stats_desc *recycled;
    struct page_limit_info limit;
    struct page_limit policy; /* of mode auto */
    bool capped_told;
    struct page_limit_event event; /* the newest that was not fetched; of more the reason and the numbers of the last count */
    bool event_waits;
};

/* -- what the tracker asks ----------------------------------------------------- */

static uint64_t op_activity(void *opaque)
{
    struct machine_mmu *m = opaque;

    return vm_cpu_time(m->vm);
}

static void op_look(void *opaque, bool kick)
{
    struct machine_mmu *m = opaque;

    vm_ask_paging(m->vm, kick);
}

static void op_look_now(void *opaque)
{
    struct machine_mmu *m = opaque;

    vm_look_paging(m->vm, LOOK_NS);
}

static bool op_vcpu(void *opaque, unsigned int index, struct tracker_vcpu *ret)
{
    struct machine_mmu *m = opaque;
    struct vcpu_paging p;

    if (index >= vm_cpus(m->vm))
        return false;
    vm_paging(m->vm, index, &p);
    *ret = (struct tracker_vcpu){
        .cr0 = p.cr0, .cr3 = p.cr3, .cr4 = p.cr4, .efer = p.efer, .kernel = p.kernel, .seq = p.seq};
    return true;
}

static uint64_t recycled_now(struct machine_mmu *m)
{
    m->limit.recycled_known = m->recycled && stats_read(m->stats) == 0;
    if (m->limit.recycled_known)
        m->limit.recycled = *stats_values(m->stats, m->recycled);
    return m->limit.recycled;
}

/* A step of the policy was taken: do as it says. */
static void change_limit(struct machine_mmu *m, uint64_t before, uint64_t tables, enum page_limit_reason reason)
{
    int r = vm_set_mmu_pages(m->vm, m->policy.limit);

    if (r < 0) {
        log_warn_errno(r, "mmu: KVM does not take a limit of %" PRIu64 " shadow pages", m->policy.limit);
        m->policy.limit = before;
        m->policy.max = MAX(before, m->policy.floor);
        return;
    }
    log_info("mmu: KVM's limit of shadow pages: %" PRIu64 ", was %" PRIu64 " (%s; page tables %" PRIu64
             ", recycled %" PRIu64 ")",
             m->policy.limit, before, page_limit_reason_name(reason), tables, m->limit.recycled);
    m->limit.limit = m->policy.limit;
    m->limit.changes++;
    m->event = (struct page_limit_event){
        .previous = m->event_waits ? m->event.previous : before,
        .limit = m->policy.limit,
        .shadow_pages = tables,
        .recycled = m->limit.recycled,
        .reason = page_limit_reason_name(reason),
    };
    m->event_waits = true;
    m->on_page_limit(m->opaque);
}

/* On the tracker's thread: KVM's ioctl may wait for a vCPU that waits for the userfaultfd thread, which waits for nobody. */
static void op_pressure(void *opaque, const struct tracker_pressure *pressure)
{
    struct machine_mmu *m = opaque;
    struct page_limit_sample sample = {.tables = pressure->shadow_pages, .now_ns = pressure->now_ns};
    enum page_limit_reason reason;
    uint64_t before;

    pthread_mutex_lock(&m->lock);
    if (m->limit.mode == CONFIG_PAGE_LIMIT_AUTO) {
        before = m->policy.limit;
        sample.recycled = recycled_now(m);
        reason = page_limit_step(&m->policy, &sample);
        if (reason != PAGE_LIMIT_KEEP)
            change_limit(m, before, sample.tables, reason);
        if (m->policy.capped && !m->capped_told)
            log_warn("mmu: the guest needs more shadow pages than %" PRIu64 ", the share of host memory they may take",
                     m->policy.max);
        m->capped_told |= m->policy.capped;
    }
    pthread_mutex_unlock(&m->lock);
}

static const struct tracker_ops ops = {
    .pressure = op_pressure,
    .activity = op_activity,
    .look = op_look,
    .look_now = op_look_now,
    .vcpu = op_vcpu,
};

/* -- life ---------------------------------------------------------------------- */

static int make_tracker(struct machine_mmu *m, const struct config *config)
{
    struct tracker_config c = {
        .mem = vm_mem(m->vm),
        .log = vm_dirty_log(m->vm),
        .settings = config->mmu,
        .make_precise = source_precise_new,
        .ops = &ops,
        .opaque = m,
    };
    unsigned int maxphyaddr;
    int r;

    vm_paging_features(m->vm, &maxphyaddr, &c.cpu.gbpages);
    maxphyaddr = MAX(maxphyaddr, 32u);
    c.cpu.maxphyaddr = (uint8_t)MIN(maxphyaddr, 52u);
    r = tracker_new(&c, &m->tracker);
    if (r < 0)
        log_err_errno(r, "mmu: guest page tables cannot be tracked (--mmu %s)", config_tracking_names[config->mmu.mode]);
    return r;
}

/* -ENOTTY: an old KVM; everything but `recycled` works without. */
static void open_stats(struct machine_mmu *m)
{
    if (stats_open(vm_fd(m->vm), &m->stats) == 0)
        m->recycled = stats_find(m->stats, "mmu_recycled");
}

int machine_mmu_new(const struct config *config, struct vm *vm, void (*on_page_limit)(void *opaque), void *opaque,
                    struct machine_mmu **ret)
{
    struct machine_mmu *m = calloc(1, sizeof(*m));
    int r;

    if (!m)
        return -ENOMEM;
    *m = (struct machine_mmu){.vm = vm, .on_page_limit = on_page_limit, .opaque = opaque,
                               .share = config->page_limit_share};
    pthread_mutex_init(&m->lock, NULL);
    open_stats(m);
    m->limit.kvm_default = page_limit_default(mem_pages(vm_mem(vm)));
    /* None of the modes: whatever is wanted is a change. */
    m->limit.mode = CONFIG_PAGE_LIMIT_MANUAL;
    r = machine_mmu_set_page_limit(m, config->page_limit, config->page_limit_pages);
    if (r < 0)
        log_err_errno(r, "mmu: KVM does not take a limit of %llu shadow pages",
                      (unsigned long long)config->page_limit_pages);
    else
        r = make_tracker(m, config);
    if (r < 0) {
        machine_mmu_free(m);
        return r;
    }
    *ret = m;
    return 0;
}

void machine_mmu_stop(struct machine_mmu *m)
{
    if (m)
        tracker_stop(m->tracker);
}

void machine_mmu_free(struct machine_mmu *m)
{
    if (!m)
        return;
    tracker_free(m->tracker);
    stats_close(m->stats);
    free(m->spaces);
    pthread_mutex_destroy(&m->lock);
    free(m);
}

void machine_mmu_paused(struct machine_mmu *m)
{
    struct tracker_settings s;

    /* Free now, and exact: no vCPU has another CR3 before it runs again. */
    tracker_settings(m->tracker, &s);
    if (s.mode != TRACKER_OFF)
        vm_note_paging(m->vm);
    tracker_run(m->tracker, false);
}

void machine_mmu_resuming(struct machine_mmu *m)
{
    tracker_run(m->tracker, true);
}

void machine_mmu_reset(struct machine_mmu *m)
{
    tracker_reset(m->tracker);
}

void machine_mmu_loaded(struct machine_mmu *m)
{
    tracker_reset(m->tracker);
    /* After the reset, which passes over what was noted before: the first look finds the roots from these. */
    machine_mmu_paused(m);
}

struct tracker *machine_mmu_tracker(struct machine_mmu *m)
{
    return m->tracker;
}

/* -- dirty pages by address space ---------------------------------------------- */

static int by_root(const void *a, const void *b)
{
    const struct mmu_space *x = a, *y = b;

    return x->cr3 < y->cr3 ? -1 : x->cr3 > y->cr3;
}

void machine_mmu_note_dirty(struct machine_mmu *m, const struct mmu_attribution *a)
{
    free(m->spaces);
    m->space_count = 0;
    m->spaces = calloc(a->space_count + 1, sizeof(*m->spaces));
    for (size_t i = 0; m->spaces && i < a->space_count; i++)
        if (!a->spaces[i].kernel)
            m->spaces[m->space_count++] = a->spaces[i];
    if (m->spaces)
        qsort(m->spaces, m->space_count, sizeof(*m->spaces), by_root);
}

uint64_t machine_mmu_dirty_of(const struct machine_mmu *m, gpa_t cr3, uint64_t generation)
{
    const struct mmu_space key = {.cr3 = cr3}, *found;

    found = m->space_count ? bsearch(&key, m->spaces, m->space_count, sizeof(key), by_root) : NULL;
    return found && found->generation == generation ? found->pages : 0;
}

/* -- the page limit ------------------------------------------------------------ */

void machine_mmu_page_limit(struct machine_mmu *m, struct page_limit_info *ret)
{
    pthread_mutex_lock(&m->lock);
    (void)recycled_now(m);
    *ret = m->limit;
    pthread_mutex_unlock(&m->lock);
}

/* The policy begins with KVM's own limit, and may go as far as a share of the host's memory. */
static void begin_policy(struct machine_mmu *m)
{
    uint64_t host = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t max = page_limit_affordable(host, m->share);

    page_limit_init(&m->policy, m->limit.kvm_default, MIN(max, (uint64_t)UINT32_MAX), recycled_now(m));
    m->capped_told = false;
}

static int set_locked(struct machine_mmu *m, enum config_page_limit mode, uint64_t pages)
{
    int r = 0;

    if (mode == m->limit.mode && mode != CONFIG_PAGE_LIMIT_MANUAL)
        return 0;
    if (mode == CONFIG_PAGE_LIMIT_MANUAL)
        r = vm_set_mmu_pages(m->vm, pages);
    else if (m->limit.limit)
        r = vm_set_mmu_pages(m->vm, m->limit.kvm_default);
    if (r < 0)
        return r;
    m->limit.mode = mode;
    m->limit.limit = mode == CONFIG_PAGE_LIMIT_MANUAL ? pages : 0;
    if (mode == CONFIG_PAGE_LIMIT_AUTO)
        begin_policy(m);
    return 0;
}

int machine_mmu_set_page_limit(struct machine_mmu *m, enum config_page_limit mode, uint64_t pages)
{
    int r;

    pthread_mutex_lock(&m->lock);
    r = set_locked(m, mode, pages);
    pthread_mutex_unlock(&m->lock);
    return r;
}

bool machine_mmu_next_event(struct machine_mmu *m, struct page_limit_event *ret)
{
    bool waits;

    pthread_mutex_lock(&m->lock);
    waits = m->event_waits;
    *ret = m->event;
    m->event_waits = false;
    pthread_mutex_unlock(&m->lock);
    return waits;
}
