/*
 * Writing AML, the byte code of ACPI's DSDT ("ACPI Specification", chapter "ACPI Machine Language Specification"), term
 * by term in the order ASL has them. Blocks nest, and aml_end closes the innermost one:
 *
 *   aml_device(&a, "COM1");                  Device (COM1) {
 *       aml_name(&a, "_HID");                    Name (_HID,
 *       aml_eisa_id(&a, "PNP0501");                  EisaId ("PNP0501"))
 *   aml_end(&a);                             }
 *
 * Running out of memory sets out.failed. Misuse (depth, names, an unclosed block) is a bug of the caller's: assert.
 */
#ifndef UMBRA_BOOT_AML_H
#define UMBRA_BOOT_AML_H

#include <stdint.h>

#include "base/bytes.h"

#define AML_MAX_DEPTH 8
#define AML_RESOURCES_MAX 62

struct aml {
    struct byte_writer *out;
    size_t open[AML_MAX_DEPTH]; /* where the contents of each open block start */
    unsigned int depth;
};

static inline struct aml aml_start(struct byte_writer *out)
{
    return (struct aml){.out = out};
}
/* Every block must be closed. */
void aml_finish(const struct aml *a);

/* Blocks. A name is 1 to 4 characters, after a backslash where it starts at the root. */
void aml_scope(struct aml *a, const char *name);
void aml_device(struct aml *a, const char *name);
void aml_package(struct aml *a, uint8_t elements);
void aml_end(struct aml *a);

/* Name (name, what is written next) */
void aml_name(struct aml *a, const char *name);

void aml_integer(struct aml *a, uint64_t value);
void aml_string(struct aml *a, const char *ascii);
/* Three capital letters and four hexadecimal digits. */
void aml_eisa_id(struct aml *a, const char *id);

/* A resource template is collected first, then written. */
struct aml_resources {
    uint8_t data[AML_RESOURCES_MAX + 2];
    uint8_t len;
};

/* `count` ports from `port` on, decoded with all 16 bits. */
void aml_add_io(struct aml_resources *r, uint16_t port, uint8_t count);
/* ISA line 0 to 15: edge, active high, not shared. */
void aml_add_irq(struct aml_resources *r, unsigned int irq);
/* Registers in memory below 4 GiB, read and written. */
void aml_add_memory32(struct aml_resources *r, uint32_t base, uint32_t size);
/* Any line: edge, active high, not shared. */
void aml_add_interrupt(struct aml_resources *r, uint32_t gsi);
void aml_resources(struct aml *a, const struct aml_resources *r);

#endif
