/*
 * ELF files as kernels: loadable segments go to their physical addresses; a note may name a PVH entry point. ELF32 and
 * ELF64 are read into one form. Section headers are not looked at.
 */
#include "config.h"

#include <elf.h>
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "boot/boot-internal.h"

#define PHDRS_MAX 128
#define NOTES_MAX 65536

#define NOTE_HEADER_SIZE 12
#define XEN_NOTE_NAME "Xen"
#define XEN_ELFNOTE_PHYS32_ENTRY 18

struct phdr {
    uint32_t type;
    uint64_t offset, vaddr, paddr, filesz, memsz, align;
};

struct ehdr {
    bool is64;
    uint16_t type, machine, phentsize, phnum;
    uint64_t entry, phoff;
};

bool boot_elf_found(const uint8_t *head, size_t len)
{
    return len >= SELFMAG && memcmp(head, ELFMAG, SELFMAG) == 0;
}

static int read_ehdr(const struct boot_file *file, const uint8_t *head, size_t len, struct ehdr *ret, char *error)
{
    size_t need;

    if (len < EI_NIDENT)
        return boot_fail(error, file, EINVAL, "the file has %zu bytes, an ELF header needs %zu", len, sizeof(Elf32_Ehdr));
    if (head[EI_CLASS] != ELFCLASS32 && head[EI_CLASS] != ELFCLASS64)
        return boot_fail(error, file, EINVAL, "e_ident: class %u is neither %u (32 bit) nor %u (64 bit)", head[EI_CLASS],
                         ELFCLASS32, ELFCLASS64);
    if (head[EI_DATA] != ELFDATA2LSB)
        return boot_fail(error, file, EINVAL, "e_ident: data encoding %u is not %u (little-endian)", head[EI_DATA],
                         ELFDATA2LSB);
    ret->is64 = head[EI_CLASS] == ELFCLASS64;
    need = ret->is64 ? sizeof(Elf64_Ehdr) : sizeof(Elf32_Ehdr);
    if (len < need)
        return boot_fail(error, file, EINVAL, "the file has %zu bytes, an ELF header needs %zu", len, need);
#define TAKE(Ehdr)                      \
    do {                                \
        Ehdr e;                         \
        memcpy(&e, head, sizeof(e));    \
        ret->type = e.e_type;           \
        ret->machine = e.e_machine;     \
        ret->phentsize = e.e_phentsize; \
        ret->phnum = e.e_phnum;         \
        ret->entry = e.e_entry;         \
        ret->phoff = e.e_phoff;         \
    } while (0)
    if (ret->is64)
        TAKE(Elf64_Ehdr);
    else
        TAKE(Elf32_Ehdr);
#undef TAKE
    return 0;
}

static int check_ehdr(const struct boot_file *file, const struct ehdr *e, char *error)
{
    unsigned int machine = e->is64 ? EM_X86_64 : EM_386;
    size_t phentsize = e->is64 ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr);
    uint64_t size = (uint64_t)e->phnum * phentsize;

    if (e->type != ET_EXEC)
        return boot_fail(error, file, EINVAL, "e_type %u is not %u (executable)", e->type, ET_EXEC);
    if (e->machine != machine)
        return boot_fail(error, file, EINVAL, "e_machine %u is not %u (x86, %d bit)", e->machine, machine,
                         e->is64 ? 64 : 32);
    if (e->phentsize != phentsize)
        return boot_fail(error, file, EINVAL, "e_phentsize %u is not %zu", e->phentsize, phentsize);
    if (e->phnum == 0 || e->phnum > PHDRS_MAX)
        return boot_fail(error, file, EINVAL, "e_phnum %u is not within 1 and %d", e->phnum, PHDRS_MAX);
    if (e->phoff > file->size || size > file->size - e->phoff)
        return boot_fail(error, file, EINVAL, "e_phoff 0x%llx with e_phnum %u is beyond the file's %llu bytes",
                         (unsigned long long)e->phoff, e->phnum, (unsigned long long)file->size);
    return 0;
}

static struct phdr take_phdr(const uint8_t *data, bool is64)
{
    if (is64) {
        Elf64_Phdr p;

        memcpy(&p, data, sizeof(p));
        return (struct phdr){p.p_type, p.p_offset, p.p_vaddr, p.p_paddr, p.p_filesz, p.p_memsz, p.p_align};
    } else {
        Elf32_Phdr p;

        memcpy(&p, data, sizeof(p));
        return (struct phdr){p.p_type, p.p_offset, p.p_vaddr, p.p_paddr, p.p_filesz, p.p_memsz, p.p_align};
    }
}

static int check_extent(const struct boot_file *file, unsigned int index, const struct phdr *p, char *error)
{
    if (p->offset > file->size || p->filesz > file->size - p->offset)
        return boot_fail(error, file, EINVAL,
                         "program header %u: p_offset 0x%llx with p_filesz 0x%llx is beyond the file's %llu bytes", index,
                         (unsigned long long)p->offset, (unsigned long long)p->filesz, (unsigned long long)file->size);
    return 0;
}

