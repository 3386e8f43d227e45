/* What this host offers, for people: umbrad --check-host. */
#ifndef UMBRA_DAEMON_HOST_REPORT_H
#define UMBRA_DAEMON_HOST_REPORT_H

/* Probe, and print one "name: value" a line. 0, or -errno of opening KVM, which is printed too. Main thread, up to 50 ms. */
int host_report(const char *kvm_path);

#endif
