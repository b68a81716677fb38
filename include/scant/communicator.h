// The name that scant/collective/communicator.h had up to version 0.1.
#pragma once

#include "scant/collective/communicator.h"
