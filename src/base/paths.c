#include "config.h"

#include "base/paths.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/util.h"

#define GROUP_FILE_MAX (1u << 20)

bool vm_name_valid(const char *name)
{
    size_t len = strlen(name);

    if (len == 0 || len > VM_NAME_MAX || !isalnum((unsigned char)name[0]))
        return false;
    for (const char *p = name; *p; p++)
        if (!isalnum((unsigned char)*p) && !strchr("._-", *p))
            return false;
    return true;
}

int paths_runtime_dir(const char *override, char *buf, size_t len)
{
    const char *xdg = getenv("XDG_RUNTIME_DIR");
    int n;

    if (override)
        n = snprintf(buf, len, "%s", override);
    else if (geteuid() == 0)
        n = snprintf(buf, len, "/run/umbra");
    else if (xdg && *xdg)
        n = snprintf(buf, len, "%s/umbra", xdg);
    else
        return -ENOENT;
    return n < 0 || (size_t)n >= len ? -ENAMETOOLONG : 0;
}

int paths_vm_file(const char *dir, const char *name, const char *file, char *buf, size_t len)
{
    int n = snprintf(buf, len, "%s/%s/%s", dir, name, file);

    return n < 0 || (size_t)n >= len ? -ENAMETOOLONG : 0;
}

int paths_group_id(const char *group, gid_t *ret)
{
    _cleanup_free_ char *text = NULL;
    size_t name_len = strlen(group);
    int r = fd_read_file("/etc/group", GROUP_FILE_MAX, &text, NULL);

    if (r < 0)
        return r;
    /* name:password:number:members */
    for (char *line = text, *next; line; line = next) {
        char *number;

        next = strchr(line, '\n');
        if (next)
            *next++ = '\0';
        if (strncmp(line, group, name_len) != 0 || line[name_len] != ':')
            continue;
        number = strchr(line + name_len + 1, ':');
        if (number && isdigit((unsigned char)number[1])) {
            *ret = (gid_t)strtoul(number + 1, NULL, 10);
            return 0;
        }
    }
    return -ENOENT;
}
