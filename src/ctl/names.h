/*
 * Names of address spaces: what the daemon knows by the root of its page tables, the guest's memory knows by process. Read
 * here, from the guest's memory, never by the daemon.
 *
 * A root is given back and used again while vmctl asks and looks. So a name counts only if the same process had the root at
 * both of the last two looks: look, ask the daemon, look again.
 */
#ifndef UMBRA_CTL_NAMES_H
#define UMBRA_CTL_NAMES_H

#include <stdint.h>

#include "ctl/ctl.h"
#include "inspect/inspect.h"

struct names;

/*
 * Take guest memory over from the daemon. CTL_DONE, also where there will be no names (names_why tells), or the exit status
 * with the message printed when the daemon does not answer.
 */
int names_open(const struct ctl *ctl, struct client *client, struct names **ret);
/* NULL is fine. */
void names_close(struct names *names);
#define _cleanup_names_ __attribute__((cleanup(cleanup_names)))
static inline void cleanup_names(struct names **names)
{
    names_close(*names);
}

/* Look again. CTL_DONE, or the exit status with the message printed when the daemon does not answer. */
int names_look(struct names *names);

/* The process of an address space as the daemon tells it (kind and root), or NULL. Valid until the next look. */
const struct inspect_process *names_find(const struct names *names, const char *kind, uint64_t root);

/* Add "process" to an object with "kind" and "root", where there is one. */
void names_annotate(const struct names *names, json_t *space);
/* The same for each object of an array. */
void names_annotate_all(const struct names *names, json_t *spaces);

/* Why some names or all of them are missing; "" when there is nothing to say. */
const char *names_why(const struct names *names);
/* Print that for a person who asked for it with -v. */
void names_explain(const struct names *names);

#endif
