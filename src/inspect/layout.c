#include "config.h"

#include "inspect/layout.h"

#include <errno.h>

#include "inspect/btf-check.h"

#ifdef HAVE_LIBBPF

#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>

/* How deep structs without a name may nest, and how many names a type may have. */
#define MAX_NESTING 8
#define MAX_MODIFIERS 32
#define POINTER_SIZE 8u

struct member {
    uint32_t offset; /* bytes */
    uint32_t type;
};

/* The type behind names and qualifiers, or NULL. */
static const struct btf_type *plain_type(const struct btf *btf, uint32_t id)
{
    for (int i = 0; i < MAX_MODIFIERS; i++) {
        const struct btf_type *t = btf__type_by_id(btf, id);

        if (!t || !(btf_is_mod(t) || btf_is_typedef(t)))
            return t;
        id = t->type;
    }
    return NULL;
}

/* Look for a member, also in structs and unions that have no name; offsets are added up. `budget` bounds the work. */
static bool find_member(const struct btf *btf, const struct btf_type *t, const char *name, uint64_t base, int depth,
                        unsigned int *budget, struct member *ret)
{
    const struct btf_member *m = btf_members(t);

    for (uint16_t i = 0; i < btf_vlen(t) && *budget > 0; i++, m++) {
        const char *its_name = btf__name_by_offset(btf, m->name_off);
        uint64_t bit = base * 8 + btf_member_bit_offset(t, i);
        const struct btf_type *inner;

        --*budget;
        if (its_name && strcmp(its_name, name) == 0) {
            if (bit % 8 || btf_member_bitfield_size(t, i) || bit / 8 > UINT32_MAX)
                return false;
            *ret = (struct member){.offset = (uint32_t)(bit / 8), .type = m->type};
            return true;
        }
        if (its_name && *its_name)
            continue;
        inner = plain_type(btf, m->type);
        if (inner && btf_is_composite(inner) && bit % 8 == 0 && depth < MAX_NESTING &&
            find_member(btf, inner, name, bit / 8, depth + 1, budget, ret))
            return true;
    }
    return false;
}

enum shape {
    SHAPE_COMM,      /* char[16] */
    SHAPE_PID,       /* a number of 4 bytes */
    SHAPE_TIME,      /* of 8 bytes */
    SHAPE_LIST,      /* struct list_head */
    SHAPE_POINTER,   /* to anything */
    SHAPE_MM,        /* to struct mm_struct */
};

static bool is_int(const struct btf_type *t, uint32_t size)
{
    return t && btf_is_int(t) && t->size == size;
}

static bool is_struct(const struct btf *btf, const struct btf_type *t, const char *name)
{
    const char *its_name = t ? btf__name_by_offset(btf, t->name_off) : NULL;

    return its_name && btf_is_struct(t) && strcmp(its_name, name) == 0;
}

static bool has_shape(const struct btf *btf, uint32_t type, enum shape shape)
{
    const struct btf_type *t = plain_type(btf, type);

    if (!t)
        return false;
    switch (shape) {
    case SHAPE_COMM:
        return btf_is_array(t) && btf_array(t)->nelems == INSPECT_COMM_SIZE &&
               is_int(plain_type(btf, btf_array(t)->type), 1);
    case SHAPE_PID:
        return is_int(t, 4);
    case SHAPE_TIME:
        return is_int(t, 8);
    case SHAPE_LIST:
        return is_struct(btf, t, "list_head") && t->size == 2 * POINTER_SIZE;
    case SHAPE_POINTER:
        return btf_is_ptr(t);
    case SHAPE_MM:
        return btf_is_ptr(t) && is_struct(btf, plain_type(btf, t->type), "mm_struct");
    }
    return false;
}

static uint32_t shape_size(enum shape shape)
{
    switch (shape) {
    case SHAPE_COMM:
    case SHAPE_LIST:
        return 16;
    case SHAPE_PID:
        return 4;
    default:
        return 8;
    }
}

