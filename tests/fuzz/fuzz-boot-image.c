/*
 * A kernel image: opened, and loaded where that goes. The first four bytes of the input are the surroundings (MiB of guest
 * memory, length of the command line, size of the initrd, vCPUs); the rest is the kernel's file.
 */
#include "config.h"

#include <assert.h>
#include <string.h>
#include <sys/mman.h>

#include "base/fd.h"
#include "base/util.h"
#include "boot/boot.h"
#include "vcpu/vm.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define SETTINGS 4
#define MEM_MIB_MAX 64
#define INITRD_UNIT 16384

/* A memfd with `len` bytes of data in a file of `size`. */
static int make_file(const void *data, size_t len, size_t size, char *path, size_t path_len)
{
    int fd = memfd_create("fuzz", MFD_CLOEXEC), r;

    assert(fd >= 0);
    r = fd_write_all(fd, data, len);
    assert(r == 0);
    if (ftruncate(fd, (off_t)size) < 0)
        abort();
    snprintf(path, path_len, "/proc/self/fd/%d", fd);
    return fd;
}

static void check_error(int r, const char *error)
{
    size_t len = strnlen(error, BOOT_ERROR_MAX);

    if (r >= 0 || len == 0 || len >= BOOT_ERROR_MAX || strchr(error, '\n'))
        abort();
}

/* Twice, as a reset does: both must end alike. */
static void load(const struct boot_image *image, struct mem *mem)
{
    char error[BOOT_ERROR_MAX] = "", again_error[BOOT_ERROR_MAX] = "";
    struct vcpu_entry entry, again;
    int r = boot_load(image, mem, error, &entry);

    if (r < 0) {
        check_error(r, error);
        return;
    }
    if (!mem_is_ram(mem, entry.regs.rip, 1) || !mem_is_ram(mem, entry.sregs.gdt.base, entry.sregs.gdt.limit + 1u))
        abort();
    if (mem_discard(mem) < 0 || boot_load(image, mem, again_error, &again) < 0)
        abort();
    if (memcmp(&entry, &again, sizeof(entry)) != 0)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char kernel[64], initrd[64], cmdline[UINT8_MAX * 16 + 1], error[BOOT_ERROR_MAX] = "";
    struct boot_config config = {.kernel = kernel, .cmdline = cmdline};
    struct mem_config mem_config;
    struct boot_image *image = NULL;
    struct mem *mem = NULL;
    int kernel_fd, initrd_fd = -1, r;

    if (size < SETTINGS)
        return 0;
    mem_config = (struct mem_config){.size = (data[0] % MEM_MIB_MAX + 1u) * MiB};
    memset(cmdline, 'c', data[1] * 16u);
    cmdline[data[1] * 16u] = '\0';
    config.acpi.cpus = data[3] % VM_MAX_VCPUS + 1u;
    kernel_fd = make_file(data + SETTINGS, size - SETTINGS, size - SETTINGS, kernel, sizeof(kernel));
    if (data[2]) {
        initrd_fd = make_file("", 0, (size_t)data[2] * INITRD_UNIT, initrd, sizeof(initrd));
        config.initrd = initrd;
    }
    r = boot_open(&config, error, &image);
    if (r < 0) {
        check_error(r, error);
    } else {
        r = mem_new(&mem_config, &mem);
        assert(r == 0);
        load(image, mem);
    }
    boot_close(image);
    mem_free(mem);
    fd_close(initrd_fd);
    fd_close(kernel_fd);
    return 0;
}
