/* The process, by the names that every Prometheus client has for it. */
#include "config.h"

#include <fcntl.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/util.h"
#include "daemon/metrics-internal.h"

struct process_files {
    int stat, fds; /* /proc/self/stat and /proc/self/fd; -1 where they cannot be opened */
    double started; /* seconds since the epoch */
};

/* What /proc/self/stat says. */
struct process_stat {
    unsigned long long user_ticks, system_ticks, threads, vsize, rss_pages;
};

struct process_files *process_files_open(void)
{
    struct process_files *p = calloc(1, sizeof(*p));
    struct timespec now;

    if (!p)
        return NULL;
    clock_gettime(CLOCK_REALTIME, &now);
    p->started = (double)now.tv_sec + (double)now.tv_nsec / 1e9;
    p->stat = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
    p->fds = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return p;
}

void process_files_close(struct process_files *p)
{
    if (!p)
        return;
    fd_close(p->stat);
    fd_close(p->fds);
    free(p);
}

static bool read_stat(int fd, struct process_stat *ret)
{
    char text[1024], *p;
    ssize_t n = fd < 0 ? -1 : pread(fd, text, sizeof(text) - 1, 0);

    if (n <= 0)
        return false;
    text[n] = '\0';
    /* The command's name may hold anything, closing brackets too; the fields go on behind the last. proc_pid_stat(5). */
    p = strrchr(text, ')');
    return p && sscanf(p + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu %*d %*d %*d %*d %llu %*d %*u %llu %llu",
                       &ret->user_ticks, &ret->system_ticks, &ret->threads, &ret->vsize, &ret->rss_pages) == 5;
}

static void write_stat(struct om_writer *w, const struct process_stat *s)
{
    static const struct om_family threads = {"process_threads", OM_GAUGE, NULL, "Number of threads."};
    static const struct om_family vsize = {"process_virtual_memory_bytes", OM_GAUGE, "bytes", "Virtual memory size."};
    static const struct om_family rss = {"process_resident_memory_bytes", OM_GAUGE, "bytes",
                                         "Resident memory size, guest memory included."};

    om_single_u64(w, &threads, s->threads);
    om_single_u64(w, &vsize, s->vsize);
    om_single_u64(w, &rss, s->rss_pages * (uint64_t)sysconf(_SC_PAGESIZE));
}

void metrics_write_process(struct om_writer *w, const struct metrics_source *source)
{
    static const struct om_family cpu = {"process_cpu_seconds", OM_COUNTER, "seconds",
                                         "User and system CPU time, that of the guest included."};
    static const struct om_family start = {"process_start_time_seconds", OM_GAUGE, "seconds",
                                           "Start of the process, since the epoch."};
    static const struct om_family open_fds = {"process_open_fds", OM_GAUGE, NULL, "Number of open file descriptors."};
    static const struct om_family max_fds = {"process_max_fds", OM_GAUGE, NULL, "The limit of open file descriptors."};
    const struct process_files *p = source->process;
    struct process_stat s;
    struct rlimit limit;
    struct timespec used;
    struct stat st;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    om_single_ns(w, &cpu, (uint64_t)used.tv_sec * NSEC_PER_SEC + (uint64_t)used.tv_nsec);
    om_begin(w, &start);
    om_double(w, NULL, 0, p->started);
    if (read_stat(p->stat, &s))
        write_stat(w, &s);
    /* Linux 6.2 and later give the number of descriptors as the directory's size. */
    if (p->fds >= 0 && fstat(p->fds, &st) == 0 && st.st_size > 0)
        om_single_u64(w, &open_fds, (uint64_t)st.st_size);
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0)
        om_single_u64(w, &max_fds, limit.rlim_cur);
}
