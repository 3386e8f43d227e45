/* Page tables that a guest edits itself, from ring 3: all of memory is mapped there. */
#include "runtime.h"

static uint64_t *free_tables;
static uint64_t in_use;

/* Free tables are chained through their first word. */
uint64_t *table_new(void)
{
    uint64_t *table = free_tables;

    in_use++;
    if (!table)
        return pool_page();
    free_tables = (uint64_t *)table[0];
    table[0] = 0;
    return table;
}

void table_free(uint64_t *table)
{
    memset(table, 0, PAGE_SIZE);
    table[0] = (uint64_t)free_tables;
    free_tables = table;
    in_use--;
}

uint64_t tables_in_use(void)
{
    return in_use;
}

uint64_t *root_new(void)
{
    uint64_t *root = table_new();

    root[0] = boot_pml4[0];
    return root;
}

uint64_t *pte_at(uint64_t *root, uint64_t va, unsigned int level, bool make)
{
    uint64_t *table = root;

    for (unsigned int l = 4; l > level; l--) {
        uint64_t *entry = &table[va >> (12 + 9 * (l - 1)) & 511];

        if (!(*entry & PTE_P)) {
            if (!make)
                return NULL;
            *entry = (uint64_t)table_new() | PTE_P | PTE_W | PTE_U;
        }
        table = table_of(*entry);
    }
    return &table[va >> (12 + 9 * (level - 1)) & 511];
}

static void free_below(uint64_t *table, unsigned int level)
{
    for (unsigned int i = 0; level > 1 && i < 512; i++)
        if ((table[i] & (PTE_P | PTE_PS)) == PTE_P)
            free_below(table_of(table[i]), level - 1);
    table_free(table);
}

void root_free(uint64_t *root)
{
    for (unsigned int i = 1; i < 512; i++)
        if (root[i] & PTE_P)
            free_below(table_of(root[i]), 3);
    table_free(root);
}

bool have_nx(void)
{
    uint32_t r[4];

    syscall(SYS_CPUID, 0x80000001, 0, (uint64_t)r);
    return r[3] >> 20 & 1;
}
