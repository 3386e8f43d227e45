#include "config.h"

#include "boot-images.h"

#include <assert.h>
#include <elf.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "base/bytes.h"
#include "base/fd.h"
#include "base/util.h"

static void fill(struct test_image *im, size_t from, size_t to)
{
    assert(to <= sizeof(im->data));
    for (size_t i = from; i < to; i++)
        im->data[i] = test_image_byte(i);
    im->len = to;
}

/* Offsets are those of the kernel's boot protocol, by hand: the loader takes them from a header file. */
void build_bzimage(struct test_image *im)
{
    uint8_t *d = im->data;

    memset(d, 0, TEST_BZ_PAYLOAD);
    fill(im, TEST_BZ_PAYLOAD, TEST_BZ_PAYLOAD + TEST_BZ_SIZE + TEST_BZ_SIGNATURE);
    /* Bytes outside of the header, which must not reach boot_params. */
    memset(d, 0x55, 0x1f1);
    memset(d + 0x26c, 0x55, 0x100);
    d[0x1f1] = 4;                           /* setup_sects */
    le32_put(d + 0x1f4, TEST_BZ_SIZE / 16); /* syssize */
    le16_put(d + 0x1fe, 0xaa55);            /* boot_flag */
    d[0x200] = 0xeb;
    d[0x201] = 0x6a; /* header ends at 0x26c */
    memcpy(d + 0x202, "HdrS", 4);
    le16_put(d + 0x206, 0x20f);             /* version */
    d[0x211] = 1;                           /* loadflags: LOADED_HIGH */
    le32_put(d + 0x214, 0x100000);          /* code32_start */
    le32_put(d + 0x22c, 0x7fffffff);        /* initrd_addr_max */
    le32_put(d + 0x230, TEST_BZ_ALIGN);     /* kernel_alignment */
    d[0x234] = 1;                           /* relocatable_kernel */
    d[0x235] = 21;                          /* min_alignment */
    le16_put(d + 0x236, 0x7f);              /* xloadflags */
    le32_put(d + 0x238, 2047);              /* cmdline_size */
    le64_put(d + 0x250, 0x12345678);        /* setup_data: not the loader's, to be cleared */
    le64_put(d + 0x258, TEST_BZ_PREF);      /* pref_address */
    le32_put(d + 0x260, TEST_BZ_INIT_SIZE); /* init_size */
}

/* "Xen" note 18 with a 4-byte entry point, after a note that is not it. */
static size_t put_notes(uint8_t *d)
{
    le32_put(d, 4);
    le32_put(d + 4, 5);
    le32_put(d + 8, 18);
    memcpy(d + 12, "GNU\0\1\2\3\4\5\0\0\0", 12);
    le32_put(d + 24, 4);
    le32_put(d + 28, 4);
    le32_put(d + 32, 18);
    memcpy(d + 36, "Xen", 4);
    le32_put(d + 40, TEST_ELF_ENTRY);
    return 44;
}

static void build_elf(struct test_image *im, bool is64)
{
    const uint64_t vo = is64 ? TEST_ELF_VOFFSET : 0;
    size_t notes;

    memset(im->data, 0, TEST_ELF_TEXT);
    fill(im, TEST_ELF_TEXT, TEST_ELF_DATA + TEST_ELF_DATA_SIZE);
    memcpy(im->data, ELFMAG, SELFMAG);
    im->data[EI_CLASS] = is64 ? ELFCLASS64 : ELFCLASS32;
    im->data[EI_DATA] = ELFDATA2LSB;
    im->data[EI_VERSION] = EV_CURRENT;
    notes = put_notes(im->data + TEST_ELF_NOTE);
#define PUT(Ehdr, Phdr, machine)                                                                                   \
    do {                                                                                                           \
        Ehdr *e = (Ehdr *)im->data;                                                                                \
        Phdr *p = (Phdr *)(e + 1);                                                                                 \
        e->e_type = ET_EXEC;                                                                                       \
        e->e_machine = machine;                                                                                    \
        e->e_version = EV_CURRENT;                                                                                 \
        e->e_entry = (__typeof__(e->e_entry))(vo + TEST_ELF_ENTRY);                                                \
        e->e_phoff = sizeof(*e);                                                                                   \
        e->e_ehsize = sizeof(*e);                                                                                  \
        e->e_phentsize = sizeof(*p);                                                                               \
        e->e_phnum = 3;                                                                                            \
        p[0] = (Phdr){                                                                                             \
            .p_type = PT_NOTE, .p_offset = TEST_ELF_NOTE, .p_filesz = notes, .p_memsz = notes, .p_align = 4};      \
        p[1] = (Phdr){.p_type = PT_LOAD,                                                                           \
                      .p_offset = TEST_ELF_TEXT,                                                                   \
                      .p_vaddr = (__typeof__(p->p_vaddr))(vo + TEST_ELF_TEXT_ADDR),                                \
                      .p_paddr = TEST_ELF_TEXT_ADDR,                                                               \
                      .p_filesz = TEST_ELF_TEXT_SIZE,                                                              \
                      .p_memsz = TEST_ELF_TEXT_SIZE};                                                              \
        p[2] = (Phdr){.p_type = PT_LOAD,                                                                           \
                      .p_offset = TEST_ELF_DATA,                                                                   \
                      .p_vaddr = (__typeof__(p->p_vaddr))(vo + TEST_ELF_DATA_ADDR),                                \
                      .p_paddr = TEST_ELF_DATA_ADDR,                                                               \
                      .p_filesz = TEST_ELF_DATA_SIZE,                                                              \
                      .p_memsz = 2 * TEST_ELF_DATA_SIZE};                                                          \
    } while (0)
    if (is64)
        PUT(Elf64_Ehdr, Elf64_Phdr, EM_X86_64);
    else
        PUT(Elf32_Ehdr, Elf32_Phdr, EM_386);
#undef PUT
}

