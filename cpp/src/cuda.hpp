// The GPU, its memory, streams and graphs: objects that release themselves, and errors with CUDA's own words.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <string>
#include <type_traits>

#include "error.hpp"

namespace m2h::detail {

// Throws Failure if a CUDA call failed; `what` completes the sentence "cannot ...".
inline void check_cuda(cudaError_t status, const std::string& where, const char* what) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();  // or the calling program's next check reports this error as its own
  throw Failure(where + ": cannot " + what + ": CUDA: " + cudaGetErrorString(status) + " (" +
                cudaGetErrorName(status) + ")");
}

struct ReleaseCuda {
  void operator()(cudaStream_t stream) const noexcept { (void)cudaStreamDestroy(stream); }
  void operator()(cudaGraph_t graph) const noexcept { (void)cudaGraphDestroy(graph); }
  void operator()(cudaGraphExec_t graph) const noexcept { (void)cudaGraphExecDestroy(graph); }
};
template <typename Handle>
using CudaHandle = std::unique_ptr<std::remove_pointer_t<Handle>, ReleaseCuda>;

// A stream that does not wait for the default stream, on which other parts of the program may work.
inline CudaHandle<cudaStream_t> make_stream(const std::string& where) {
  cudaStream_t stream = nullptr;
  check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), where, "make a CUDA stream");
  return CudaHandle<cudaStream_t>(stream);
}

// Makes a GPU current in this thread, and restores the previous one, which the calling program may rely on.
class CurrentDevice {
 public:
  CurrentDevice(int device, const std::string& where) : device_(device) {
    check_cuda(cudaGetDevice(&previous_), where, "ask for the current GPU");
    check_cuda(cudaSetDevice(device), where, "use the GPU");
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;
  ~CurrentDevice() {
    if (previous_ != device_) (void)cudaSetDevice(previous_);
  }

 private:
  int device_, previous_ = 0;
};

struct Gpu {
  int index = 0;
  std::string capability;   // such as 8.7
  bool integrated = false;  // shares the host's memory, as on Jetson
};

inline std::string cuda_version(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

// Returns the GPU of this index. Throws Failure, with advice, if there is no driver, an old one, or no such GPU.
inline Gpu find_gpu(int index, const std::string& where) {
  int count = 0, driver = 0, runtime = 0, major = 0, minor = 0, integrated = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  (void)cudaGetLastError();
  check_cuda(cudaDriverGetVersion(&driver), where, "ask for the driver's version");
  check_cuda(cudaRuntimeGetVersion(&runtime), where, "ask for CUDA's version");
  if (driver == 0) {
    throw Failure(where + ": no NVIDIA driver is found (libcuda is missing): install it, or start the container with "
                          "--gpus all, on Jetson with --runtime nvidia");
  }
  if (status == cudaErrorInsufficientDriver) {
    throw Failure(where + ": the NVIDIA driver is too old: it supports CUDA " + cuda_version(driver) +
                  ", and libm2h was built with CUDA " + cuda_version(runtime) +
                  ": update the driver, or build libm2h with the older CUDA");
  }
  if (status == cudaErrorNoDevice || (status == cudaSuccess && count == 0)) {
    throw Failure(where + ": the NVIDIA driver finds no GPU: see nvidia-smi and CUDA_VISIBLE_DEVICES");
  }
  check_cuda(status, where, "count the GPUs");
  if (index >= count) {
    throw Failure(where + ": there is no GPU " + std::to_string(index) + " among " + std::to_string(count) +
                  "; the first one is 0");
  }
  check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index), where, "query the GPU");
  check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index), where, "query the GPU");
  check_cuda(cudaDeviceGetAttribute(&integrated, cudaDevAttrIntegrated, index), where, "query the GPU");
  return {index, std::to_string(major) + "." + std::to_string(minor), integrated != 0};
}

// Page-locked host memory, which the GPU copies directly, and as much device memory. On an integrated GPU both are the
// same memory, so that nothing is copied.
class Buffers {
 public:
  Buffers(std::size_t bytes, bool shared, const std::string& where) {
    void* memory = nullptr;
    check_cuda(cudaHostAlloc(&memory, bytes, shared ? cudaHostAllocMapped : cudaHostAllocDefault), where,
               "allocate page-locked memory");
    host_.reset(memory);
    if (shared) {
      check_cuda(cudaHostGetDevicePointer(&device_, memory, 0), where, "map page-locked memory");
      return;
    }
    check_cuda(cudaMalloc(&device_, bytes), where, "allocate GPU memory");
    owned_.reset(device_);
  }
  unsigned char* host() const { return static_cast<unsigned char*>(host_.get()); }
  unsigned char* device() const { return static_cast<unsigned char*>(device_); }

 private:
  struct FreeHost {
    void operator()(void* memory) const noexcept { (void)cudaFreeHost(memory); }
  };
  struct FreeDevice {
    void operator()(void* memory) const noexcept { (void)cudaFree(memory); }
  };
  std::unique_ptr<void, FreeHost> host_;
  std::unique_ptr<void, FreeDevice> owned_;
  void* device_ = nullptr;
};

}  // namespace m2h::detail
