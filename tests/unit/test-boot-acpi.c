/* ACPI tables: structure, contents, and what ACPICA's disassembler thinks of them; the AML writer. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <string.h>
#include <sys/wait.h>

#include "base/bytes.h"
#include "base/fd.h"
#include "base/util.h"
#include "boot/acpi.h"
#include "boot/aml.h"
#include "device/devices.h"
#include "vcpu/vm.h"

static uint8_t sum(const uint8_t *p, size_t len)
{
    uint8_t s = 0;

    for (size_t i = 0; i < len; i++)
        s = (uint8_t)(s + p[i]);
    return s;
}

/* The table at a guest physical address, whole and with a good checksum. */
static const uint8_t *table_at(const struct byte_writer *w, uint64_t gpa, const char *signature)
{
    const uint8_t *t = w->data + (gpa - ACPI_TABLES_BASE);

    assert_in_range(gpa, ACPI_TABLES_BASE, ACPI_TABLES_BASE + w->len - 36);
    assert_true(le32_get(t + 4) >= 36 && le32_get(t + 4) <= w->len - (gpa - ACPI_TABLES_BASE));
    assert_memory_equal(t, signature, 4);
    assert_int_equal(sum(t, le32_get(t + 4)), 0);
    return t;
}

struct tables {
    struct byte_writer w;
    const uint8_t *fadt, *madt, *dsdt, *facs, *rsdt, *xsdt;
};

static void build(const struct acpi_config *config, struct tables *ret)
{
    const uint8_t *rsdp;

    *ret = (struct tables){.w = {0}};
    assert_int_equal(acpi_build_tables(config, &ret->w), 0);
    rsdp = ret->w.data;
    assert_memory_equal(rsdp, "RSD PTR ", 8);
    assert_int_equal(sum(rsdp, 20), 0);
    assert_int_equal(sum(rsdp, 36), 0);
    assert_int_equal(rsdp[15], 2);
    assert_int_equal(le32_get(rsdp + 20), 36);
    ret->rsdt = table_at(&ret->w, le32_get(rsdp + 16), "RSDT");
    ret->xsdt = table_at(&ret->w, le64_get(rsdp + 24), "XSDT");
    assert_int_equal(le32_get(ret->rsdt + 4), 36 + 2 * 4);
    assert_int_equal(le32_get(ret->xsdt + 4), 36 + 2 * 8);
    assert_int_equal(le32_get(ret->rsdt + 36), le64_get(ret->xsdt + 36));
    assert_int_equal(le32_get(ret->rsdt + 40), le64_get(ret->xsdt + 44));
    ret->fadt = table_at(&ret->w, le64_get(ret->xsdt + 36), "FACP");
    ret->madt = table_at(&ret->w, le64_get(ret->xsdt + 44), "APIC");
    ret->dsdt = table_at(&ret->w, le64_get(ret->fadt + 140), "DSDT");
    ret->facs = ret->w.data + (le32_get(ret->fadt + 36) - ACPI_TABLES_BASE);
}

static void test_fadt(void **state)
{
    const struct acpi_config config = {.cpus = 1};
    struct tables t;

    build(&config, &t);
    assert_int_equal(le32_get(t.fadt + 4), 276);
    assert_int_equal(t.fadt[8], 6);
    assert_int_equal(le32_get(t.fadt + 40), le64_get(t.fadt + 140)); /* DSDT */
    assert_int_equal(le16_get(t.fadt + 46), ACPI_SCI_IRQ);
    assert_int_equal(le32_get(t.fadt + 48), 0); /* SMI_CMD */
    assert_int_equal(le32_get(t.fadt + 56), ACPI_PM1_EVT);
    assert_int_equal(le32_get(t.fadt + 64), ACPI_PM1_CNT);
    assert_int_equal(le32_get(t.fadt + 76), ACPI_PM_TMR);
    assert_int_equal(t.fadt[88], 4);
    assert_int_equal(t.fadt[89], 2);
    assert_int_equal(t.fadt[91], 4);
    /* Fixed power button (bit 4 clear), 32-bit timer, reset register; not hardware-reduced. */
    assert_int_equal(le32_get(t.fadt + 112) & (1u << 4 | 1u << 8 | 1u << 10 | 1u << 20), 1u << 8 | 1u << 10);
    assert_int_equal(t.fadt[116], 1); /* system I/O */
    assert_int_equal(t.fadt[117], 8);
    assert_int_equal(le64_get(t.fadt + 120), ACPI_RESET_PORT);
    assert_int_equal(t.fadt[128], ACPI_RESET_VALUE);
    assert_int_equal(le64_get(t.fadt + 152), ACPI_PM1_EVT);
    assert_int_equal(le64_get(t.fadt + 176), ACPI_PM1_CNT);
    assert_int_equal(le64_get(t.fadt + 212), ACPI_PM_TMR);
    assert_memory_equal(t.facs, "FACS", 4);
    assert_int_equal(le32_get(t.facs + 4), 64);
    assert_true(is_aligned((uint64_t)(t.facs - t.w.data) + ACPI_TABLES_BASE, 64));
    byte_writer_clear(&t.w);
}

