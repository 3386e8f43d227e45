#include "config.h"

#include "daemon/host-limits.h"

#include <inttypes.h>
#include <limits.h>
#include <string.h>
#include <sys/resource.h>

#include "base/fd.h"
#include "base/size.h"
#include "base/util.h"

#define HUGE_PAGES "/sys/kernel/mm/hugepages/hugepages-2048kB"
#define CGROUPS "/sys/fs/cgroup"

/* The number in the file ROOT/DIR/NAME; `otherwise` where there is none, as in "max". */
static uint64_t read_number(const char *root, const char *dir, const char *name, uint64_t otherwise)
{
    _cleanup_free_ char *text = NULL;
    char path[PATH_MAX];
    uint64_t value;

    if (snprintf(path, sizeof(path), "%s%s/%s", root, dir, name) >= (int)sizeof(path) || fd_read_file(path, 4096, &text, NULL) < 0)
        return otherwise;
    text[strcspn(text, "\n")] = '\0';
    return size_parse_u64(text, UINT64_MAX, &value) == 0 ? value : otherwise;
}

/* Where the process's control group is below /sys/fs/cgroup, "/..." in `ret`; false where it is in none of version 2. */
static bool find_group(const char *root, char *ret, size_t size)
{
    _cleanup_free_ char *text = NULL;
    char path[PATH_MAX];
    const char *line;

    if (snprintf(path, sizeof(path), "%s/proc/self/cgroup", root) >= (int)sizeof(path) || fd_read_file(path, 65536, &text, NULL) < 0)
        return false;
    line = strncmp(text, "0::", 3) == 0 ? text : strstr(text, "\n0::");
    if (!line)
        return false;
    line += *line == '\n' ? 4 : 3;
    return *line == '/' && snprintf(ret, size, CGROUPS "%.*s", (int)strcspn(line, "\n"), line) < (int)size;
}

static void read_group(const char *root, struct host_limits *ret)
{
    char group[PATH_MAX];

    if (!find_group(root, group, sizeof(group)))
        return;
    /* A limit of a group above counts as well; the topmost has none. */
    while (strlen(group) > strlen(CGROUPS "/")) {
        ret->memory = MIN(ret->memory, read_number(root, group, "memory.max", HOST_NO_LIMIT));
        ret->tasks = MIN(ret->tasks, read_number(root, group, "pids.max", HOST_NO_LIMIT));
        *strrchr(group, '/') = '\0';
    }
}

static uint64_t resource_limit(int resource)
{
    struct rlimit limit;

    return getrlimit((__rlimit_resource_t)resource, &limit) < 0 || limit.rlim_cur == RLIM_INFINITY ? HOST_NO_LIMIT : limit.rlim_cur;
}

void host_limits_read(const char *root, struct host_limits *ret)
{
    *ret = (struct host_limits){.memory = HOST_NO_LIMIT, .tasks = HOST_NO_LIMIT};
    ret->huge_total = read_number(root, HUGE_PAGES, "nr_hugepages", 0);
    ret->huge_free = read_number(root, HUGE_PAGES, "free_hugepages", 0);
    read_group(root, ret);
    ret->files = resource_limit(RLIMIT_NOFILE);
    ret->threads = resource_limit(RLIMIT_NPROC);
    ret->locked = resource_limit(RLIMIT_MEMLOCK);
}

static void print_bytes(FILE *f, const char *what, uint64_t bytes)
{
    char size[32];

    fprintf(f, "%s: %s\n", what, bytes == HOST_NO_LIMIT ? "no limit" : size_format(bytes, size, sizeof(size)));
}

static void print_count(FILE *f, const char *what, uint64_t count)
{
    if (count == HOST_NO_LIMIT)
        fprintf(f, "%s: no limit\n", what);
    else
        fprintf(f, "%s: %" PRIu64 "\n", what, count);
}

void host_limits_print(const struct host_limits *limits, FILE *f)
{
    fprintf(f, "huge pages of 2 MiB: %" PRIu64 " of %" PRIu64 " free\n", limits->huge_free, limits->huge_total);
    print_bytes(f, "memory limit of the control group", limits->memory);
    print_count(f, "thread limit of the control group", limits->tasks);
    print_count(f, "open files at most", limits->files);
    print_count(f, "threads of the user at most", limits->threads);
    print_bytes(f, "locked memory at most", limits->locked);
}
