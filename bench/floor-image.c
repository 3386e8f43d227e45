/* Put a PVH image and what it is handed into guest memory. */
#include "config.h"

#include "floor.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PVH_NOTE 18u
#define PVH_MAGIC 0x336ec578u
#define ADDR_MEMMAP 0x6100u
#define ADDR_CMDLINE 0x7000u
#define CMDLINE_SIZE 2048u
#define ADDR_HIGH 0x100000u
#define LOW_END 0x9fc00u

struct start_info {
    uint32_t magic, version, flags, nr_modules;
    uint64_t modules, cmdline, rsdp, memmap;
    uint32_t memmap_entries, reserved;
};

struct memmap_entry {
    uint64_t addr, size;
    uint32_t type, reserved;
};

static bool inside(uint64_t at, uint64_t len, uint64_t size)
{
    return len <= size && at <= size - len;
}

/* The 32-bit entry point that the PVH note of a PT_NOTE segment names; 0 for none. */
static uint32_t pvh_entry(const uint8_t *note, uint64_t len)
{
    while (len >= sizeof(Elf64_Nhdr)) {
        Elf64_Nhdr n;
        uint64_t name, size;

        memcpy(&n, note, sizeof(n));
        name = sizeof(n) + ((n.n_namesz + UINT64_C(3)) & ~UINT64_C(3));
        size = name + ((n.n_descsz + UINT64_C(3)) & ~UINT64_C(3));
        if (size > len)
            return 0;
        if (n.n_type == PVH_NOTE && n.n_namesz == 4 && n.n_descsz >= 4 && memcmp(note + sizeof(n), "Xen", 4) == 0) {
            uint32_t entry;

            memcpy(&entry, note + name, sizeof(entry));
            return entry;
        }
        note += size;
        len -= size;
    }
    return 0;
}

static int load_segments(struct floor_vm *vm, const uint8_t *image, uint64_t size, uint32_t *ret_entry)
{
    Elf64_Ehdr eh;
    uint32_t entry = 0;

    if (size < sizeof(eh))
        return -ENOEXEC;
    memcpy(&eh, image, sizeof(eh));
    if (memcmp(eh.e_ident, ELFMAG, SELFMAG) != 0 || eh.e_ident[EI_CLASS] != ELFCLASS64 ||
        eh.e_phentsize != sizeof(Elf64_Phdr) || !inside(eh.e_phoff, (uint64_t)eh.e_phnum * sizeof(Elf64_Phdr), size))
        return -ENOEXEC;
    for (unsigned int i = 0; i < eh.e_phnum; i++) {
        Elf64_Phdr ph;

        memcpy(&ph, image + eh.e_phoff + i * sizeof(ph), sizeof(ph));
        if (!inside(ph.p_offset, ph.p_filesz, size))
            return -ENOEXEC;
        if (ph.p_type == PT_NOTE && !entry)
            entry = pvh_entry(image + ph.p_offset, ph.p_filesz);
        if (ph.p_type != PT_LOAD)
            continue;
        if (ph.p_memsz < ph.p_filesz || ph.p_paddr < ADDR_HIGH || !inside(ph.p_paddr, ph.p_memsz, vm->ram_size))
            return -ENOEXEC;
        memcpy(vm->ram + ph.p_paddr, image + ph.p_offset, ph.p_filesz);
    }
    if (!entry)
        return -ENOEXEC;
    *ret_entry = entry;
    return 0;
}

static int open_failed(const char *path)
{
    int e = errno;

    floor_err("%s: %s", path, strerror(e));
    return -e;
}

static int load_image(struct floor_vm *vm, const char *path, uint32_t *ret_entry)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    uint8_t *image;
    int r;

    if (fd < 0)
        return open_failed(path);
    if (fstat(fd, &st) < 0 || st.st_size == 0) {
        close(fd);
        floor_err("%s: not a file with something in it", path);
        return -ENOEXEC;
    }
    image = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    if (image == MAP_FAILED)
        return open_failed(path);
    r = load_segments(vm, image, (uint64_t)st.st_size, ret_entry);
    munmap(image, (size_t)st.st_size);
    if (r < 0)
        floor_err("%s: not a 64-bit ELF image with a PVH entry that fits into %llu MiB", path,
                  (unsigned long long)(vm->ram_size >> 20));
    return r;
}

static int load_start_info(struct floor_vm *vm, const char *cmdline)
{
    struct start_info info = {
        .magic = PVH_MAGIC, .version = 1, .cmdline = ADDR_CMDLINE, .memmap = ADDR_MEMMAP, .memmap_entries = 2};
    struct memmap_entry map[] = {
        {.addr = 0, .size = LOW_END, .type = 1},
        {.addr = ADDR_HIGH, .size = vm->ram_size - ADDR_HIGH, .type = 1},
    };

    if (strlen(cmdline) >= CMDLINE_SIZE) {
        floor_err("command line longer than %u bytes", CMDLINE_SIZE - 1);
        return -E2BIG;
    }
    memcpy(vm->ram + FLOOR_START_INFO, &info, sizeof(info));
    memcpy(vm->ram + ADDR_MEMMAP, map, sizeof(map));
    memcpy(vm->ram + ADDR_CMDLINE, cmdline, strlen(cmdline) + 1);
    return 0;
}

int floor_load(struct floor_vm *vm, const char *path, const char *cmdline, uint32_t *ret_entry)
{
    uint32_t entry = 0;
    int r = load_image(vm, path, &entry);

    if (r == 0)
        r = load_start_info(vm, cmdline);
    if (r == 0)
        *ret_entry = entry;
    return r;
}
