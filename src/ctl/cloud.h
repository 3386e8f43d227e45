/* vmctl create --cloud-image: what a VM made from a distribution's cloud image needs, in its state directory. */
#ifndef UMBRA_CTL_CLOUD_H
#define UMBRA_CTL_CLOUD_H

#include <limits.h>

#include "ctl/ctl.h"

#define CLOUD_MAX_ARGS 16

/* What is made, and how far it has come. */
struct cloud {
    const char *name; /* the VM's */
    const char *image, *user_data, *meta_data, *disk_size; /* options' values, or NULL */
    bool own_kernel;   /* the caller names one: take none out of the image */
    bool own_initrd, own_cmdline;
    char dir[PATH_MAX];   /* where it goes: STATE/NAME */
    char draft[PATH_MAX]; /* where it is made; "" where there is none */
    bool placed;          /* draft has become dir */
    char partuuid[37];
    /* Options for umbrad that it leads to; those of the caller come behind them. */
    char *args[CLOUD_MAX_ARGS];
    int arg_count;
};

/*
 * Make everything beside its place, then put it there, and fill in args. c->name and the options are set. CTL_DONE, or the
 * exit status with the message printed. cloud_clear follows in either case.
 */
int cloud_make(struct cloud *c, const char *state_dir);

/* Take back what was made, unless `keep`. */
void cloud_clear(struct cloud *c, bool keep);

#endif
