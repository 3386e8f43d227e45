/*
 * ACPI tables: RSDP, RSDT, XSDT, FADT, FACS, MADT, DSDT. The ports and lines in them come from device/devices.h.
 */
#ifndef UMBRA_BOOT_ACPI_H
#define UMBRA_BOOT_ACPI_H

#include <stdint.h>

#include "base/bytes.h"
#include "mmu/mem.h"

/* The tables stand here, in memory that every memory map calls ACPI; the RSDP at its start, where a scan finds it. */
#define ACPI_TABLES_BASE 0xe0000
#define ACPI_TABLES_SIZE 0x20000

/* A device that a guest can only find through the DSDT: registers in memory and an edge-triggered interrupt line. */
struct acpi_mmio_device {
    char hid[9];     /* ACPI id: "LNRO0005" is a virtio-mmio transport */
    uint32_t uid;    /* tells apart those with the same hid */
    uint32_t base, size;
    uint32_t gsi;
};
#define ACPI_MAX_MMIO_DEVICES 256

struct acpi_config {
    unsigned int cpus; /* 1 to VM_MAX_VCPUS; vCPU i has APIC id i */
    const struct acpi_mmio_device *mmio_devices;
    unsigned int mmio_device_count;
};

/*
 * Write all tables to the empty `out` as they stand in memory from ACPI_TABLES_BASE, which is where the RSDP is. -ENOMEM.
 * The caller clears `out`, also after a failure.
 */
int acpi_build_tables(const struct acpi_config *config, struct byte_writer *out);

/* Build them and write them to guest memory. -ENOMEM; -EFAULT when there is no RAM. */
int acpi_write_tables(struct mem *mem, const struct acpi_config *config);

#endif
