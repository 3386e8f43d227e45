/*
 * Ring 3 of the test guests: what a guest's own file builds on. There is one CPU unless smp_start() was called, and
 * only that first CPU prints, reads lines or takes memory.
 */
#ifndef GUEST_RUNTIME_H
#define GUEST_RUNTIME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernel.h"

#define PAGE_SIZE 4096ul
#define HUGE_SIZE 0x200000ul
#define LINE_SIZE 256
#define LAPIC_BASE 0xfee00000ul

#define PTE_P 0x001ul
#define PTE_W 0x002ul
#define PTE_U 0x004ul
#define PTE_PCD 0x010ul
#define PTE_A 0x020ul
#define PTE_D 0x040ul
#define PTE_PS 0x080ul
#define PTE_NX (1ul << 63)
#define PTE_ADDR 0x000ffffffffff000ul

/* The window of a guest's own mappings: the second PML4 entry. The first one maps all RAM one to one in every root. */
#define WINDOW_BASE 0x8000000000ul

/* Given by each guest: its name, and the option keys it knows (NULL at the end; `exit` and `wait` always are). */
extern const char guest_name[];
extern const char *const guest_options[];
void guest_main(void);

static inline uint64_t syscall(uint64_t nr, uint64_t a, uint64_t b, uint64_t c)
{
    __asm__ volatile("int3"
                     : "+a"(nr), "+D"(a), "+S"(b), "+d"(c)
                     :
                     : "rcx", "r8", "r9", "r10", "r11", "memory", "cc");
    return nr;
}

static inline uint64_t rdtsc(void)
{
    uint32_t lo, hi;

    __asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi));
    return (uint64_t)hi << 32 | lo;
}

static inline void cpu_relax(void)
{
    __asm__ volatile("pause" : : : "memory");
}

static inline uint64_t align_up(uint64_t v, uint64_t to)
{
    return (v + to - 1) & ~(to - 1);
}

/* -- text ------------------------------------------------------------------- */

void *memset(void *to, int c, size_t n);
void *memcpy(void *to, const void *from, size_t n);
size_t strlen(const char *s);
int strcmp(const char *a, const char *b);

/* %s %c %d %u %x, with l for 64 bits, and %%. Longer than 512 bytes is cut. */
void print(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Print `NAME: error TEXT`, then end with exit code 1. */
void fail(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));

/* A decimal or 0x number, whole string. Returns 0, or -1 with *ret untouched. */
int parse_u64(const char *text, uint64_t *ret);

/* The same with K, M, G or T behind it. */
int parse_size(const char *text, uint64_t *ret);

/* Cut text at blanks in place; returns the number of words, at most max (the rest is one past: max + 1). */
unsigned int split_words(char *text, char **words, unsigned int max);

/* -- options and ends -------------------------------------------------------- */

/* The value of KEY=VALUE of the command line, "" for a bare KEY, NULL where it is absent. */
const char *opt_get(const char *key);

/* A numeric option (opt_size: with a unit); a malformed one ends the guest. */
uint64_t opt_u64(const char *key, uint64_t def);
uint64_t opt_size(const char *key, uint64_t def);

/* Leave through port 0xf4; says so and halts where nothing listens there. */
void guest_exit(uint64_t code) __attribute__((noreturn));
void guest_halt(void) __attribute__((noreturn));

/* The ordinary end: exit with `exit=CODE` of the command line, halt without it. */
void guest_finish(void) __attribute__((noreturn));

/* -- input ------------------------------------------------------------------ */

/* Copy the next line without its end to buf[LINE_SIZE]. Returns false when no whole line is there. Never waits. */
bool line_poll(char *buf);

/* The same, waiting for it. */
void line_wait(char *buf);

/* Sleep until a byte came in or ns have passed, whichever is first; may return early. ns > 0. */
void idle_ns(uint64_t ns);

/*
 * Run the rest of `exit [CODE]` and `halt`, the commands every serving guest has. False when words are none of these.
 */
bool common_command(char **words, unsigned int n);

/* -- memory (memory.c) --------------------------------------------------------- */

struct region {
    uint64_t base; /* guest physical */
    uint64_t pages;
};

/* Take the memory map from the loader. Called before guest_main(). */
void memory_init(void);

/*
 * Set aside `pages` for pool_page(), then choose the region: the largest piece of RAM outside of the guest's own
 * memory, from a 2M boundary on, narrowed by the options `base` and `ws`. Also maps all RAM one to one. Ends the
 * guest with an error when there is none.
 */
void memory_setup(uint64_t pool_pages, struct region *ret_region);

bool memory_is_ram(uint64_t base, uint64_t size);

/* Size in bytes of the largest range of RAM. */
uint64_t memory_largest(void);

/* A zeroed page of the pool, which is outside of the region. Ends the guest when the pool is empty. */
uint64_t *pool_page(void);
uint64_t *pool_pages(uint64_t n);

/* Map the GiB that the local APIC lies in one to one, the APIC uncached. Needs nothing set up. */
void memory_map_lapic(void);

/* -- page tables (paging.c) ----------------------------------------------------- */

/* A table for a root: PML4 whose first entry is the one of the boot root. */
uint64_t *root_new(void);

/*
 * The entry that maps va at level 1 (4K) or 2 (2M) in root, with the tables above it made where they are missing (NULL
 * when they are missing and make is false).
 */
uint64_t *pte_at(uint64_t *root, uint64_t va, unsigned int level, bool make);

/* Give back every table of the window of root, and root itself. */
void root_free(uint64_t *root);

uint64_t *table_new(void);
void table_free(uint64_t *table);
uint64_t tables_in_use(void);

static inline uint64_t *table_of(uint64_t entry)
{
    return (uint64_t *)(entry & PTE_ADDR);
}

static inline void root_load(const uint64_t *root)
{
    syscall(SYS_CR3, (uint64_t)root, 0, 0);
}

static inline void invlpg(uint64_t va)
{
    syscall(SYS_INVLPG, va, 0, 0);
}

/* True when the CPU has no-execute pages (the entry code turns them on then). */
bool have_nx(void);

/* -- time (clock.c) -------------------------------------------------------------- */

/* Find the TSC's frequency and print how. Ends the guest when nothing tells. */
void clock_init(void);

uint64_t clock_khz(void);
uint64_t clock_us(uint64_t tsc_delta);

/* -- CPUs (smp.c) ------------------------------------------------------------------ */

/* Start CPUs 1 to n - 1, n from 1 to MAX_CPUS. Ends the guest when one does not come up. */
void smp_start(unsigned int n);
unsigned int smp_cpus(void);

/* Run work(arg, cpu) on every CPU, this one included, and wait for all of them. */
void smp_run(void (*work)(void *arg, unsigned int cpu), void *arg);

#endif
