/* What the page of the host shows of a VM, out of the VM's metrics. */
#ifndef UMBRA_EXPORTER_FACTS_H
#define UMBRA_EXPORTER_FACTS_H

#include "base/json.h"
#include "exporter/collect.h"

/* The object of one VM: name, up, and either why it is not or its figures; NULL when out of memory. The caller's. */
json_t *facts_of(const struct collect_page *page);

#endif
