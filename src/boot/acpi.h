/*
 * ACPI tables: RSDP, XSDT, FADT, FACS, MADT, DSDT (and later devices' objects in the DSDT).
 * The addresses in them come from device/devices.h.
 */
#ifndef UMBRA_BOOT_ACPI_H
#define UMBRA_BOOT_ACPI_H

#include "mmu/mem.h"

/* The tables stand here, in memory that the e820/PVH map calls ACPI; the RSDP at its start. */
#define ACPI_TABLES_BASE 0xe0000
#define ACPI_TABLES_SIZE 0x20000

/* Write all tables for `cpus` vCPUs; -ENOSPC. *ret_rsdp is the gpa of the RSDP. */
int acpi_write_tables(struct mem *mem, unsigned int cpus, gpa_t *ret_rsdp);

#endif
