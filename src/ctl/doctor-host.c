/* The rules for a host: what the kernel says in files. What KVM can do is proven by umbrad --check-host and vmctl host. */
#include "config.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/paths.h"
#include "base/size.h"
#include "base/vm-names.h"
#include "ctl/doctor.h"
#include "ctl/vms.h"

/* Of memory, before guests are in danger of the OOM killer. */
#define MEMORY_LOW_PERCENT 5

/* The file's first line; the caller's, NULL where it cannot be read. */
static char *read_line(const char *root, const char *path)
{
    char full[PATH_MAX], *line;

    if (snprintf(full, sizeof(full), "%s%s", root, path) >= (int)sizeof(full) || fd_read_file(full, 65536, &line, NULL) < 0)
        return NULL;
    line[strcspn(line, "\n")] = '\0';
    return line;
}

static bool exists(const char *root, const char *path, int mode)
{
    char full[PATH_MAX];

    return snprintf(full, sizeof(full), "%s%s", root, path) < (int)sizeof(full) && access(full, mode) == 0;
}

static void rule_kvm(const char *root, struct findings *f)
{
    struct finding *x;

    if (!exists(root, "/dev/kvm", F_OK)) {
        x = doctor_found(f, SEVERITY_CRITICAL, "KVM", "/dev/kvm is not there");
        doctor_advise(x, "load kvm_amd or kvm_intel; if that fails, virtualisation is off in the firmware");
    } else if (!exists(root, "/dev/kvm", R_OK | W_OK)) {
        x = doctor_found(f, SEVERITY_NOTICE, "KVM", "this user may not open /dev/kvm");
        doctor_advise(x, "only who starts VMs must: usually that is group kvm");
    }
}

static void rule_paging(const char *root, struct findings *f)
{
    static const struct {
        const char *module, *path;
    } parameters[] = {{"kvm_amd npt", "/sys/module/kvm_amd/parameters/npt"}, {"kvm_intel ept", "/sys/module/kvm_intel/parameters/ept"}};

    for (size_t i = 0; i < ARRAY_SIZE(parameters); i++) {
        _cleanup_free_ char *value = read_line(root, parameters[i].path);
        struct finding *x;

        if (!value || (strcmp(value, "Y") != 0 && strcmp(value, "1") != 0))
            continue;
        x = doctor_found(f, SEVERITY_WARNING, "paging", "KVM uses nested page tables (%s=%s): umbrad starts with --paging any only",
                         parameters[i].module, value);
        doctor_advise(x, "umbra-shadow-paging forces shadow paging, while no VM runs");
    }
}

static void rule_userfaultfd(const char *root, struct findings *f)
{
    _cleanup_free_ char *value = read_line(root, "/proc/sys/vm/unprivileged_userfaultfd");
    struct finding *x;

    if (exists(root, "/dev/userfaultfd", R_OK | W_OK) || (value && (geteuid() == 0 || strcmp(value, "0") != 0)))
        return;
    x = doctor_found(f, SEVERITY_INFO, "userfaultfd", "%s", value || exists(root, "/dev/userfaultfd", F_OK)
                                                                 ? "this user may not use userfaultfd"
                                                                 : "this kernel has no userfaultfd");
    doctor_advise(x, "--mmu precise needs it; a rule of udev can give /dev/userfaultfd to the VMs' group");
}

/* A number of /proc/meminfo in KiB. */
static uint64_t meminfo(const char *all, const char *key)
{
    const char *at = strstr(all, key);

    return at ? strtoull(at + strlen(key), NULL, 10) : 0;
}

static void rule_memory(const char *root, struct findings *f)
{
    _cleanup_free_ char *all = NULL;
    char path[PATH_MAX], a[32], b[32];
    uint64_t total, available;
    struct finding *x;

    if (snprintf(path, sizeof(path), "%s/proc/meminfo", root) >= (int)sizeof(path) || fd_read_file(path, 65536, &all, NULL) < 0)
        return;
    total = meminfo(all, "MemTotal:") * KiB;
    available = meminfo(all, "MemAvailable:") * KiB;
    if (total == 0 || available >= total / 100 * MEMORY_LOW_PERCENT)
        return;
    x = doctor_found(f, SEVERITY_WARNING, "memory", "%s of %s are left", size_format(available, a, sizeof(a)),
                     size_format(total, b, sizeof(b)));
    doctor_advise(x, "the kernel may kill a VM for lack of it: end one, or give one less memory");
}

static void rule_group(const char *root, struct findings *f)
{
    gid_t gid, groups[256];
    int n = getgroups(ARRAY_SIZE(groups), groups);
    struct finding *x;

    if (geteuid() == 0 || paths_group_id(UMBRA_GROUP, &gid) < 0 || getegid() == gid)
        return;
    for (int i = 0; i < n; i++)
        if (groups[i] == gid)
            return;
    x = doctor_found(f, SEVERITY_INFO, "access", "this user is not in group %s", UMBRA_GROUP);
    doctor_advise(x, "the system's VMs do not listen to it; membership means power over all of them");
}

static void rule_vms(const char *runtime_dir, struct findings *f)
{
    _cleanup_vm_names_ struct vm_names names = {0};
    int r = vm_names_scan(runtime_dir, &names);
    struct finding *x;

    if (r < 0) {
        x = doctor_found(f, SEVERITY_WARNING, "VMs", "%.100s cannot be read: %s", runtime_dir, strerror(-r));
        doctor_advise(x, "be root, or in group %s", UMBRA_GROUP);
    }
    for (size_t i = 0; i < names.count; i++) {
        char path[PATH_MAX];

        /* Only who was killed leaves its pid file. */
        if (vms_listening(runtime_dir, names.names[i]) || paths_vm_file(runtime_dir, names.names[i], "pid", path, sizeof(path)) < 0 ||
            access(path, F_OK) < 0)
            continue;
        x = doctor_found(f, SEVERITY_WARNING, "VMs", "%s is not running, but left its directory: its daemon was killed", names.names[i]);
        doctor_advise(x, "the journal may tell by whom; its next start takes the directory over");
    }
}

void doctor_examine_host(const char *root, const char *runtime_dir, struct findings *f)
{
    static void (*const rules[])(const char *root, struct findings *f) = {rule_kvm, rule_paging, rule_userfaultfd, rule_memory,
                                                                           rule_group};

    for (size_t i = 0; i < ARRAY_SIZE(rules); i++)
        rules[i](root, f);
    rule_vms(runtime_dir, f);
}
