/* Sleeps for ever, interrupts on, no timer: a VM that costs its host nothing. */
#include "runtime.h"

const char guest_name[] = "idler";
const char *const guest_options[] = {NULL};

void guest_main(void)
{
    print("idler: up\n");
    guest_halt();
}
