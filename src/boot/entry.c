/* The state of vCPU 0 where a kernel is entered, with the tables in memory that belong to it. */
#include "config.h"

#include "boot/boot-internal.h"

#define SELECTOR_CODE 0x10 /* as Linux's boot protocol wants them */
#define SELECTOR_DATA 0x18
#define SELECTOR_TSS 0x20

/* Descriptors, present, accessed. */
#define GDT_CODE64 UINT64_C(0x00af9b000000ffff)
#define GDT_CODE32 UINT64_C(0x00cf9b000000ffff)
#define GDT_DATA UINT64_C(0x00cf93000000ffff)
#define GDT_TSS_BUSY UINT64_C(0x00008b0000000067)

#define TYPE_DATA 3
#define TYPE_CODE 11
#define TYPE_LDT 2
#define TYPE_TSS_BUSY 11
#define TSS_LIMIT 0x67

#define CR0_PE (1u << 0)
#define CR0_ET (1u << 4)
#define CR0_NE (1u << 5)
#define CR0_PG (1u << 31)
#define CR4_PAE (1u << 5)
#define EFER_LME (1u << 8)
#define EFER_LMA (1u << 10)
#define RFLAGS_FIXED (1u << 1)

#define PTE_PRESENT (1u << 0)
#define PTE_WRITE (1u << 1)
#define PTE_ACCESSED (1u << 5)
#define PTE_DIRTY (1u << 6)
#define PTE_LARGE (1u << 7)
#define PTES 512

static void write_gdt(const struct boot_plan *plan, uint64_t code, struct kvm_sregs *sregs)
{
    uint64_t gdt[6] = {
        [SELECTOR_CODE / 8] = code,
        [SELECTOR_DATA / 8] = GDT_DATA,
        [SELECTOR_TSS / 8] = GDT_TSS_BUSY, /* 16 bytes in 64-bit mode */
    };

    boot_write(plan, BOOT_GDT, gdt, sizeof(gdt));
    sregs->gdt.base = BOOT_GDT;
    sregs->gdt.limit = sizeof(gdt) - 1;
    /* No IDT: an exception before the kernel has its own is a triple fault. */
    sregs->idt.limit = 0;
}

static void set_segments(struct kvm_sregs *sregs, bool long_mode)
{
    const struct kvm_segment data = {
        .limit = UINT32_MAX, .selector = SELECTOR_DATA, .type = TYPE_DATA, .present = 1, .db = 1, .s = 1, .g = 1};

    sregs->cs = (struct kvm_segment){.limit = UINT32_MAX,
                                     .selector = SELECTOR_CODE,
                                     .type = TYPE_CODE,
                                     .present = 1,
                                     .db = !long_mode,
                                     .l = long_mode,
                                     .s = 1,
                                     .g = 1};
    sregs->ds = sregs->es = sregs->ss = sregs->fs = sregs->gs = data;
    sregs->tr =
        (struct kvm_segment){.limit = TSS_LIMIT, .selector = SELECTOR_TSS, .type = TYPE_TSS_BUSY, .present = 1};
    sregs->ldt = (struct kvm_segment){.type = TYPE_LDT, .unusable = 1};
}

/*
 * Pages of 2 MiB: not every CPU has larger ones. Accessed and dirty are set from the start, so that nobody has to write
 * to the tables when the guest uses them.
 */
static void write_page_tables(const struct boot_plan *plan)
{
    const uint64_t table = PTE_PRESENT | PTE_WRITE | PTE_ACCESSED;
    uint64_t entries[PTES] = {0}, page = 0;

    entries[0] = BOOT_PDPT | table;
    boot_write(plan, BOOT_PML4, entries, sizeof(entries));
    for (unsigned int i = 0; i < BOOT_IDENTITY_GIB; i++)
        entries[i] = (BOOT_PD + i * GUEST_PAGE_SIZE) | table;
    boot_write(plan, BOOT_PDPT, entries, sizeof(entries));
    for (unsigned int i = 0; i < BOOT_IDENTITY_GIB; i++) {
        for (unsigned int k = 0; k < PTES; k++, page += 2 * MiB)
            entries[k] = page | table | PTE_DIRTY | PTE_LARGE;
        boot_write(plan, BOOT_PD + i * GUEST_PAGE_SIZE, entries, sizeof(entries));
    }
}

void boot_enter_long(const struct boot_plan *plan, gpa_t rip, struct vcpu_entry *entry)
{
    struct kvm_sregs *sregs = &entry->sregs;

    write_gdt(plan, GDT_CODE64, sregs);
    write_page_tables(plan);
    set_segments(sregs, true);
    sregs->cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_PG;
    sregs->cr3 = BOOT_PML4;
    sregs->cr4 = CR4_PAE;
    sregs->efer = EFER_LME | EFER_LMA;
    entry->regs.rip = rip;
    entry->regs.rflags = RFLAGS_FIXED;
}

void boot_enter_flat(const struct boot_plan *plan, gpa_t eip, struct vcpu_entry *entry)
{
    struct kvm_sregs *sregs = &entry->sregs;

    write_gdt(plan, GDT_CODE32, sregs);
    set_segments(sregs, false);
    sregs->cr0 = CR0_PE | CR0_ET;
    entry->regs.rip = eip;
    entry->regs.rflags = RFLAGS_FIXED;
}