static void test_madt(void **state)
{
    static const unsigned int counts[] = {1, 2, 31, VM_MAX_VCPUS};

    for (size_t i = 0; i < ARRAY_SIZE(counts); i++) {
        const struct acpi_config config = {.cpus = counts[i]};
        unsigned int lapics = 0, ioapics = 0, overrides = 0;
        struct tables t;
        size_t at = 44, len;

        build(&config, &t);
        len = le32_get(t.madt + 4);
        assert_int_equal(le32_get(t.madt + 36), 0xfee00000);
        for (; at < len; at += t.madt[at + 1]) {
            const uint8_t *e = t.madt + at;

            assert_true(e[1] >= 2 && at + e[1] <= len);
            if (e[0] == 0) {
                assert_int_equal(e[2], lapics);
                assert_int_equal(e[3], lapics);
                assert_int_equal(le32_get(e + 4), 1);
                lapics++;
            } else if (e[0] == 1) {
                assert_int_equal(le32_get(e + 4), 0xfec00000);
                assert_int_equal(le32_get(e + 8), 0);
                ioapics++;
            } else if (e[0] == 2) {
                /* The SCI: level-triggered, active high. Nothing else is remapped. */
                assert_int_equal(e[3], ACPI_SCI_IRQ);
                assert_int_equal(le32_get(e + 4), ACPI_SCI_IRQ);
                assert_int_equal(le16_get(e + 8), 0xd);
                overrides++;
            } else {
                assert_int_equal(e[0], 4);
            }
        }
        assert_int_equal(at, len);
        assert_int_equal(lapics, counts[i]);
        assert_int_equal(ioapics, 1);
        assert_int_equal(overrides, 1);
        byte_writer_clear(&t.w);
    }
}

/* The most devices there can be fit; tables do not share bytes. */
static void test_largest(void **state)
{
    struct acpi_mmio_device devices[ACPI_MAX_MMIO_DEVICES];
    const struct acpi_config config = {
        .cpus = VM_MAX_VCPUS, .mmio_devices = devices, .mmio_device_count = ACPI_MAX_MMIO_DEVICES};
    const uint8_t *all[6];
    struct tables t;

    for (uint32_t i = 0; i < ACPI_MAX_MMIO_DEVICES; i++)
        devices[i] = (struct acpi_mmio_device){
            .hid = "LNRO0005", .uid = UINT32_MAX - i, .base = 0xd0000000 + i * 0x1000, .size = 0x1000, .gsi = 23};
    build(&config, &t);
    assert_true(t.w.len <= ACPI_TABLES_SIZE);
    all[0] = t.fadt, all[1] = t.madt, all[2] = t.dsdt, all[3] = t.facs, all[4] = t.rsdt, all[5] = t.xsdt;
    for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
        assert_true(all[i] >= t.w.data + 36 && all[i] + le32_get(all[i] + 4) <= t.w.data + t.w.len);
        for (size_t k = 0; k < ARRAY_SIZE(all); k++)
            assert_true(k == i || all[k] >= all[i] + le32_get(all[i] + 4) || all[k] + le32_get(all[k] + 4) <= all[i]);
    }
    byte_writer_clear(&t.w);
}

/* -- out of memory: linked with --wrap=realloc ----------------------------------- */

void *__real_realloc(void *p, size_t size);
void *__wrap_realloc(void *p, size_t size);

static int reallocs_left = -1; /* -1: no limit */

void *__wrap_realloc(void *p, size_t size)
{
    if (reallocs_left == 0)
        return NULL;
    if (reallocs_left > 0)
        reallocs_left--;
    return __real_realloc(p, size);
}

