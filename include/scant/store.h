// The name that scant/collective/store.h had up to version 0.1.
#pragma once

#include "scant/collective/store.h"
