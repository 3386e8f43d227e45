/*
 * The tables, one after another from ACPI_TABLES_BASE: RSDP, FACS, DSDT, FADT, MADT, RSDT, XSDT. Numbers and layouts are
 * those of the "ACPI Specification", version 6.3, chapter "ACPI Software Programming Model".
 *
 * The hardware described is a PC without PCI: fixed-hardware power button, sleep state S5, PM timer and reset register
 * in one block of ports; SCI on a level-triggered ISA line; LAPICs and one IOAPIC whose inputs are the ISA lines one to
 * one (KVM's default routing), so that only the SCI needs an override.
 */
#include "config.h"

#include "boot/acpi.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/util.h"
#include "boot/aml.h"
#include "device/devices.h"
#include "vcpu/vm.h"

#define OEM_ID "UMBRA "
#define OEM_TABLE_ID "UMBRAVMM"
#define CREATOR_ID "UMBR"

#define RSDP_SIZE 36
#define RSDP_V1_SIZE 20
#define FACS_SIZE 64
#define FACS_ALIGN 64
#define TABLE_ALIGN 16

/* Every table but RSDP and FACS starts with this. */
#define HEADER_SIZE 36
#define HEADER_LENGTH 4
#define HEADER_CHECKSUM 9

#define LAPIC_BASE 0xfee00000
#define IOAPIC_BASE 0xfec00000

/* FADT: offsets of the fields that are not zero. */
enum {
    FADT_FIRMWARE_CTRL = 36,
    FADT_DSDT = 40,
    FADT_PROFILE = 45,
    FADT_SCI_INT = 46,
    FADT_PM1A_EVT = 56,
    FADT_PM1A_CNT = 64,
    FADT_PM_TMR = 76,
    FADT_PM1_EVT_LEN = 88,
    FADT_PM1_CNT_LEN = 89,
    FADT_PM_TMR_LEN = 91,
    FADT_P_LVL2_LAT = 96,
    FADT_P_LVL3_LAT = 98,
    FADT_BOOT_ARCH = 109,
    FADT_FLAGS = 112,
    FADT_RESET_REG = 116,
    FADT_RESET_VALUE = 128,
    FADT_MINOR_VERSION = 131,
    FADT_X_DSDT = 140,
    FADT_X_PM1A_EVT = 148,
    FADT_X_PM1A_CNT = 172,
    FADT_X_PM_TMR = 208,
    FADT_HYPERVISOR = 268,
    FADT_SIZE = 276,
};

#define FADT_REVISION 6
#define FADT_MINOR 3
#define PROFILE_ENTERPRISE_SERVER 4
/* Latencies beyond these limits (100 and 1000 us) mean that there is no C2 and no C3. */
#define NO_C2_LATENCY 101
#define NO_C3_LATENCY 1001

/* There are ISA devices; there is no keyboard controller worth probing (it only takes resets), and no VGA. */
#define BOOT_ARCH_LEGACY_DEVICES (1u << 0)
#define BOOT_ARCH_NO_VGA (1u << 2)

#define FADT_WBINVD (1u << 0)
#define FADT_C1 (1u << 2)
#define FADT_NO_SLEEP_BUTTON (1u << 5)
#define FADT_NO_RTC_WAKE (1u << 6)
#define FADT_TMR_32_BITS (1u << 8)
#define FADT_RESET_REG_SUP (1u << 10)

#define GAS_IO 1
#define GAS_ACCESS_BYTE 1
#define GAS_ACCESS_WORD 2
#define GAS_ACCESS_DWORD 3

#define MADT_REVISION 5
#define MADT_PCAT_COMPAT 1 /* there are 8259s too */
#define MADT_LAPIC 0
#define MADT_IOAPIC 1
#define MADT_OVERRIDE 2
#define MADT_LAPIC_NMI 4
#define MADT_LAPIC_ENABLED 1
#define MADT_ALL_PROCESSORS 0xff
#define MADT_HIGH_LEVEL 0xd /* active high, level-triggered */

