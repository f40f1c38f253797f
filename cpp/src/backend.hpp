// The interface of an engine; one file per engine kind, built if its headers were found.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bundle.hpp"

namespace m2h::detail {

struct BackendOptions {
  int threads = 0;     // 0: the bundle's number
  std::string device;  // empty: the bundle's device
  bool allow_engine_code = false;
};

class Backend {
 public:
  virtual ~Backend() = default;

  // Engine, version and device in words.
  virtual std::string description() const = 0;

  // What makes it slower than it should be, in one line; empty if nothing does.
  virtual std::string warning() const { return {}; }

  // The backend's own memory for the image and for an output, from which `run` need not copy; null if it has none.
  virtual std::uint8_t* host_input() { return nullptr; }
  virtual void* host_output(std::size_t /*index*/) { return nullptr; }

  // One frame: `input` has the manifest's input_bytes, `outputs` an array for each of its outputs, in order. Throws
  // Failure.
  virtual void run(const std::uint8_t* input, const std::vector<void*>& outputs) = 0;
};

// Throws Failure if this library was built without the bundle's engine, or the engine rejects the file.
std::unique_ptr<Backend> open_backend(const Bundle& bundle, const BackendOptions& options);

// The names of the engines that this library was built with.
const char* built_engines() noexcept;

std::unique_ptr<Backend> open_openvino(const Bundle& bundle, const BackendOptions& options);
std::unique_ptr<Backend> open_onnxruntime(const Bundle& bundle, const BackendOptions& options);
std::unique_ptr<Backend> open_tensorrt(const Bundle& bundle, const BackendOptions& options);

}  // namespace m2h::detail
