#include "config.h"

#include "base/state.h"
