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

#define ACCOUNT_FILE_MAX (1u << 20)

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

bool user_name_valid(const char *name)
{
    size_t len = strlen(name);

    if (len == 0 || len > 32 || !(islower((unsigned char)name[0]) || name[0] == '_'))
        return false;
    return strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_-") == len;
}

/* Cut `line` at its colons in place; true when it has `count` fields or more. */
static bool split(char *line, char **fields, unsigned int count)
{
    unsigned int n = 0;

    for (char *p = line; p && n < count; n++) {
        fields[n] = p;
        p = strchr(p, ':');
        if (p)
            *p++ = '\0';
    }
    return n == count;
}

static bool number(const char *text, unsigned int *ret)
{
    if (!isdigit((unsigned char)text[0]))
        return false;
    *ret = (unsigned int)strtoul(text, NULL, 10);
    return true;
}

/* Call take for each line of the file that has so many fields, until it returns false. 0 or -errno. */
static int each_entry(const char *file, unsigned int count, bool (*take)(void *opaque, char **fields), void *opaque)
{
    _cleanup_free_ char *text = NULL;
    char *fields[8], *next;
    int r = fd_read_file(file, ACCOUNT_FILE_MAX, &text, NULL);

    if (r < 0)
        return r;
    for (char *line = strtok_r(text, "\n", &next); line; line = strtok_r(NULL, "\n", &next))
        if (split(line, fields, count) && !take(opaque, fields))
            break;
    return 0;
}

/* What is looked for, and what was found. */
struct look_up {
    const char *name;
    bool found;
    unsigned int id, group;
    gid_t *groups;
    unsigned int count, max;
};

/* name:password:number:members */
static bool take_group(void *opaque, char **fields)
{
    struct look_up *l = opaque;

    l->found = strcmp(fields[0], l->name) == 0 && number(fields[2], &l->id);
    return !l->found;
}

static bool take_member(void *opaque, char **fields)
{
    struct look_up *l = opaque;
    char *next;

    for (char *m = strtok_r(fields[3], ",", &next); m; m = strtok_r(NULL, ",", &next))
        if (strcmp(m, l->name) == 0 && l->count < l->max && number(fields[2], &l->id))
            l->groups[l->count++] = (gid_t)l->id;
    return true;
}

/* name:password:number:group:... */
static bool take_user(void *opaque, char **fields)
{
    struct look_up *l = opaque;

    l->found = strcmp(fields[0], l->name) == 0 && number(fields[2], &l->id) && number(fields[3], &l->group);
    return !l->found;
}

int paths_group_id(const char *group, gid_t *ret)
{
    struct look_up l = {.name = group};
    int r = each_entry("/etc/group", 3, take_group, &l);

    if (r < 0 || !l.found)
        return r < 0 ? r : -ENOENT;
    *ret = (gid_t)l.id;
    return 0;
}

int paths_user_groups(const char *user, gid_t *groups, unsigned int max)
{
    struct look_up l = {.name = user, .groups = groups, .max = max};
    int r = each_entry("/etc/group", 4, take_member, &l);

    return r < 0 ? r : (int)l.count;
}

int paths_user_ids(const char *user, uid_t *ret_uid, gid_t *ret_gid)
{
    struct look_up l = {.name = user};
    int r = each_entry("/etc/passwd", 4, take_user, &l);

    if (r < 0 || !l.found)
        return r < 0 ? r : -ENOENT;
    *ret_uid = (uid_t)l.id;
    *ret_gid = (gid_t)l.group;
    return 0;
}
