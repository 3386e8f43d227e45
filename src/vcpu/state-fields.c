/* Images of vCPUs and chips as named fields, and back. No KVM here, so a fuzzer can drive all of the reading. */
#include "config.h"

#include "vcpu/state-internal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

#define CHIP_STATE_VERSION 1u
#define PIT_COUNT_MAX 0x10000u
#define NAME_LEN (STATE_NAME_MAX + 1)

static const struct state_field regs_fields[] = {
    STATE_FIELD(struct kvm_regs, rax), STATE_FIELD(struct kvm_regs, rbx), STATE_FIELD(struct kvm_regs, rcx),
    STATE_FIELD(struct kvm_regs, rdx), STATE_FIELD(struct kvm_regs, rsi), STATE_FIELD(struct kvm_regs, rdi),
    STATE_FIELD(struct kvm_regs, rsp), STATE_FIELD(struct kvm_regs, rbp), STATE_FIELD(struct kvm_regs, r8),
    STATE_FIELD(struct kvm_regs, r9),  STATE_FIELD(struct kvm_regs, r10), STATE_FIELD(struct kvm_regs, r11),
    STATE_FIELD(struct kvm_regs, r12), STATE_FIELD(struct kvm_regs, r13), STATE_FIELD(struct kvm_regs, r14),
    STATE_FIELD(struct kvm_regs, r15), STATE_FIELD(struct kvm_regs, rip), STATE_FIELD(struct kvm_regs, rflags),
};

#define SREG(member) STATE_FIELD(struct kvm_sregs2, member)
#define SEGMENT(seg)                                                                                    \
    SREG(seg.base), SREG(seg.limit), SREG(seg.selector), SREG(seg.type), SREG(seg.present), SREG(seg.dpl), \
        SREG(seg.db), SREG(seg.s), SREG(seg.l), SREG(seg.g), SREG(seg.avl), SREG(seg.unusable)

static const struct state_field sregs_fields[] = {
    SEGMENT(cs),     SEGMENT(ds),     SEGMENT(es),    SEGMENT(fs),
    SEGMENT(gs),     SEGMENT(ss),     SEGMENT(tr),    SEGMENT(ldt),
    SREG(gdt.base),  SREG(gdt.limit), SREG(idt.base), SREG(idt.limit),
    SREG(cr0),       SREG(cr2),       SREG(cr3),      SREG(cr4),
    SREG(cr8),       SREG(efer),      SREG(apic_base), SREG(flags),
    STATE_ARRAY(struct kvm_sregs2, pdptrs),
};

static const struct state_field debug_fields[] = {
    STATE_ARRAY(struct kvm_debugregs, db),
    STATE_FIELD(struct kvm_debugregs, dr6),
    STATE_FIELD(struct kvm_debugregs, dr7),
    STATE_FIELD(struct kvm_debugregs, flags),
};

#define EVENT(member) STATE_FIELD(struct kvm_vcpu_events, member)

static const struct state_field events_fields[] = {
    EVENT(exception.injected), EVENT(exception.nr),         EVENT(exception.has_error_code),
    EVENT(exception.pending),  EVENT(exception.error_code), EVENT(exception_has_payload),
    EVENT(exception_payload),  EVENT(interrupt.injected),   EVENT(interrupt.nr),
    EVENT(interrupt.soft),     EVENT(interrupt.shadow),     EVENT(nmi.injected),
    EVENT(nmi.pending),        EVENT(nmi.masked),           EVENT(sipi_vector),
    EVENT(flags),              EVENT(smi.smm),              EVENT(smi.pending),
    EVENT(smi.smm_inside_nmi), EVENT(smi.latched_init),     EVENT(triple_fault.pending),
};

static const struct state_field nested_fields[] = {
    {"flags", offsetof(struct vcpu_image, nested_flags), sizeof(uint16_t), 1, 1, false},
    {"format", offsetof(struct vcpu_image, nested_format), sizeof(uint16_t), 1, 1, false},
    {"header", offsetof(struct vcpu_image, nested_header), sizeof(((struct vcpu_image *)0)->nested_header), 0, 1, false},
};

