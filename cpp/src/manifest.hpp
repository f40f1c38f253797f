// The validated manifest. Format: m2h_deploy/bundle/manifest.py and manifest.schema.json.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace m2h::detail {

enum class Type { kFloat32, kUint8, kUint16 };

std::size_t bytes_of(Type type);

struct Output {
  std::string name;  // depth, labels, normals, edges
  Type type;
  std::vector<std::int64_t> shape;  // batch 1
  std::size_t elements() const;
};

struct SelfTestOutput {
  std::vector<double> values;
  double deviation = 1;
  double tolerance = 0;
};

struct SelfTest {
  std::map<std::string, SelfTestOutput> outputs;
};

// Correction of the clamped depth to one camera: scale * depth + offset in meters, and 0 instead of less.
struct DepthCalibration {
  float scale = 1;
  float offset = 0;

  // Corrects in place, by the float32 operations of m2h_deploy/bundle/depth_calibration.py, in their order.
  void apply(float* depth, std::size_t count) const;
};

struct Manifest {
  std::string variant;
  std::string input_name;
  int width = 0;  // of the camera's image
  int height = 0;
  bool nv12 = false;
  std::vector<Output> outputs;
  float min_depth = 0;
  float max_depth = 0;
  std::optional<DepthCalibration> calibration;
  std::vector<std::string> class_names;
  std::vector<std::array<std::uint8_t, 3>> palette;
  std::string engine;  // kind: openvino, onnxruntime, tensorrt, tensorrt-rtx
  std::string engine_version;
  std::string precision;
  std::string engine_file;
  std::vector<std::string> targets;  // compute capabilities; empty: not limited by the manifest
  bool version_compatible = false;   // a plan that contains TensorRT's lean runtime
  std::map<std::string, std::string> texts;  // the engine's options that are text
  int threads = 0;
  std::map<std::string, std::string> provider_options;  // of ONNX Runtime's provider
  std::optional<SelfTest> self_test;
  std::string edited;  // the first field that changed since the self-test was made, in words; empty if none did
  std::map<std::string, std::string> files;  // sha256 by name

  std::vector<std::int64_t> input_shape() const;  // batch 1
  std::size_t input_bytes() const;
  std::string text(const std::string& option, const std::string& otherwise) const;
};

// `where` names the file in errors. Throws Failure on an invalid manifest, on a newer schema, and on a plain graph,
// which needs image code that this library does not have.
Manifest parse_manifest(const std::string& json, const std::string& where);

}  // namespace m2h::detail
