// The name that scant/base/result.h had up to version 0.1.
#pragma once

#include "scant/base/result.h"