static int add_segment(struct boot_image *image, unsigned int index, const struct phdr *p, char *error)
{
    const struct boot_file *file = &image->kernel;

    if (p->memsz == 0 && p->filesz == 0)
        return 0;
    if (p->filesz > p->memsz)
        return boot_fail(error, file, EINVAL, "program header %u: p_filesz 0x%llx exceeds p_memsz 0x%llx", index,
                         (unsigned long long)p->filesz, (unsigned long long)p->memsz);
    if (p->memsz > UINT64_MAX - p->paddr)
        return boot_fail(error, file, EINVAL, "program header %u: p_paddr 0x%llx with p_memsz 0x%llx wraps", index,
                         (unsigned long long)p->paddr, (unsigned long long)p->memsz);
    if (image->segment_count == BOOT_MAX_SEGMENTS)
        return boot_fail(error, file, EINVAL, "program header %u: more than %d segments to load", index,
                         BOOT_MAX_SEGMENTS);
    image->segments[image->segment_count++] = (struct boot_segment){.offset = p->offset,
                                                                    .file_size = p->filesz,
                                                                    .vaddr = p->vaddr,
                                                                    .paddr = p->paddr,
                                                                    .mem_size = p->memsz,
                                                                    .index = index};
    return 0;
}

/* -- notes -------------------------------------------------------------------- */

/* Name and descriptor are each padded, counted from the start of the note. */
static int parse_notes(const struct boot_file *file, const uint8_t *data, size_t len, size_t align, struct boot_elf *ret,
                       char *error)
{
    size_t at = 0;

    while (len - at >= NOTE_HEADER_SIZE) {
        uint32_t namesz = le32_get(data + at), descsz = le32_get(data + at + 4), type = le32_get(data + at + 8);
        uint64_t desc = align_up((uint64_t)NOTE_HEADER_SIZE + namesz, align), end = desc + descsz;
        const uint8_t *note = data + at;

        if (end > len - at)
            return boot_fail(error, file, EINVAL, "note: n_namesz %u with n_descsz %u exceeds the %zu bytes left", namesz,
                             descsz, len - at - NOTE_HEADER_SIZE);
        if (type == XEN_ELFNOTE_PHYS32_ENTRY && namesz == sizeof(XEN_NOTE_NAME) &&
            memcmp(note + NOTE_HEADER_SIZE, XEN_NOTE_NAME, sizeof(XEN_NOTE_NAME)) == 0) {
            if (descsz != 4 && descsz != 8)
                return boot_fail(error, file, EINVAL, "note XEN_ELFNOTE_PHYS32_ENTRY: n_descsz %u is neither 4 nor 8",
                                 descsz);
            ret->pvh_entry = descsz == 4 ? le32_get(note + desc) : le64_get(note + desc);
            ret->has_pvh_entry = true;
            return 0;
        }
        end = align_up(end, align);
        if (end >= len - at)
            break;
        at += (size_t)end;
    }
    return 0;
}

static int read_notes(const struct boot_file *file, unsigned int index, const struct phdr *p, struct boot_elf *ret,
                      char *error)
{
    _cleanup_free_ uint8_t *data = NULL;
    int r;

    if (p->filesz > NOTES_MAX)
        return boot_fail(error, file, EINVAL, "program header %u: notes of 0x%llx bytes (p_filesz) exceed 0x%x", index,
                         (unsigned long long)p->filesz, NOTES_MAX);
    if (p->filesz == 0)
        return 0;
    data = malloc((size_t)p->filesz);
    if (!data)
        return boot_fail(error, file, ENOMEM, "out of memory");
    r = boot_read(file, error, "its notes", data, (size_t)p->filesz, p->offset);
    if (r < 0)
        return r;
    return parse_notes(file, data, (size_t)p->filesz, p->align == 8 ? 8 : 4, ret, error);
}

int boot_elf_open(struct boot_image *image, const uint8_t *head, size_t len, struct boot_elf *ret, char *error)
{
    const struct boot_file *file = &image->kernel;
    uint8_t phdrs[PHDRS_MAX * sizeof(Elf64_Phdr)];
    struct ehdr e = {0};
    int r = read_ehdr(file, head, len, &e, error);

    if (r < 0)
        return r;
    r = check_ehdr(file, &e, error);
    if (r < 0)
        return r;
    r = boot_read(file, error, "program headers", phdrs, (size_t)e.phnum * e.phentsize, e.phoff);
    for (unsigned int i = 0; i < e.phnum && r == 0; i++) {
        struct phdr p = take_phdr(phdrs + (size_t)i * e.phentsize, e.is64);

        if (p.type != PT_LOAD && p.type != PT_NOTE)
            continue;
        r = check_extent(file, i, &p, error);
        if (r == 0 && p.type == PT_LOAD)
            r = add_segment(image, i, &p, error);
        else if (r == 0 && !ret->has_pvh_entry)
            r = read_notes(file, i, &p, ret, error);
    }
    if (r < 0)
        return r;
    if (image->segment_count == 0)
        return boot_fail(error, file, EINVAL, "e_phnum %u program headers, none of them to load", e.phnum);
    image->segment_word = "program header";
    image->paddr_field = "p_paddr";
    image->size_field = "p_memsz";
    ret->entry = e.entry;
    return 0;
}