#define PIC(member) STATE_FIELD(struct kvm_pic_state, member)

static const struct state_field pic_fields[] = {
    PIC(last_irr),      PIC(irr),          PIC(imr),         PIC(isr),
    PIC(priority_add),  PIC(irq_base),     PIC(read_reg_select), PIC(poll),
    PIC(special_mask),  PIC(init_state),   PIC(auto_eoi),    PIC(rotate_on_auto_eoi),
    PIC(special_fully_nested_mode), PIC(init4), PIC(elcr),   PIC(elcr_mask),
};

static const struct state_field ioapic_fields[] = {
    STATE_FIELD(struct kvm_ioapic_state, base_address), STATE_FIELD(struct kvm_ioapic_state, ioregsel),
    STATE_FIELD(struct kvm_ioapic_state, id),           STATE_FIELD(struct kvm_ioapic_state, irr),
};

static_assert(sizeof(((struct kvm_ioapic_state *)0)->redirtbl[0]) == sizeof(uint64_t),
              "an entry of the IOAPIC's table is saved as one integer");
static const struct state_field ioapic_table[] = {
    {"redirtbl", offsetof(struct kvm_ioapic_state, redirtbl), sizeof(uint64_t), KVM_IOAPIC_NUM_PINS, 1, false},
};

/* count_load_time is left out: it is the host's time, and KVM sets it anew when a count is loaded. */
#define CHANNEL(member) STATE_FIELD(struct kvm_pit_channel_state, member)

static const struct state_field pit_channel_fields[] = {
    CHANNEL(count),       CHANNEL(latched_count), CHANNEL(count_latched), CHANNEL(status_latched), CHANNEL(status),
    CHANNEL(read_state),  CHANNEL(write_state),   CHANNEL(write_latch),   CHANNEL(rw_mode),        CHANNEL(mode),
    CHANNEL(bcd),         CHANNEL(gate),
};

static const struct state_field pit_fields[] = {
    STATE_FIELD(struct kvm_pit_state2, flags),
};

static const char *const pit_channels[] = {"channel0.", "channel1.", "channel2."};
static_assert(ARRAY_SIZE(pit_channels) == ARRAY_SIZE(((struct kvm_pit_state2 *)0)->channels), "one prefix a channel");

#define PUT(w, prefix, table, obj) state_put_fields(w, prefix, table, ARRAY_SIZE(table), obj)
#define GET(r, s, prefix, table, obj) state_get_fields(r, s, prefix, table, ARRAY_SIZE(table), obj)

/* -- vCPU: writing -- */

void vcpu_image_clear(struct vcpu_image *im)
{
    free(im->nested_data);
    free(im->xsave);
    free(im->msrs);
    free(im->cpuid);
    *im = (struct vcpu_image){0};
}

struct kvm_msr_entry *vcpu_image_msr(const struct vcpu_image *im, uint32_t index)
{
    for (uint32_t i = 0; i < im->msr_count; i++)
        if (im->msrs[i].index == index)
            return &im->msrs[i];
    return NULL;
}

static void put_cpuid(const struct vcpu_image *im, struct state_writer *w)
{
    for (uint32_t i = 0; i < im->cpuid_count; i++) {
        const struct kvm_cpuid_entry2 *e = &im->cpuid[i];
        const uint32_t value[4] = {e->eax, e->ebx, e->ecx, e->edx};
        char name[NAME_LEN];

        if (e->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX)
            snprintf(name, sizeof(name), "cpuid.%08x.%08x", e->function, e->index);
        else
            snprintf(name, sizeof(name), "cpuid.%08x", e->function);
        state_put_bytes(w, name, value, sizeof(value));
    }
}

