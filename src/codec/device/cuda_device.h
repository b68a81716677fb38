// A GPU by the CUDA runtime. In builds with SCANT_CUDA; what links it is scant_codec_cuda.
#pragma once

#include <memory>

#include "codec/device/device.h"
#include "scant/base/result.h"

namespace scant::codec {

// ErrorCode::unsupported: no such device, or none at all; the message repeats the driver's reason.
[[nodiscard]] Result<std::unique_ptr<Device>> open_cuda_device(int ordinal);

}  // namespace scant::codec