/* Wherever it happens, it is an error and nothing else. */
static void test_out_of_memory(void **state)
{
    const struct acpi_config config = {.cpus = VM_MAX_VCPUS};
    int r = -ENOMEM, allowed;

    for (allowed = 0; r < 0; allowed++) {
        struct byte_writer w = {0};

        reallocs_left = allowed;
        r = acpi_build_tables(&config, &w);
        reallocs_left = -1;
        byte_writer_clear(&w);
        assert_true(r == 0 || r == -ENOMEM);
    }
    assert_true(allowed > 1);
}

/* -- AML ---------------------------------------------------------------------- */

static void assert_aml(struct byte_writer *w, const void *expected, size_t len)
{
    assert_int_equal(w->len, len);
    assert_memory_equal(w->data, expected, len);
    byte_writer_clear(w);
}

static void test_aml_terms(void **state)
{
    struct aml_resources r = {.len = 0};
    struct byte_writer w = {0};
    struct aml a = aml_start(&w);

    aml_integer(&a, 0);
    aml_integer(&a, 1);
    aml_integer(&a, 2);
    aml_integer(&a, 255);
    aml_integer(&a, 256);
    aml_integer(&a, 65536);
    aml_integer(&a, UINT64_C(1) << 32);
    assert_aml(&w,
               "\x00\x01\x0a\x02\x0a\xff\x0b\x00\x01\x0c\x00\x00\x01\x00\x0e\x00\x00\x00\x00\x01\x00\x00\x00", 23);
    aml_name(&a, "_HID");
    aml_eisa_id(&a, "PNP0501");
    assert_aml(&w, "\x08_HID\x0c\x41\xd0\x05\x01", 10);
    aml_name(&a, "\\A");
    aml_string(&a, "xy");
    assert_aml(&w, "\x08\\A___\x0dxy", 10);
    aml_device(&a, "DEV");
    aml_end(&a);
    assert_aml(&w, "\x5b\x82\x05" "DEV_", 7);
    aml_scope(&a, "\\_SB");
    aml_package(&a, 2);
    aml_integer(&a, 5);
    aml_integer(&a, 0);
    aml_end(&a);
    aml_end(&a);
    assert_aml(&w, "\x10\x0c\\_SB_\x12\x05\x02\x0a\x05\x00", 13);
    aml_finish(&a);
    aml_add_io(&r, 0x3f8, 8);
    aml_add_irq(&r, 4);
    aml_add_memory32(&r, 0xd0001000, 0x200);
    aml_add_interrupt(&r, 17);
    aml_resources(&a, &r);
    assert_aml(&w,
               "\x11\x25\x0a\x22"
               "\x47\x01\xf8\x03\xf8\x03\x01\x08"
               "\x22\x10\x00"
               "\x86\x09\x00\x01\x00\x10\x00\xd0\x00\x02\x00\x00"
               "\x89\x06\x00\x03\x01\x11\x00\x00\x00"
               "\x79\x00",
               38);
}

/* A length says how far it is to the end of its block, its own bytes among it, in as few bytes as it takes. */
static void test_aml_lengths(void **state)
{
    static const struct {
        size_t contents;
        unsigned int bytes;
    } cases[] = {{6, 1}, {62, 1}, {63, 2}, {4093, 2}, {4094, 3}, {(1 << 20) - 4, 3}, {(1 << 20) - 3, 4}};

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        _cleanup_free_ char *text = malloc(cases[i].contents);
        struct byte_writer w = {0};
        struct aml a = aml_start(&w);
        size_t value, n = cases[i].bytes;

        /* The contents are a name, then a string with its prefix and NUL. */
        memset(text, 'x', cases[i].contents);
        text[cases[i].contents - 6] = '\0';
        aml_scope(&a, "SCOP");
        aml_string(&a, text);
        aml_end(&a);
        aml_finish(&a);
        assert_int_equal(w.len, 1 + n + cases[i].contents);
        assert_int_equal(w.data[1] >> 6, n - 1);
        value = n == 1 ? w.data[1] & 0x3f : w.data[1] & 0xf;
        for (size_t k = 1; k < n; k++)
            value |= (size_t)w.data[1 + k] << (8 * k - 4);
        assert_int_equal(value, w.len - 1);
        assert_memory_equal(w.data + 1 + n, "SCOP\x0dx", cases[i].contents > 6 ? 6 : 5);
        byte_writer_clear(&w);
    }
}

