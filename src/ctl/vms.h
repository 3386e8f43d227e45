/* Which VMs there are: the directories in the runtime directory, and who still listens in them. */
#ifndef UMBRA_CTL_VMS_H
#define UMBRA_CTL_VMS_H

#include <stddef.h>
#include <sys/types.h>

#include "base/vm-names.h"
#include "ctl/ctl.h"

/* True unless it is certain that nobody listens on the VM's control socket. */
bool vms_listening(const char *runtime_dir, const char *name);

/* Whether the VM's daemon runs, found out without a connection: that could make systemd start it. */
bool vms_running(const char *runtime_dir, const char *name);

/*
 * True where the control socket is there but no pid file: systemd listens on it, and a connection would start the VM. (A
 * daemon that was killed leaves its pid file.)
 */
bool vms_waiting(const char *runtime_dir, const char *name);

/* True when the process is called umbrad. */
bool vms_is_umbrad(pid_t pid);

/* "a, b, c" for messages, cut short with "..." */
const char *vms_join(const struct vm_names *v, char *buf, size_t len);

/*
 * Find out which VM is meant and put it into ctl->vm: the first argument, which is taken off ctl->args, or the only one
 * there is (told on stderr). CTL_DONE, or the exit status with the message printed.
 */
int vms_choose(struct ctl *ctl);

/* Path of one of the VM's files; CTL_DONE, or CTL_FAILED with the message printed. */
int vms_path(const struct ctl *ctl, const char *file, char *buf, size_t len);

/* The number in a VM's pid file; -ENOENT, -EINVAL, -errno. */
int vms_pid_file(const char *runtime_dir, const char *name, pid_t *ret);

/* The process behind a connection: the socket's other end, or what the pid file says where init made the socket; 0 when
 * neither tells. */
pid_t vms_daemon_pid(const char *runtime_dir, const char *name, const struct client *c);

/* Seconds since a process started, or -1. */
double vms_uptime(pid_t pid);

#endif
