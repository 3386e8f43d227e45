/*
 * Says hello as the very first thing it does (early_text is printed at the entry, before anything is set up), then
 * ends.
 */
#include "runtime.h"

const char guest_name[] = "hello";
const char *const guest_options[] = {NULL};

extern const char early_text[];
const char early_text[] = "hello\n";

void guest_main(void)
{
}