void vcpu_image_put(const struct vcpu_image *im, struct state_writer *w)
{
    char name[NAME_LEN];

    PUT(w, "regs.", regs_fields, &im->regs);
    PUT(w, "sregs.", sregs_fields, &im->sregs);
    PUT(w, "debug.", debug_fields, &im->debug);
    PUT(w, "events.", events_fields, &im->events);
    state_put_bytes(w, "mp_state", &im->mp.mp_state, sizeof(im->mp.mp_state));
    state_put_bytes(w, "tsc_khz", &im->tsc_khz, sizeof(im->tsc_khz));
    for (uint32_t i = 0; i < im->msr_count; i++) {
        snprintf(name, sizeof(name), "msr.%08x", im->msrs[i].index);
        state_put_u64(w, name, im->msrs[i].data);
    }
    put_cpuid(im, w);
    for (uint32_t i = 0; i < im->xcrs.nr_xcrs && i < KVM_MAX_XCRS; i++) {
        snprintf(name, sizeof(name), "xcr.%08x", im->xcrs.xcrs[i].xcr);
        state_put_u64(w, name, im->xcrs.xcrs[i].value);
    }
    state_put_bytes(w, "xsave", im->xsave, im->xsave_len);
    state_put_bytes(w, "lapic", im->lapic.regs, sizeof(im->lapic.regs));
    if (im->has_nested) {
        PUT(w, "nested.", nested_fields, im);
        state_put_bytes(w, "nested.data", im->nested_data, im->nested_len);
    }
}

/* -- vCPU: reading -- */

/* Exactly eight hexadecimal digits, as this program writes them. */
static bool parse_hex8(const char *text, uint32_t *ret)
{
    uint32_t v = 0;

    for (int i = 0; i < 8; i++) {
        char c = text[i];

        if (c >= '0' && c <= '9')
            v = v << 4 | (uint32_t)(c - '0');
        else if (c >= 'a' && c <= 'f')
            v = v << 4 | (uint32_t)(c - 'a' + 10);
        else
            return false;
    }
    *ret = v;
    return true;
}

/* The next field of an indexed family ("msr.", "xcr."): 1, 0 at the end, -EBADMSG. */
static int next_indexed(struct state_reader *r, const struct state_section *s, const char *prefix, uint32_t *cursor,
                        uint32_t *ret_index, uint64_t *ret_value)
{
    char name[NAME_LEN];
    const uint8_t *data;
    uint32_t len;

    if (!state_next_field(r, s, prefix, cursor, name, &data, &len))
        return 0;
    if (strlen(name) != strlen(prefix) + 8 || !parse_hex8(name + strlen(prefix), ret_index))
        return state_bad(r, s, "field %s: no eight hexadecimal digits follow %s", name, prefix);
    if (len != sizeof(uint64_t))
        return state_bad(r, s, "field %s: length %u, not 8", name, len);
    *ret_value = le64_get(data);
    return 1;
}

static int get_msrs(struct vcpu_image *im, struct state_reader *r, const struct state_section *s)
{
    uint32_t cursor = 0, index;
    uint64_t value;
    int more;

    im->msrs = calloc(MIN(s->field_count, VCPU_MAX_MSRS) + 1, sizeof(*im->msrs));
    if (!im->msrs)
        return -ENOMEM;
    while ((more = next_indexed(r, s, "msr.", &cursor, &index, &value)) > 0) {
        if (im->msr_count == VCPU_MAX_MSRS)
            return state_bad(r, s, "more than %u MSRs", VCPU_MAX_MSRS);
        im->msrs[im->msr_count++] = (struct kvm_msr_entry){.index = index, .data = value};
    }
    if (more == 0 && !vcpu_image_msr(im, MSR_TSC))
        return state_bad(r, s, "field msr.%08x (TSC) is missing", MSR_TSC);
    return more;
}

