/* What this host offers, for people: umbrad --check-host. */
#ifndef UMBRA_DAEMON_HOST_REPORT_H
#define UMBRA_DAEMON_HOST_REPORT_H

/* Probe and print to stdout; -errno when KVM cannot be opened (one line on stderr says why). Main thread, takes some 50 ms. */
int host_report(const char *kvm_path);

#endif
