/* What the files that read options share. */
#ifndef UMBRA_DAEMON_CONFIGURATION_INTERNAL_H
#define UMBRA_DAEMON_CONFIGURATION_INTERNAL_H

#include "base/util.h"
#include "daemon/configuration.h"

enum option_where {
    CMDLINE_ONLY,
    CMDLINE_FIRST, /* the same; other options come from what it names, so it is read before them */
    EVERYWHERE,
};

struct option_row {
    const char *key;
    const char *arg; /* what the value is, for the help text; NULL for a flag */
    const char *help;
    enum option_where where;
    /* value is "true" or "false" for a flag. -EINVAL with the reason in error (without the option's name). */
    int (*set)(struct config *c, const char *value, char *error);
    bool list; /* may be given several times, and be an array in the file: all of them count */
};

#define CONFIG_OPTIONS_MAX 64

extern const struct option_row config_options[];
extern const size_t config_option_count;
/* NULL: there is none. */
const struct option_row *config_find_option(const char *key);

/* Put the reason (at most CONFIG_ERROR_MAX bytes) and return -EINVAL. */
int config_fail(char *error, const char *fmt, ...) PRINTF_LIKE(2, 3);
/* Copy value into *to; 0 or -ENOMEM. */
int config_set_string(char **to, const char *value);
/* The same for a path, which is not empty. */
int config_set_path(char **to, const char *value, char *error);
/* Take the index of value in a NULL-terminated list; -EINVAL. */
int config_choose(const char *const *values, const char *value, char *error);

/*
 * Cut the next word of a value like PATH,WORD,WORD off *at, in place: up to a comma, two of which stand for one in the
 * word. NULL after the last.
 */
char *config_next_word(char **at);

/*
 * Take over what the guest of c->restore saw. -EBADMSG or -errno with the reason in error; -ENOMEM.
 */
int config_read_snapshot(struct config *c, char *error);

/* Take over c->config_file's options. -EBADMSG, -EFBIG or another -errno with the reason in error; -ENOMEM. */
int config_read_file(struct config *c, char *error);

/* Options of devices, as struct option_row wants them. */
int config_add_disk(struct config *c, const char *value, char *error);
int config_add_net(struct config *c, const char *value, char *error);
void config_clear_net(struct net_config *net);
void config_clear_disk(struct vblk_config *disk);
int config_set_rng(struct config *c, const char *value, char *error);
int config_set_balloon(struct config *c, const char *value, char *error);
int config_set_console(struct config *c, const char *value, char *error);
int config_set_virtio_console(struct config *c, const char *value, char *error);

#endif