void build_elf64(struct test_image *im)
{
    build_elf(im, true);
}

void build_elf32(struct test_image *im)
{
    build_elf(im, false);
}

void put_multiboot_header(uint8_t *at, uint32_t flags, const uint32_t *addresses)
{
    le32_put(at, 0x1badb002);
    le32_put(at + 4, flags);
    le32_put(at + 8, 0u - 0x1badb002u - flags);
    if (addresses)
        memcpy(at + 12, addresses, 5 * sizeof(*addresses));
}

void build_multiboot_elf(struct test_image *im)
{
    Elf32_Phdr *p = (Elf32_Phdr *)(im->data + TEST_PHDR32(0));

    build_elf(im, false);
    p[0].p_type = PT_NULL;
    put_multiboot_header(im->data + TEST_ELF_TEXT, 0, NULL);
}

void build_multiboot_flat(struct test_image *im)
{
    /* The file has 0x20 bytes before what is loaded. */
    const uint32_t addresses[] = {
        TEST_MB_LOAD_ADDR + TEST_MB_HEADER - 0x20,
        TEST_MB_LOAD_ADDR,
        TEST_MB_LOAD_ADDR + TEST_MB_LOAD_SIZE,
        TEST_MB_LOAD_ADDR + TEST_MB_LOAD_SIZE + TEST_MB_BSS_SIZE,
        TEST_MB_ENTRY,
    };

    fill(im, 0, TEST_MB_FILE_SIZE);
    put_multiboot_header(im->data + TEST_MB_HEADER, 0x10003, addresses);
}

int test_image_file(const void *data, size_t len, char *path, size_t path_len)
{
    int fd = memfd_create("image", MFD_CLOEXEC);

    assert(fd >= 0);
    if (fd_write_all(fd, data, len) < 0)
        assert(!"memfd");
    snprintf(path, path_len, "/proc/self/fd/%d", fd);
    return fd;
}

struct boot_attempt boot_attempt(const struct test_image *im, uint64_t mem_size, size_t initrd_size, const char *cmdline)
{
    struct mem_config mem_config = {.size = mem_size};
    struct boot_attempt a = {.r = 0};
    char kernel[64], initrd[64];
    struct boot_config config = {.kernel = kernel, .cmdline = cmdline, .acpi = {.cpus = 2}};
    int kernel_fd = test_image_file(im->data, im->len, kernel, sizeof(kernel)), initrd_fd = -1;

    if (initrd_size > 0) {
        _cleanup_free_ uint8_t *data = malloc(initrd_size);

        assert(data);
        for (size_t i = 0; i < initrd_size; i++)
            data[i] = test_image_byte(i);
        initrd_fd = test_image_file(data, initrd_size, initrd, sizeof(initrd));
        config.initrd = initrd;
    }
    if (mem_new(&mem_config, &a.mem) < 0)
        assert(!"guest memory");
    a.r = boot_open(&config, a.error, &a.image);
    if (a.r == 0)
        a.r = boot_load(a.image, a.mem, a.error, &a.entry);
    fd_close(initrd_fd);
    fd_close(kernel_fd);
    return a;
}

void boot_attempt_clear(struct boot_attempt *a)
{
    boot_close(a->image);
    mem_free(a->mem);
}