/* No table or device takes more than this, padding included. */
#define TABLE_MAX 512
#define MMIO_DEVICE_MAX 96
static_assert(7 * TABLE_MAX + ACPI_MAX_MMIO_DEVICES * MMIO_DEVICE_MAX <= ACPI_TABLES_SIZE, "there is room for all of it");
static_assert(HEADER_SIZE + 40 + 8 * VM_MAX_VCPUS <= TABLE_MAX, "the MADT is the largest");
static_assert(VM_MAX_VCPUS <= 255, "larger APIC ids need x2APIC structures in the MADT");

static uint64_t table_address(size_t offset)
{
    return ACPI_TABLES_BASE + offset;
}

static void write_zeros(struct byte_writer *out, size_t n)
{
    static const uint8_t zeros[64];

    for (; n > sizeof(zeros); n -= sizeof(zeros))
        byte_write(out, zeros, sizeof(zeros));
    byte_write(out, zeros, n);
}

static void align_tables(struct byte_writer *out, size_t align)
{
    write_zeros(out, (size_t)align_up(out->len, align) - out->len);
}

/* The byte that makes them add up to 0. */
static uint8_t checksum(const uint8_t *data, size_t len)
{
    uint8_t sum = 0;

    while (len > 0)
        sum = (uint8_t)(sum + data[--len]);
    return (uint8_t)-sum;
}

static size_t begin_table(struct byte_writer *out, const char *signature, uint8_t revision)
{
    size_t start;

    align_tables(out, TABLE_ALIGN);
    start = out->len;
    byte_write(out, signature, 4);
    byte_write_u32(out, 0); /* length, by end_table */
    byte_write_u8(out, revision);
    byte_write_u8(out, 0); /* checksum, by end_table */
    byte_write(out, OEM_ID, 6);
    byte_write(out, OEM_TABLE_ID, 8);
    byte_write_u32(out, 1); /* OEM revision */
    byte_write(out, CREATOR_ID, 4);
    byte_write_u32(out, 1); /* creator revision */
    return start;
}

static void end_table(struct byte_writer *out, size_t start)
{
    uint8_t *table;

    if (out->failed)
        return;
    table = out->data + start;
    le32_put(table + HEADER_LENGTH, (uint32_t)(out->len - start));
    table[HEADER_CHECKSUM] = checksum(table, out->len - start);
}

/* -- DSDT --------------------------------------------------------------------- */

static void write_legacy_device(struct aml *a, const char *name, const char *id, uint16_t port, uint8_t ports,
                                unsigned int irq)
{
    struct aml_resources crs = {.len = 0};

    aml_add_io(&crs, port, ports);
    aml_add_irq(&crs, irq);
    aml_device(a, name);
    aml_name(a, "_HID");
    aml_eisa_id(a, id);
    aml_name(a, "_UID");
    aml_integer(a, 1);
    aml_name(a, "_CRS");
    aml_resources(a, &crs);
    aml_end(a);
}

static void write_mmio_device(struct aml *a, unsigned int index, const struct acpi_mmio_device *d)
{
    struct aml_resources crs = {.len = 0};
    char name[8];

    snprintf(name, sizeof(name), "M%03X", index & 0xfff);
    aml_add_memory32(&crs, d->base, d->size);
    aml_add_interrupt(&crs, d->gsi);
    aml_device(a, name);
    aml_name(a, "_HID");
    aml_string(a, d->hid);
    aml_name(a, "_UID");
    aml_integer(a, d->uid);
    aml_name(a, "_CRS");
    aml_resources(a, &crs);
    aml_end(a);
}

static size_t write_dsdt(struct byte_writer *out, const struct acpi_config *config)
{
    size_t start = begin_table(out, "DSDT", 2);
    struct aml a = aml_start(out);

    aml_scope(&a, "\\_SB");
    write_legacy_device(&a, "COM1", "PNP0501", SERIAL_PORT, 8, SERIAL_IRQ);
    write_legacy_device(&a, "RTC", "PNP0B00", RTC_PORT, 2, RTC_IRQ);
    for (unsigned int i = 0; i < config->mmio_device_count; i++)
        write_mmio_device(&a, i, &config->mmio_devices[i]);
    aml_end(&a);

    aml_name(&a, "\\_S5");
    aml_package(&a, 4);
    aml_integer(&a, ACPI_S5_SLP_TYP); /* for PM1a_CNT */
    aml_integer(&a, ACPI_S5_SLP_TYP); /* for PM1b_CNT, which is not there */
    aml_integer(&a, 0);
    aml_integer(&a, 0);
    aml_end(&a);
    aml_finish(&a);
    end_table(out, start);
    return start;
}

