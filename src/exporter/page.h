/*
 * Reading the OpenMetrics page of a VM, and putting the pages of all VMs together as one.
 *
 * A VM's daemon is trusted with its own page only: what it says is checked, taken apart and written anew, never copied. It
 * can use neither names that are the exporter's nor the label that tells VMs apart, and one page that makes no sense takes
 * no other VM's off the air.
 */
#ifndef UMBRA_EXPORTER_PAGE_H
#define UMBRA_EXPORTER_PAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/openmetrics.h"

#define PAGE_MAX_SIZE (2u << 20)
#define PAGE_MAX_LINE 2048u
#define PAGE_MAX_SAMPLES 16384u
#define PAGE_MAX_FAMILIES 1024u
#define PAGE_MAX_LABELS 8u
#define PAGE_MAX_LABEL_VALUE 128u
#define PAGE_MAX_HELP 256u
#define PAGE_MAX_NUMBER 32u
#define PAGE_ERROR_MAX 128u
/* The label that tells VMs apart. */
#define PAGE_VM_LABEL "vm"

struct page_family {
    char name[OM_NAME_MAX + 1];
    enum om_type type;
    char unit[16]; /* "" for none */
    char help[PAGE_MAX_HELP];
};

struct page_label {
    char name[OM_NAME_MAX + 1];
    char value[PAGE_MAX_LABEL_VALUE + 1]; /* as it is, without escapes */
};

struct page_sample {
    const char *suffix; /* what follows the family's name: "_total", "_bucket", ... */
    struct page_label labels[PAGE_MAX_LABELS];
    size_t label_count;
    char number[PAGE_MAX_NUMBER + 1]; /* the value as it was written: a number, NaN, +Inf or -Inf */
};

typedef void page_sample_fn(void *opaque, const struct page_family *family, const struct page_sample *sample);

/*
 * Check a page as a whole, then call `fn` (may be NULL) for each of its samples in order. -EPROTO with `error`
 * (PAGE_ERROR_MAX) set and nothing called, -ENOMEM.
 */
int page_read(const char *text, size_t len, page_sample_fn *fn, void *opaque, char *error);

/* -- all of them -- */

struct page_merge;

int page_merge_new(struct page_merge **ret);
void page_merge_free(struct page_merge *m);

/* Add a VM's page; -EPROTO with `error` set and nothing added, -ENOMEM. */
int page_merge_add(struct page_merge *m, const char *vm, const char *text, size_t len, char *error);

/* Samples that were left out, because VMs do not agree on what their family is. */
uint64_t page_merge_left_out(const struct page_merge *m);

/* Write every family with the samples of all VMs. */
void page_merge_write(const struct page_merge *m, struct om_writer *w);

#endif
