#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "exporter/page.h"

/* A family with what all VMs say of it. */
struct merged {
    struct page_family family;
    struct om_writer samples; /* as they will be written */
};

struct page_merge {
    struct merged **families; /* sorted by name */
    size_t count;
    uint64_t left_out;
    const char *vm; /* whose page is being added */
    bool failed;    /* memory ran out */
};

int page_merge_new(struct page_merge **ret)
{
    *ret = calloc(1, sizeof(**ret));
    return *ret ? 0 : -ENOMEM;
}

void page_merge_free(struct page_merge *m)
{
    if (!m)
        return;
    for (size_t i = 0; i < m->count; i++) {
        byte_writer_clear(&m->families[i]->samples.out);
        free(m->families[i]);
    }
    free(m->families);
    free(m);
}

/* Where the family is, or belongs. */
static size_t position(const struct page_merge *m, const char *name)
{
    size_t low = 0, high = m->count;

    while (low < high) {
        size_t mid = (low + high) / 2;

        if (strcmp(m->families[mid]->family.name, name) < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

static struct merged *find_or_add(struct page_merge *m, const struct page_family *family)
{
    size_t at = position(m, family->name);
    struct merged **bigger, *f;

    if (at < m->count && strcmp(m->families[at]->family.name, family->name) == 0)
        return m->families[at];
    bigger = reallocarray(m->families, m->count + 1, sizeof(*bigger));
    f = calloc(1, sizeof(*f));
    if (bigger)
        m->families = bigger;
    if (!bigger || !f) {
        free(f);
        return NULL;
    }
    memmove(&m->families[at + 1], &m->families[at], (m->count - at) * sizeof(*m->families));
    m->families[at] = f;
    m->count++;
    f->family = *family;
    return f;
}

static void add_sample(void *opaque, const struct page_family *family, const struct page_sample *sample)
{
    struct page_merge *m = opaque;
    struct merged *f = find_or_add(m, family);
    struct om_label labels[PAGE_MAX_LABELS + 1] = {{PAGE_VM_LABEL, m->vm}};

    if (!f) {
        m->failed = true;
        return;
    }
    if (f->family.type != family->type || strcmp(f->family.unit, family->unit) != 0) {
        m->left_out++;
        return;
    }
    for (size_t i = 0; i < sample->label_count; i++)
        labels[i + 1] = (struct om_label){sample->labels[i].name, sample->labels[i].value};
    f->samples.family.name = f->family.name;
    om_text(&f->samples, sample->suffix, labels, sample->label_count + 1, sample->number);
}

int page_merge_add(struct page_merge *m, const char *vm, const char *text, size_t len, char *error)
{
    int r;

    m->vm = vm;
    r = page_read(text, len, add_sample, m, error);
    return r == 0 && m->failed ? -ENOMEM : r;
}

uint64_t page_merge_left_out(const struct page_merge *m)
{
    return m->left_out;
}

void page_merge_write(const struct page_merge *m, struct om_writer *w)
{
    for (size_t i = 0; i < m->count; i++) {
        const struct merged *f = m->families[i];
        struct om_family family = {
            .name = f->family.name,
            .type = f->family.type,
            .unit = *f->family.unit ? f->family.unit : NULL,
            .help = *f->family.help ? f->family.help : f->family.name,
        };

        om_begin(w, &family);
        byte_write(&w->out, f->samples.out.data, f->samples.out.len);
        w->out.failed |= f->samples.out.failed;
    }
}