/* -- FACS, FADT, MADT ---------------------------------------------------------- */

static size_t write_facs(struct byte_writer *out)
{
    uint8_t facs[FACS_SIZE] = "FACS";
    size_t start;

    align_tables(out, FACS_ALIGN);
    start = out->len;
    le32_put(facs + 4, FACS_SIZE);
    facs[32] = 2; /* version */
    byte_write(out, facs, sizeof(facs));
    return start;
}

static void put_gas(uint8_t *gas, uint8_t bytes, uint8_t access, uint64_t port)
{
    gas[0] = GAS_IO;
    gas[1] = (uint8_t)(bytes * 8);
    gas[2] = 0; /* bit offset */
    gas[3] = access;
    le64_put(gas + 4, port);
}

static void put_power_registers(uint8_t *fadt)
{
    le32_put(fadt + FADT_PM1A_EVT, ACPI_PM1_EVT);
    le32_put(fadt + FADT_PM1A_CNT, ACPI_PM1_CNT);
    le32_put(fadt + FADT_PM_TMR, ACPI_PM_TMR);
    fadt[FADT_PM1_EVT_LEN] = 4;
    fadt[FADT_PM1_CNT_LEN] = 2;
    fadt[FADT_PM_TMR_LEN] = 4;
    put_gas(fadt + FADT_X_PM1A_EVT, 4, GAS_ACCESS_WORD, ACPI_PM1_EVT);
    put_gas(fadt + FADT_X_PM1A_CNT, 2, GAS_ACCESS_WORD, ACPI_PM1_CNT);
    put_gas(fadt + FADT_X_PM_TMR, 4, GAS_ACCESS_DWORD, ACPI_PM_TMR);
    put_gas(fadt + FADT_RESET_REG, 1, GAS_ACCESS_BYTE, ACPI_RESET_PORT);
    fadt[FADT_RESET_VALUE] = ACPI_RESET_VALUE;
}

static size_t write_fadt(struct byte_writer *out, size_t facs, size_t dsdt)
{
    uint8_t fadt[FADT_SIZE] = {0};
    size_t start = begin_table(out, "FACP", FADT_REVISION);

    le32_put(fadt + FADT_FIRMWARE_CTRL, (uint32_t)table_address(facs));
    le32_put(fadt + FADT_DSDT, (uint32_t)table_address(dsdt));
    le64_put(fadt + FADT_X_DSDT, table_address(dsdt));
    fadt[FADT_PROFILE] = PROFILE_ENTERPRISE_SERVER;
    le16_put(fadt + FADT_SCI_INT, ACPI_SCI_IRQ);
    /* No SMI_CMD: the machine is in ACPI mode from the start. */
    put_power_registers(fadt);
    le16_put(fadt + FADT_P_LVL2_LAT, NO_C2_LATENCY);
    le16_put(fadt + FADT_P_LVL3_LAT, NO_C3_LATENCY);
    le16_put(fadt + FADT_BOOT_ARCH, BOOT_ARCH_LEGACY_DEVICES | BOOT_ARCH_NO_VGA);
    /* That the power button is none of the control method kind makes it fixed hardware. */
    le32_put(fadt + FADT_FLAGS, FADT_WBINVD | FADT_C1 | FADT_NO_SLEEP_BUTTON | FADT_NO_RTC_WAKE | FADT_TMR_32_BITS |
                                    FADT_RESET_REG_SUP);
    fadt[FADT_MINOR_VERSION] = FADT_MINOR;
    memcpy(fadt + FADT_HYPERVISOR, "UMBRA", 5);
    byte_write(out, fadt + HEADER_SIZE, FADT_SIZE - HEADER_SIZE);
    end_table(out, start);
    return start;
}

