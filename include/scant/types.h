// The name that scant/base/types.h had up to version 0.1.
#pragma once

#include "scant/base/types.h"