static int get_xcrs(struct vcpu_image *im, struct state_reader *r, const struct state_section *s)
{
    uint32_t cursor = 0, index;
    uint64_t value;
    int more;

    while ((more = next_indexed(r, s, "xcr.", &cursor, &index, &value)) > 0) {
        if (im->xcrs.nr_xcrs == KVM_MAX_XCRS)
            return state_bad(r, s, "more than %u XCRs", KVM_MAX_XCRS);
        im->xcrs.xcrs[im->xcrs.nr_xcrs++] = (struct kvm_xcr){.xcr = index, .value = value};
    }
    return more;
}

static int get_cpuid(struct vcpu_image *im, struct state_reader *r, const struct state_section *s)
{
    static const char prefix[] = "cpuid.";
    const size_t at = sizeof(prefix) - 1;
    char name[NAME_LEN];
    const uint8_t *data;
    uint32_t cursor = 0, len;

    im->cpuid = calloc(MIN(s->field_count, VCPU_MAX_CPUID) + 1, sizeof(*im->cpuid));
    if (!im->cpuid)
        return -ENOMEM;
    while (state_next_field(r, s, prefix, &cursor, name, &data, &len)) {
        struct kvm_cpuid_entry2 e = {0};
        size_t digits = strlen(name) - at;
        bool good = (digits == 8 || digits == 17) && parse_hex8(name + at, &e.function);

        if (good && digits == 17) {
            good = name[at + 8] == '.' && parse_hex8(name + at + 9, &e.index);
            e.flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        }
        if (!good || len != 16)
            return state_bad(r, s, "field %s is no CPUID leaf of 16 bytes", name);
        if (im->cpuid_count == VCPU_MAX_CPUID)
            return state_bad(r, s, "more than %u CPUID leaves", VCPU_MAX_CPUID);
        e.eax = le32_get(data);
        e.ebx = le32_get(data + 4);
        e.ecx = le32_get(data + 8);
        e.edx = le32_get(data + 12);
        im->cpuid[im->cpuid_count++] = e;
    }
    return 0;
}

/* A copy of a blob field; its length within [min, max]. */
static int get_copy(struct state_reader *r, const struct state_section *s, const char *name, size_t min, size_t max,
                    uint8_t **ret, size_t *ret_len)
{
    const uint8_t *data;
    size_t len;
    int err = state_get_blob(r, s, name, max, &data, &len);

    if (err < 0)
        return err;
    if (len < min)
        return state_bad(r, s, "field %s: length %zu is below %zu", name, len, min);
    *ret = malloc(MAX(len, (size_t)1));
    if (!*ret)
        return -ENOMEM;
    memcpy(*ret, data, len);
    *ret_len = len;
    return 0;
}

static int get_nested(struct vcpu_image *im, struct state_reader *r, const struct state_section *s)
{
    char name[NAME_LEN];
    const uint8_t *data;
    uint32_t cursor = 0, len;
    int err;

    if (!state_next_field(r, s, "nested.", &cursor, name, &data, &len))
        return 0;
    im->has_nested = true;
    err = GET(r, s, "nested.", nested_fields, im);
    if (err < 0)
        return err;
    return get_copy(r, s, "nested.data", 0, VCPU_NESTED_MAX, &im->nested_data, &im->nested_len);
}

static int get_image(struct vcpu_image *im, struct state_reader *r, const struct state_section *s)
{
    static int (*const getters[])(struct vcpu_image *, struct state_reader *, const struct state_section *) = {
        get_msrs, get_xcrs, get_cpuid, get_nested};
    int err = GET(r, s, "regs.", regs_fields, &im->regs);

    if (err == 0)
        err = GET(r, s, "sregs.", sregs_fields, &im->sregs);
    if (err == 0)
        err = GET(r, s, "debug.", debug_fields, &im->debug);
    if (err == 0)
        err = GET(r, s, "events.", events_fields, &im->events);
    if (err == 0)
        err = state_get_bytes(r, s, "mp_state", &im->mp.mp_state, sizeof(im->mp.mp_state));
    if (err == 0)
        err = state_get_bytes(r, s, "tsc_khz", &im->tsc_khz, sizeof(im->tsc_khz));
    if (err == 0)
        err = state_get_bytes(r, s, "lapic", im->lapic.regs, sizeof(im->lapic.regs));
    if (err == 0)
        err = get_copy(r, s, "xsave", VCPU_XSAVE_MIN, VCPU_XSAVE_MAX, &im->xsave, &im->xsave_len);
    for (size_t i = 0; i < ARRAY_SIZE(getters) && err == 0; i++)
        err = getters[i](im, r, s);
    return err < 0 ? err : state_check_all_read(r, s);
}

