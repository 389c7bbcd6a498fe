// All that a kernel file finds without including anything; it is put before every one.

#pragma once

#include "types.h"
#include "machine.h"
#include "warp.h"
#include "arithmetic.h"
#include "atomics.h"
#include "tensor_cores.h"
