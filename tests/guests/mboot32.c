/*
 * A multiboot 1 guest that prints what its loader handed over, for tests of the loader. 32-bit, ring 0, no paging, no
 * interrupts: nothing stands between the loader and the print.
 */
#include <stdint.h>

#define COM1 0x3f8
#define EXIT_PORT 0xf4
#define LOADER_MAGIC 0x2badb002u
#define SUM_MAX 65536u

#define HAS_MEM 0x001u
#define HAS_CMDLINE 0x004u
#define HAS_MODULES 0x008u
#define HAS_MMAP 0x040u
#define HAS_LOADER 0x200u

struct info {
    uint32_t flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr, syms[4], mmap_length, mmap_addr;
    uint32_t drives_length, drives_addr, config, loader_name;
};

struct module {
    uint32_t start, end, string, reserved;
};

struct mmap_entry {
    uint32_t size;
    uint32_t base[2], length[2], type;
};

void mboot_main(uint32_t magic, const struct info *info);

static inline void outb(uint16_t port, uint8_t v)
{
    __asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(port));
}

static inline uint8_t inb(uint16_t port)
{
    uint8_t v;

    __asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port));
    return v;
}

static void put(char c)
{
    while (!(inb(COM1 + 5) & 0x20))
        ;
    outb(COM1, (uint8_t)c);
}

static void puts_raw(const char *s)
{
    while (*s)
        put(*s++);
}

static void put_hex(const char *name, uint32_t high, uint32_t low)
{
    uint32_t words[2] = {high, low};
    int started = 0;

    puts_raw(name);
    for (int i = 15; i >= 0; i--) {
        uint32_t digit = words[i < 8] >> (i % 8 * 4) & 15;

        started |= digit != 0 || i == 0;
        if (started)
            put("0123456789abcdef"[digit]);
    }
}

static void print_mmap(const struct info *info)
{
    uint32_t at = info->mmap_addr, end = at + info->mmap_length;

    while (at + sizeof(struct mmap_entry) <= end) {
        const struct mmap_entry *e = (const struct mmap_entry *)at;

        put_hex("mboot32: mmap base=0x", e->base[1], e->base[0]);
        put_hex(" length=0x", e->length[1], e->length[0]);
        put_hex(" type=0x", 0, e->type);
        puts_raw("\n");
        at += sizeof(e->size) + e->size;
    }
}

static void print_modules(const struct info *info)
{
    const struct module *m = (const struct module *)info->mods_addr;

    for (uint32_t i = 0; i < info->mods_count; i++, m++) {
        uint32_t size = m->end - m->start, sum = 0;

        for (uint32_t b = 0; b < size && b < SUM_MAX; b++)
            sum += ((const uint8_t *)m->start)[b];
        put_hex("mboot32: module start=0x", 0, m->start);
        put_hex(" end=0x", 0, m->end);
        put_hex(" sum=0x", 0, sum);
        puts_raw(" string=");
        puts_raw(m->string ? (const char *)m->string : "");
        puts_raw("\n");
    }
}

/* The number behind the word exit=, or -1. */
static int exit_code(const char *s)
{
    int code = 0;

    for (; *s; s++)
        if (s[0] == 'e' && s[1] == 'x' && s[2] == 'i' && s[3] == 't' && s[4] == '=') {
            for (s += 5; *s >= '0' && *s <= '9'; s++)
                code = code * 10 + (*s - '0');
            return code;
        }
    return -1;
}

void mboot_main(uint32_t magic, const struct info *info)
{
    int code = -1;

    put_hex("mboot32: magic=0x", 0, magic);
    puts_raw("\n");
    if (magic != LOADER_MAGIC)
        return;
    put_hex("mboot32: flags=0x", 0, info->flags);
    puts_raw("\n");
    if (info->flags & HAS_LOADER) {
        puts_raw("mboot32: loader=");
        puts_raw((const char *)info->loader_name);
        puts_raw("\n");
    }
    if (info->flags & HAS_CMDLINE) {
        puts_raw("mboot32: cmdline=");
        puts_raw((const char *)info->cmdline);
        puts_raw("\n");
        code = exit_code((const char *)info->cmdline);
    }
    if (info->flags & HAS_MEM) {
        put_hex("mboot32: mem lower=0x", 0, info->mem_lower);
        put_hex(" upper=0x", 0, info->mem_upper);
        puts_raw("\n");
    }
    if (info->flags & HAS_MMAP)
        print_mmap(info);
    if (info->flags & HAS_MODULES)
        print_modules(info);
    puts_raw("mboot32: done\n");
    if (code >= 0)
        outb(EXIT_PORT, (uint8_t)code);
}
