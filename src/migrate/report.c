#include "config.h"

#include "migrate/report.h"

const char *mig_status_name(enum mig_status status)
{
    static const char *const names[] = {
        [MIG_STATUS_NONE] = "none",
        [MIG_STATUS_SETUP] = "setup",
        [MIG_STATUS_CANCELLING] = "cancelling",
        [MIG_STATUS_CANCELLED] = "cancelled",
        [MIG_STATUS_ACTIVE] = "active",
        [MIG_STATUS_PRE_SWITCHOVER] = "pre-switchover",
        [MIG_STATUS_DEVICE] = "device",
        [MIG_STATUS_POSTCOPY_ACTIVE] = "postcopy-active",
        [MIG_STATUS_POSTCOPY_PAUSED] = "postcopy-paused",
        [MIG_STATUS_POSTCOPY_RECOVER] = "postcopy-recover",
        [MIG_STATUS_COMPLETED] = "completed",
        [MIG_STATUS_FAILED] = "failed",
    };

    return names[status];
}