static const struct wanted {
    const char *structure, *member;
    enum shape shape;
    size_t to; /* in struct inspect_layout */
    bool optional;
} wanted[] = {
    {"list_head", "next", SHAPE_POINTER, offsetof(struct inspect_layout, next), false},
    {"list_head", "prev", SHAPE_POINTER, offsetof(struct inspect_layout, prev), false},
    {"mm_struct", "pgd", SHAPE_POINTER, offsetof(struct inspect_layout, pgd), false},
    {"task_struct", "comm", SHAPE_COMM, offsetof(struct inspect_layout, comm), false},
    {"task_struct", "pid", SHAPE_PID, offsetof(struct inspect_layout, pid), false},
    {"task_struct", "tgid", SHAPE_PID, offsetof(struct inspect_layout, tgid), false},
    {"task_struct", "tasks", SHAPE_LIST, offsetof(struct inspect_layout, tasks), false},
    {"task_struct", "mm", SHAPE_MM, offsetof(struct inspect_layout, mm), false},
    {"task_struct", "start_time", SHAPE_TIME, offsetof(struct inspect_layout, start), true},
};

/* The bytes of struct task_struct that are read at once. */
static int set_span(struct inspect_layout *l, struct inspect_why *why)
{
    uint32_t first = UINT32_MAX, end = 0;

    for (size_t i = 0; i < ARRAY_SIZE(wanted); i++) {
        uint32_t at;

        if (strcmp(wanted[i].structure, "task_struct") != 0 || (wanted[i].optional && !l->has_start))
            continue;
        memcpy(&at, (const char *)l + wanted[i].to, sizeof(at));
        first = MIN(first, at);
        end = MAX(end, at + shape_size(wanted[i].shape));
    }
    if (end - first > INSPECT_TASK_SPAN_MAX)
        return inspect_because(why, -ENOENT, "BTF: struct task_struct is %u bytes wide, at most %u are taken", end - first,
                               INSPECT_TASK_SPAN_MAX);
    l->span_start = first;
    l->span_len = end - first;
    return 0;
}

static int read_members(const struct btf *btf, struct inspect_layout *l, struct inspect_why *why)
{
    for (size_t i = 0; i < ARRAY_SIZE(wanted); i++) {
        const struct wanted *w = &wanted[i];
        int32_t id = btf__find_by_name_kind(btf, w->structure, BTF_KIND_STRUCT);
        const struct btf_type *t = id > 0 ? btf__type_by_id(btf, (uint32_t)id) : NULL;
        unsigned int budget = 65536;
        struct member m;

        if (!t)
            return inspect_because(why, -ENOENT, "BTF: there is no struct %s", w->structure);
        if (!find_member(btf, t, w->member, 0, 0, &budget, &m) || !has_shape(btf, m.type, w->shape) ||
            m.offset > t->size || t->size - m.offset < shape_size(w->shape)) {
            if (w->optional)
                continue;
            return inspect_because(why, -ENOENT, "BTF: struct %s has no member %s as kernels have it", w->structure,
                                   w->member);
        }
        memcpy((char *)l + w->to, &m.offset, sizeof(m.offset));
        l->has_start |= w->optional;
    }
    return set_span(l, why);
}

static void be_silent(void)
{
    libbpf_set_print(NULL);
}

int inspect_layout_read(const void *blob, size_t len, struct inspect_layout *ret, struct inspect_why *why)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct inspect_layout l = {.has_start = 0};
    struct btf *btf;
    int r = btf_blob_check(blob, len, why);

    if (r < 0)
        return r;
    pthread_once(&once, be_silent);
    btf = btf__new(blob, (uint32_t)len);
    r = (int)libbpf_get_error(btf);
    if (r < 0)
        return inspect_because(why, r == -ENOMEM ? r : -EBADMSG, "BTF: libbpf cannot read it: %s", strerror(-r));
    r = read_members(btf, &l, why);
    btf__free(btf);
    if (r == 0)
        *ret = l;
    return r;
}

#else

int inspect_layout_read(const void *blob, size_t len, struct inspect_layout *ret, struct inspect_why *why)
{
    return inspect_because(why, -EOPNOTSUPP, "this vmctl was built without libbpf");
}

#endif
