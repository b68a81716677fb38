// Memory, copies and host calls of the CUDA runtime. Each call selects its device first, since the
// runtime keeps that choice for each thread.
#include <cuda_runtime.h>
#include <string>

#include "codec/device/cuda_device.h"

namespace scant::codec {
namespace {

Result<void> checked(cudaError_t status, ErrorCode code, const char* what) {
  if (status == cudaSuccess) return {};
  return Error{.code = status == cudaErrorMemoryAllocation ? ErrorCode::resource : code,
               .message = std::string(what) + ": " + cudaGetErrorString(status)};
}

cudaStream_t native(Stream stream) { return static_cast<cudaStream_t>(stream); }

class CudaDevice final : public Device {
 public:
  explicit CudaDevice(int ordinal) : ordinal_(ordinal) {}

  [[nodiscard]] int ordinal() const override { return ordinal_; }

  Result<MutableBytes> allocate(Place::Kind kind, size_t bytes) override {
    if (auto chosen = choose(); !chosen) return chosen.error();
    if (bytes == 0) return MutableBytes{};
    void* memory = nullptr;
    const cudaError_t status =
        kind == Place::Kind::pinned ? cudaMallocHost(&memory, bytes) : cudaMalloc(&memory, bytes);
    if (auto made = checked(status, ErrorCode::resource, "memory of a GPU"); !made)
      return made.error();
    return MutableBytes(static_cast<std::byte*>(memory), bytes);
  }

  void release(Place::Kind kind, MutableBytes memory) override {
    if (memory.empty() || !choose()) return;
    static_cast<void>(kind == Place::Kind::pinned ? cudaFreeHost(memory.data())
                                                  : cudaFree(memory.data()));
  }

  Result<void> copy(MutableBytes to, Bytes from, Stream stream) override {
    if (auto chosen = choose(); !chosen || from.empty()) return chosen;
    return checked(
        cudaMemcpyAsync(to.data(), from.data(), from.size(), cudaMemcpyDefault, native(stream)),
        ErrorCode::io, "a copy of a GPU");
  }

  Result<void> call(Stream stream, void (*function)(void* context), void* context) override {
    if (auto chosen = choose(); !chosen) return chosen;
    return checked(cudaLaunchHostFunc(native(stream), function, context), ErrorCode::io,
                   "a call by a GPU");
  }

  Result<void> wait(Stream stream) override {
    if (auto chosen = choose(); !chosen) return chosen;
    return checked(cudaStreamSynchronize(native(stream)), ErrorCode::io, "waiting for a GPU");
  }

 private:
  Result<void> choose() const {
    return checked(cudaSetDevice(ordinal_), ErrorCode::io, "choosing a GPU");
  }

  int ordinal_;
};

}  // namespace

Result<std::unique_ptr<Device>> open_cuda_device(int ordinal) {
  int count = 0;
  if (auto found = checked(cudaGetDeviceCount(&count), ErrorCode::unsupported, "no GPU"); !found)
    return found.error();
  if (ordinal < 0 || ordinal >= count) {
    return Error{
        .code = ErrorCode::unsupported,
        .message = "no GPU " + std::to_string(ordinal) + "; there are " + std::to_string(count)};
  }
  return std::unique_ptr<Device>(new CudaDevice(ordinal));
}

}  // namespace scant::codec
