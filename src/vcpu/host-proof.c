#include "config.h"

#include "vcpu/host-internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/util.h"

#define BOOT_ID "/proc/sys/kernel/random/boot_id"
#define TEMP_FILE HOST_PROOF_FILE ".new"
/* A key and its result. */
#define PROOF_MAX (sizeof(struct host_proof_key) + 64)

bool host_proof_key(const char *kvm_path, const char *module_dir, const struct host_info *info,
                    struct host_proof_key *ret)
{
    _cleanup_free_ char *boot = NULL;
    struct stat kvm, module;
    char path[4096];
    int n;

    if (info->module[0] == '\0' || info->by_module == HOST_PAGING_UNKNOWN)
        return false;
    snprintf(path, sizeof(path), "%s/%s", module_dir, info->module);
    if (stat(kvm_path, &kvm) < 0 || !S_ISCHR(kvm.st_mode) || stat(path, &module) < 0 ||
        fd_read_file(BOOT_ID, 64, &boot, NULL) < 0)
        return false;
    boot[strcspn(boot, "\n")] = '\0';
    n = snprintf(ret->text, sizeof(ret->text), "umbra host proof 1\nboot %s\nkvm %u:%u\nmodule %s %ju\nparameter %s\n",
                 boot, major(kvm.st_rdev), minor(kvm.st_rdev), info->module, (uintmax_t)module.st_ino, info->how);
    return n > 0 && (size_t)n < sizeof(ret->text);
}

/* Nobody but root and this user can have written it. */
static bool trusted(int fd, mode_t type)
{
    struct stat st;

    return fstat(fd, &st) == 0 && (st.st_mode & S_IFMT) == type && (st.st_uid == 0 || st.st_uid == geteuid()) &&
           !(st.st_mode & (S_IWGRP | S_IWOTH));
}

static int open_dir(const char *dir)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd >= 0 && !trusted(fd, S_IFDIR))
        fd = fd_close(fd);
    return fd;
}

static bool parse_result(const char *text, struct host_info *info)
{
    char paging[16], ring0[16];
    uint32_t kips;
    int end = 0;

    if (sscanf(text, "result %15s %15s %" SCNu32 "%n", paging, ring0, &kips, &end) != 3 || strcmp(text + end, "\n") != 0)
        return false;
    if (strcmp(paging, "shadow") == 0)
        info->proven = HOST_PAGING_SHADOW;
    else if (strcmp(paging, "tdp") == 0)
        info->proven = HOST_PAGING_TDP;
    else
        return false;
    info->ring0_emulated = strcmp(ring0, "emulated") == 0;
    info->ring0_mips = kips / 1000.0;
    return true;
}

bool host_proof_load(const char *dir, const struct host_proof_key *key, struct host_info *info)
{
    _cleanup_close_ int dir_fd = open_dir(dir), fd = -1;
    size_t key_len = strlen(key->text);
    char text[PROOF_MAX + 1];
    ssize_t n;

    if (dir_fd < 0)
        return false;
    fd = openat(dir_fd, HOST_PROOF_FILE, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 || !trusted(fd, S_IFREG))
        return false;
    n = read(fd, text, PROOF_MAX);
    if (n < 0 || (size_t)n == PROOF_MAX)
        return false;
    text[n] = '\0';
    return (size_t)n > key_len && memcmp(text, key->text, key_len) == 0 && parse_result(text + key_len, info);
}

void host_proof_store(const char *dir, const struct host_proof_key *key, const struct host_info *info)
{
    _cleanup_close_ int dir_fd = open_dir(dir), fd = -1;
    char text[PROOF_MAX];
    int n;

    if (dir_fd < 0 || info->proven == HOST_PAGING_UNKNOWN)
        return;
    n = snprintf(text, sizeof(text), "%sresult %s %s %.0f\n", key->text, host_paging_name(info->proven),
                 info->ring0_emulated ? "emulated" : "native", info->ring0_mips * 1000);
    if (n < 0 || (size_t)n >= sizeof(text))
        return;
    /* Two starts at a time write the same; who reads half of it in between makes a proof of his own. */
    (void)unlinkat(dir_fd, TEMP_FILE, 0);
    fd = openat(dir_fd, TEMP_FILE, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
    if (fd < 0)
        return;
    if (fchmod(fd, 0644) < 0 || fd_write_all(fd, text, (size_t)n) < 0 ||
        renameat(dir_fd, TEMP_FILE, dir_fd, HOST_PROOF_FILE) < 0)
        (void)unlinkat(dir_fd, TEMP_FILE, 0);
}
