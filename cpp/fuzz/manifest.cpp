// libFuzzer: any manifest.json gives a manifest or an error, never a crash, and an accepted manifest
// has sizes that can be allocated and a calibration that float32 can compute.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "error.hpp"
#include "manifest.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace m2h::detail;
  try {
    const Manifest manifest = parse_manifest(std::string(reinterpret_cast<const char*>(data), size), "fuzz");
    const std::size_t pixels = static_cast<std::size_t>(manifest.width) * static_cast<std::size_t>(manifest.height);
    if (manifest.outputs.empty() || manifest.files.count(manifest.engine_file) == 0) std::abort();
    for (const Output& output : manifest.outputs) {
      if (output.elements() != pixels * (output.name == "normals" ? 3 : 1)) std::abort();
    }
    if (manifest.calibration) {
      // With room for the rounding to float32.
      if (!(manifest.calibration->scale > 0.9e-6F && manifest.calibration->scale < 1.1e6F)) std::abort();
      if (!(std::abs(manifest.calibration->offset) < 1.1e6F)) std::abort();
    }
    if (manifest.edited.size() > 500) std::abort();
    std::size_t bytes = 1;
    for (const std::int64_t side : manifest.input_shape()) bytes *= static_cast<std::size_t>(side);
    if (bytes != manifest.input_bytes()) std::abort();
  } catch (const Failure& failure) {
    if (std::string(failure.what()).empty()) std::abort();
  }
  return 0;
}
