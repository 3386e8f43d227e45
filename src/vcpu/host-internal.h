/*
 * What was proved about this host's KVM, remembered from one start to the next: a proof holds as long as the module it
 * was made of stays loaded, and costs a start more than anything else does.
 *
 * It stands in the file ".host-proof" of the runtime directory. The file tells what it was proved of: boot id, /dev/kvm,
 * module, the parameter's value, and the module's inode in sysfs, which is another one after it was loaded again. It is
 * believed only when file and directory belong to root or to the user umbrad runs as, and nobody else may write to
 * them: who could forge it could as well give --paging any.
 */
#ifndef UMBRA_VCPU_HOST_INTERNAL_H
#define UMBRA_VCPU_HOST_INTERNAL_H

#include <stdbool.h>

#include "vcpu/host.h"

#define HOST_PROOF_FILE ".host-proof"

/* What a proof is of. */
struct host_proof_key {
    char text[512];
};

/*
 * The key for the module that host_read_module has put into info; module_dir is /sys/module but for tests. False when
 * there is nothing to tell this host's state from another's.
 */
bool host_proof_key(const char *kvm_path, const char *module_dir, const struct host_info *info,
                    struct host_proof_key *ret);

/* Take the proof for `key` from `dir`: sets proven, ring0_emulated and ring0_mips. False when there is none to believe. */
bool host_proof_load(const char *dir, const struct host_proof_key *key, struct host_info *info);

/* Remember it. Where that is not possible, the next start proves it again: no error is told. */
void host_proof_store(const char *dir, const struct host_proof_key *key, const struct host_info *info);

#endif
