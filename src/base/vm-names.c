#include "config.h"

#include "base/vm-names.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/paths.h"

static int add_name(struct vm_names *v, const char *name)
{
    char **bigger = realloc(v->names, (v->count + 1) * sizeof(*bigger));

    if (!bigger)
        return -ENOMEM;
    v->names = bigger;
    bigger[v->count] = strdup(name);
    if (!bigger[v->count])
        return -ENOMEM;
    v->count++;
    return 0;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

int vm_names_scan(const char *runtime_dir, struct vm_names *ret)
{
    struct vm_names v = {0};
    DIR *d = opendir(runtime_dir);
    struct dirent *e;
    int r = 0;

    if (!d && errno != ENOENT)
        return -errno;
    while (d && r == 0 && (e = readdir(d))) {
        struct stat st;

        if (vm_name_valid(e->d_name) && fstatat(dirfd(d), e->d_name, &st, 0) == 0 && S_ISDIR(st.st_mode))
            r = add_name(&v, e->d_name);
    }
    if (d)
        closedir(d);
    if (r < 0) {
        vm_names_clear(&v);
        return r;
    }
    if (v.count > 1)
        qsort(v.names, v.count, sizeof(*v.names), by_name);
    *ret = v;
    return 0;
}

void vm_names_clear(struct vm_names *v)
{
    for (size_t i = 0; i < v->count; i++)
        free(v->names[i]);
    free(v->names);
    *v = (struct vm_names){0};
}
