/*
 * Guest physical memory as a kernel finds it:
 *
 *   start        end          map       what
 *   0x00000000   0x0008ffff   RAM       free: a kernel may be loaded here
 *   0x00090000   0x00090fff   RAM       GDT: code at 0x10, data at 0x18, TSS at 0x20
 *   0x00091000   0x00091fff   RAM       boot_params, hvm_start_info or multiboot information with what belongs to it
 *   0x00092000   0x00092fff   RAM       command line
 *   0x00093000   0x00098fff   RAM       64-bit Linux: page tables that map the first 4 GiB one to one
 *   0x00099000   0x0009ffff   RAM       free; Linux looks for room for its trampolines from the end
 *   0x000a0000   0x000dffff   -         nothing (video memory and option ROMs on a PC)
 *   0x000e0000   0x000fffff   ACPI      ACPI tables, RSDP first
 *   0x00100000   low end      RAM       kernel where it wants to be, initrd as high as it may; low end is at most 3 GiB
 *   0xfec00000   0xffffffff   reserved  IOAPIC, LAPIC, pages that KVM keeps for itself
 *   0x100000000  high end     RAM       the rest; segments of an ELF kernel may be loaded here
 *
 * What is in use is claimed piece by piece before anything is written (struct boot_plan), so that no field of an image can
 * make two things share memory. The boot area is RAM in the map: a kernel that is done with it may use it.
 */
#include "config.h"

#include "boot/boot.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "boot/boot-internal.h"

/* A longer path is shown from its end. */
#define ERROR_PATH_MAX 80

int boot_fail(char *error, const struct boot_file *file, int err, const char *fmt, ...)
{
    int n = 0;
    va_list ap;

    if (file) {
        size_t len = strlen(file->path);
        bool cut = len > ERROR_PATH_MAX;

        n = snprintf(error, BOOT_ERROR_MAX, "%s %s%s: ", file->what, cut ? "..." : "",
                     cut ? file->path + len - ERROR_PATH_MAX : file->path);
    }
    va_start(ap, fmt);
    vsnprintf(error + n, BOOT_ERROR_MAX - (size_t)n, fmt, ap);
    va_end(ap);
    return -err;
}

int boot_read(const struct boot_file *file, char *error, const char *what, void *buf, size_t len, uint64_t offset)
{
    int r = fd_pread_all(file->fd, buf, len, offset);

    if (r == -EIO)
        return boot_fail(error, file, EIO, "cannot read %s: %zu bytes at offset %llu: the file ended or failed", what,
                         len, (unsigned long long)offset);
    if (r < 0)
        return boot_fail(error, file, -r, "cannot read %s: %s", what, strerror(-r));
    return 0;
}

void boot_write(const struct boot_plan *plan, gpa_t gpa, const void *buf, size_t len)
{
    int r = mem_write(plan->mem, gpa, buf, len);

    assert(r == 0);
}

void boot_file_name(const struct boot_file *file, char *buf, size_t len)
{
    const char *slash = strrchr(file->path, '/');
    size_t i = 0;

    for (const char *p = slash ? slash + 1 : file->path; *p && i + 1 < len; p++)
        buf[i++] = (unsigned char)*p > ' ' && *p != 0x7f ? *p : '_';
    buf[i] = '\0';
}

/* -- opening ------------------------------------------------------------------ */

static int open_file(struct boot_file *file, const char *path, char *error)
{
    struct stat st;

    file->path = strdup(path);
    if (!file->path)
        return boot_fail(error, NULL, ENOMEM, "out of memory");
    /* Nonblocking, so that opening a FIFO does not wait for its other end. */
    file->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file->fd < 0) {
        int err = errno;

        return boot_fail(error, file, err, "cannot open: %s", strerror(err));
    }
    if (fstat(file->fd, &st) < 0) {
        int err = errno;

        return boot_fail(error, file, err, "cannot stat: %s", strerror(err));
    }
    if (!S_ISREG(st.st_mode))
        return boot_fail(error, file, EINVAL, "not a regular file");
    if (st.st_size == 0)
        return boot_fail(error, file, EINVAL, "the file is empty");
    file->size = (uint64_t)st.st_size;
    return 0;
}

