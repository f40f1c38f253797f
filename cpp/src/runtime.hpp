// An opened bundle: converts the camera's image to the engine's input, and passes the caller's arrays as outputs.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend.hpp"
#include "m2h/m2h.h"

namespace m2h::detail {

class Runtime {
 public:
  // Throws Failure.
  Runtime(const std::string& path, const m2h_options& options);

  void run(const m2h_image& image, const m2h_results& results);
  m2h_info info() const;
  const Manifest& manifest() const { return manifest_; }

  double total_ms = 0;
  double engine_ms = 0;

 private:
  const std::uint8_t* input_of(const m2h_image& image);
  void check_wanted(const m2h_results& results) const;
  void* target(const Output& output, std::size_t index, const m2h_results& results);
  void* spare(std::size_t index);
  void finish_depth(const Output& output, const void* given, float* depth) const;
  void run_engine(const std::uint8_t* input, const std::vector<void*>& outputs);
  void self_test();

  std::string path_;
  Manifest manifest_;
  std::unique_ptr<Backend> backend_;
  std::string description_, warning_;
  std::vector<std::uint8_t> staging_;              // images that cannot be read in place
  std::vector<std::vector<std::uint8_t>> spares_;  // outputs that the caller does not request, or in another type
  std::vector<void*> outputs_;
};

}  // namespace m2h::detail