int vcpu_image_get(struct vcpu_image *im, struct state_reader *r, const struct state_section *s)
{
    int err;

    *im = (struct vcpu_image){0};
    err = get_image(im, r, s);
    if (err == -ENOMEM)
        state_bad(r, s, "no memory to load it");
    if (err < 0)
        vcpu_image_clear(im);
    return err;
}

/* -- chips -- */

void chip_image_put(const struct chip_image *im, struct state_writer *w)
{
    for (uint32_t i = 0; i < ARRAY_SIZE(im->pic); i++) {
        state_begin(w, "pic", i, CHIP_STATE_VERSION);
        PUT(w, "", pic_fields, &im->pic[i]);
        state_end(w);
    }
    state_begin(w, "ioapic", 0, CHIP_STATE_VERSION);
    PUT(w, "", ioapic_fields, &im->ioapic);
    PUT(w, "", ioapic_table, &im->ioapic);
    state_end(w);
    state_begin(w, "pit", 0, CHIP_STATE_VERSION);
    for (size_t i = 0; i < ARRAY_SIZE(pit_channels); i++)
        PUT(w, pit_channels[i], pit_channel_fields, &im->pit.channels[i]);
    PUT(w, "", pit_fields, &im->pit);
    state_end(w);
    state_begin(w, "clock", 0, CHIP_STATE_VERSION);
    state_put_u64(w, "kvmclock", im->clock);
    state_end(w);
}

static int get_pit(struct kvm_pit_state2 *pit, struct state_reader *r, const struct state_section *s)
{
    int err = GET(r, s, "", pit_fields, pit);

    for (size_t i = 0; i < ARRAY_SIZE(pit_channels) && err == 0; i++)
        err = GET(r, s, pit_channels[i], pit_channel_fields, &pit->channels[i]);
    for (size_t i = 0; i < ARRAY_SIZE(pit_channels) && err == 0; i++)
        if (pit->channels[i].count > PIT_COUNT_MAX)
            err = state_bad(r, s, "field %scount: %u exceeds %u", pit_channels[i], pit->channels[i].count, PIT_COUNT_MAX);
    return err;
}

int chip_image_get(struct chip_image *im, struct state_reader *r)
{
    const struct state_section *s;
    int err = 0;

    *im = (struct chip_image){0};
    for (uint32_t i = 0; i < ARRAY_SIZE(im->pic) && err == 0; i++) {
        err = state_open(r, "pic", i, CHIP_STATE_VERSION, &s);
        if (err == 0)
            err = GET(r, s, "", pic_fields, &im->pic[i]);
        if (err == 0)
            err = state_check_all_read(r, s);
    }
    if (err == 0)
        err = state_open(r, "ioapic", 0, CHIP_STATE_VERSION, &s);
    if (err == 0)
        err = GET(r, s, "", ioapic_fields, &im->ioapic);
    if (err == 0)
        err = GET(r, s, "", ioapic_table, &im->ioapic);
    if (err == 0)
        err = state_check_all_read(r, s);
    if (err == 0)
        err = state_open(r, "pit", 0, CHIP_STATE_VERSION, &s);
    if (err == 0)
        err = get_pit(&im->pit, r, s);
    if (err == 0)
        err = state_check_all_read(r, s);
    if (err == 0)
        err = state_open(r, "clock", 0, CHIP_STATE_VERSION, &s);
    if (err == 0)
        err = state_get_u64(r, s, "kvmclock", &im->clock);
    return err < 0 ? err : state_check_all_read(r, s);
}