static int examine_kernel(struct boot_image *image, char *error)
{
    uint8_t head[BOOT_HEAD_SIZE];
    size_t len = (size_t)MIN(image->kernel.size, (uint64_t)sizeof(head));
    int r = boot_read(&image->kernel, error, "the image's head", head, len, 0);

    if (r < 0)
        return r;
    if (boot_elf_found(head, len)) {
        struct boot_elf elf = {0};

        r = boot_elf_open(image, head, len, &elf, error);
        if (r < 0)
            return r;
        if (elf.has_pvh_entry)
            return boot_pvh_open(image, &elf, error);
        if (boot_multiboot_found(head, len))
            return boot_multiboot_open(image, head, len, &elf, error);
        return boot_fail(error, &image->kernel, ENOEXEC,
                         "ELF without a PVH entry (note XEN_ELFNOTE_PHYS32_ENTRY) or a multiboot header in its first "
                         "%d bytes",
                         BOOT_HEAD_SIZE);
    }
    if (boot_bzimage_found(head, len))
        return boot_bzimage_open(image, head, len, error);
    if (boot_multiboot_found(head, len))
        return boot_multiboot_open(image, head, len, NULL, error);
    return boot_fail(error, &image->kernel, ENOEXEC, "not a bzImage, an ELF file or a multiboot image");
}

static int open_image(struct boot_image *image, const struct boot_config *config, char *error)
{
    size_t cmdline_len = config->cmdline ? strlen(config->cmdline) : 0;
    int r;

    if (cmdline_len > BOOT_CMDLINE_MAX)
        return boot_fail(error, NULL, E2BIG, "command line: %zu bytes exceed %d", cmdline_len, BOOT_CMDLINE_MAX);
    if (cmdline_len)
        memcpy(image->cmdline, config->cmdline, cmdline_len);
    r = open_file(&image->kernel, config->kernel, error);
    if (r < 0)
        return r;
    if (config->initrd) {
        r = open_file(&image->initrd, config->initrd, error);
        if (r < 0)
            return r;
    }
    return examine_kernel(image, error);
}

bool boot_cmdline_has(const char *cmdline, const char *word)
{
    size_t len = strlen(word);

    for (const char *at = cmdline; at && *at; at += strcspn(at, " ")) {
        at += strspn(at, " ");
        if (strncmp(at, word, len) == 0 && (at[len] == ' ' || at[len] == '\0'))
            return true;
    }
    return false;
}

int boot_open(const struct boot_config *config, char *error, struct boot_image **ret)
{
    struct boot_image *image = calloc(1, sizeof(*image));
    int r;

    if (!image)
        return boot_fail(error, NULL, ENOMEM, "out of memory");
    image->kernel = (struct boot_file){.what = "kernel", .fd = -1};
    image->initrd = (struct boot_file){.what = "initrd", .fd = -1};
    image->acpi = config->acpi;
    r = open_image(image, config, error);
    if (r < 0) {
        boot_close(image);
        return r;
    }
    *ret = image;
    return 0;
}

void boot_close(struct boot_image *image)
{
    if (!image)
        return;
    fd_close(image->kernel.fd);
    fd_close(image->initrd.fd);
    free(image->kernel.path);
    free(image->initrd.path);
    free(image);
}

enum boot_protocol boot_image_protocol(const struct boot_image *image)
{
    return image->loader->protocol;
}

/* -- loading ------------------------------------------------------------------ */

/* From the file straight to guest memory, which is claimed. */
static int load_file(const struct boot_plan *plan, const struct boot_file *file, uint64_t offset, gpa_t gpa, uint64_t len)
{
    void *to = mem_ptr(plan->mem, gpa, len);
    int r;

    assert(to);
    r = boot_read(file, plan->error, "what it loads", to, len, offset);
    /* Also after a failure: a part may be there. */
    mem_mark_dirty(plan->mem, gpa, len);
    return r;
}

static int load_kernel(const struct boot_plan *plan, const struct boot_image *image)
{
    for (unsigned int i = 0; i < image->segment_count; i++) {
        const struct boot_segment *s = &image->segments[i];
        int r;

        if (s->file_size == 0)
            continue;
        r = load_file(plan, &image->kernel, s->offset, plan->base + s->paddr, s->file_size);
        if (r < 0)
            return r;
    }
    return 0;
}

int boot_load(const struct boot_image *image, struct mem *mem, char *error, struct vcpu_entry *ret_entry)
{
    struct vcpu_entry entry = {0};
    struct boot_plan plan;
    int r;

    boot_plan_init(&plan, image, mem, error);
    r = image->loader->place(image, &plan);
    if (r < 0)
        return r;
    r = boot_place_initrd(&plan, image);
    if (r < 0)
        return r;
    r = load_kernel(&plan, image);
    if (r < 0)
        return r;
    if (plan.initrd_size > 0) {
        r = load_file(&plan, &image->initrd, 0, plan.initrd, plan.initrd_size);
        if (r < 0)
            return r;
    }
    r = acpi_write_tables(mem, &image->acpi);
    if (r < 0)
        return boot_fail(error, NULL, -r, "ACPI tables: %s", strerror(-r));
    image->loader->enter(image, &plan, &entry);
    *ret_entry = entry;
    return 0;
}