/* -- iasl --------------------------------------------------------------------- */

static void write_file(const char *dir, const char *name, const uint8_t *data, size_t len)
{
    char path[128];
    FILE *f;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, len, f), len);
    assert_int_equal(fclose(f), 0);
}

/* Run a shell command in dir; its output, to be freed. */
static char *run(const char *dir, const char *command, int *ret_status)
{
    char line[512], path[128];
    char *out = NULL;

    snprintf(line, sizeof(line), "cd %s && { %s; } >out.txt 2>&1 </dev/null", dir, command);
    *ret_status = system(line);
    snprintf(path, sizeof(path), "%s/out.txt", dir);
    assert_int_equal(fd_read_file(path, MiB, &out, NULL), 0);
    return out;
}

/* Disassemble, look for complaints, compile that again, and get the same bytes. */
static void check_with_iasl(const char *dir, const char *name, const uint8_t *table)
{
    static const char *const complaints[] = {"Warning", "Error", "Invalid", "warning", "error", "invalid", "**"};
    _cleanup_free_ char *out = NULL, *again = NULL, *bytes = NULL;
    char file[32], command[128], path[128];
    size_t len = le32_get(table + 4), got, header = strcmp(name, "facs") == 0 ? 0 : 36;
    int status;

    snprintf(file, sizeof(file), "%s.dat", name);
    write_file(dir, file, table, len);
    snprintf(command, sizeof(command), "timeout 60 iasl -d %s.dat", name);
    out = run(dir, command, &status);
    print_message("# %s\n", name);
    assert_int_equal(status, 0);
    for (size_t i = 0; i < ARRAY_SIZE(complaints); i++)
        if (strstr(out, complaints[i]))
            fail_msg("%s: iasl says: %s", name, out);
    snprintf(command, sizeof(command), "timeout 60 iasl -oa -p again %s.dsl", name);
    again = run(dir, command, &status);
    assert_int_equal(status, 0);
    if (!strstr(again, "0 Errors, 0 Warnings, 0 Remarks"))
        fail_msg("%s: iasl says: %s", name, again);
    snprintf(path, sizeof(path), "%s/again.aml", dir);
    assert_int_equal(fd_read_file(path, MiB, &bytes, &got), 0);
    /* The header names the compiler. */
    assert_int_equal(got, len);
    assert_memory_equal(bytes + header, table + header, len - header);
}

static void test_iasl(void **state)
{
    static const struct acpi_mmio_device devices[] = {
        {.hid = "LNRO0005", .uid = 0, .base = 0xd0000000, .size = 0x200, .gsi = 16},
        {.hid = "LNRO0005", .uid = 1, .base = 0xd0001000, .size = 0x200, .gsi = 17},
    };
    const struct acpi_config configs[] = {
        {.cpus = 1},
        {.cpus = VM_MAX_VCPUS, .mmio_devices = devices, .mmio_device_count = ARRAY_SIZE(devices)},
    };
    char dir[] = "/tmp/umbra-test-XXXXXX", command[64];
    int status = system("command -v iasl >/dev/null 2>&1");

    if (status != 0) {
        print_message("# SKIP iasl is missing (Debian package acpica-tools)\n");
        skip();
    }
    assert_non_null(mkdtemp(dir));
    for (size_t i = 0; i < ARRAY_SIZE(configs); i++) {
        struct tables t;

        build(&configs[i], &t);
        check_with_iasl(dir, "dsdt", t.dsdt);
        check_with_iasl(dir, "facp", t.fadt);
        check_with_iasl(dir, "apic", t.madt);
        check_with_iasl(dir, "facs", t.facs);
        check_with_iasl(dir, "rsdt", t.rsdt);
        check_with_iasl(dir, "xsdt", t.xsdt);
        byte_writer_clear(&t.w);
    }
    snprintf(command, sizeof(command), "rm -r %s", dir);
    assert_int_equal(system(command), 0);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fadt),      cmocka_unit_test(test_madt),        cmocka_unit_test(test_largest),
        cmocka_unit_test(test_out_of_memory),
        cmocka_unit_test(test_aml_terms), cmocka_unit_test(test_aml_lengths), cmocka_unit_test(test_iasl),
    };

    return cmocka_run_group_tests_name("boot-acpi", tests, NULL, NULL);
}