static size_t write_madt(struct byte_writer *out, unsigned int cpus)
{
    size_t start = begin_table(out, "APIC", MADT_REVISION);

    byte_write_u32(out, LAPIC_BASE);
    byte_write_u32(out, MADT_PCAT_COMPAT);
    for (unsigned int i = 0; i < cpus; i++) {
        byte_write_u8(out, MADT_LAPIC);
        byte_write_u8(out, 8);
        byte_write_u8(out, (uint8_t)i); /* processor uid */
        byte_write_u8(out, (uint8_t)i); /* APIC id */
        byte_write_u32(out, MADT_LAPIC_ENABLED);
    }
    byte_write_u8(out, MADT_IOAPIC);
    byte_write_u8(out, 12);
    byte_write_u8(out, 0); /* id */
    byte_write_u8(out, 0);
    byte_write_u32(out, IOAPIC_BASE);
    byte_write_u32(out, 0); /* first line */

    byte_write_u8(out, MADT_OVERRIDE);
    byte_write_u8(out, 10);
    byte_write_u8(out, 0); /* ISA */
    byte_write_u8(out, ACPI_SCI_IRQ);
    byte_write_u32(out, ACPI_SCI_IRQ);
    byte_write_u16(out, MADT_HIGH_LEVEL);

    byte_write_u8(out, MADT_LAPIC_NMI);
    byte_write_u8(out, 6);
    byte_write_u8(out, MADT_ALL_PROCESSORS);
    byte_write_u16(out, 0); /* polarity and trigger as the bus has them */
    byte_write_u8(out, 1);  /* LINT1 */
    end_table(out, start);
    return start;
}

/* -- roots -------------------------------------------------------------------- */

/* RSDT or XSDT: the same list with 4 or 8 bytes an address. */
static size_t write_root(struct byte_writer *out, const char *signature, const size_t *tables, unsigned int count,
                         unsigned int width)
{
    size_t start = begin_table(out, signature, 1);

    for (unsigned int i = 0; i < count; i++) {
        uint64_t address = table_address(tables[i]);

        byte_write(out, &address, width);
    }
    end_table(out, start);
    return start;
}

static void put_rsdp(uint8_t *rsdp, size_t rsdt, size_t xsdt)
{
    memset(rsdp, 0, RSDP_SIZE);
    memcpy(rsdp, "RSD PTR ", 8);
    memcpy(rsdp + 9, OEM_ID, 6);
    rsdp[15] = 2; /* revision: with an XSDT */
    le32_put(rsdp + 16, (uint32_t)table_address(rsdt));
    le32_put(rsdp + 20, RSDP_SIZE);
    le64_put(rsdp + 24, table_address(xsdt));
    rsdp[8] = checksum(rsdp, RSDP_V1_SIZE);
    rsdp[32] = checksum(rsdp, RSDP_SIZE);
}

int acpi_build_tables(const struct acpi_config *config, struct byte_writer *out)
{
    size_t facs, dsdt, rsdt, xsdt, tables[2];

    assert(config->cpus >= 1 && config->cpus <= VM_MAX_VCPUS);
    assert(config->mmio_device_count <= ACPI_MAX_MMIO_DEVICES);
    assert(out->len == 0);
    write_zeros(out, RSDP_SIZE);
    facs = write_facs(out);
    dsdt = write_dsdt(out, config);
    tables[0] = write_fadt(out, facs, dsdt);
    tables[1] = write_madt(out, config->cpus);
    rsdt = write_root(out, "RSDT", tables, ARRAY_SIZE(tables), 4);
    xsdt = write_root(out, "XSDT", tables, ARRAY_SIZE(tables), 8);
    if (out->failed)
        return -ENOMEM;
    assert(out->len <= ACPI_TABLES_SIZE);
    put_rsdp(out->data, rsdt, xsdt);
    return 0;
}

int acpi_write_tables(struct mem *mem, const struct acpi_config *config)
{
    struct byte_writer out = {0};
    int r = acpi_build_tables(config, &out);

    if (r == 0)
        r = mem_write(mem, ACPI_TABLES_BASE, out.data, out.len);
    byte_writer_clear(&out);
    return r;
}
