#include "runtime.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <numeric>

#include "error.hpp"

namespace m2h::detail {
namespace {

using Clock = std::chrono::steady_clock;

// The mean error excludes one in this many values, those with the largest errors: some pixels are unstable.
constexpr std::size_t kLeftOut = 16;

double milliseconds(Clock::time_point since) {
  return std::chrono::duration<double, std::milli>(Clock::now() - since).count();
}

// The self-test's input; the formula is in m2h_deploy/bundle/self_test.py.
std::vector<std::uint8_t> pattern(const Manifest& manifest) {
  const auto value = [](int x, int y, int c) {
    return static_cast<std::uint8_t>((7 * x + 3 * y + 40 * c + 96 * ((x / 16 + y / 16) % 2)) % 256);
  };
  std::vector<std::uint8_t> image;
  image.reserve(manifest.input_bytes());
  const int rows = manifest.nv12 ? manifest.height / 2 * 3 : manifest.height;
  for (int y = 0; y < rows; ++y) {
    for (int x = 0; x < manifest.width; ++x) {
      if (manifest.nv12) {
        image.push_back(value(x, y, 0));
      } else {
        for (int c = 2; c >= 0; --c) image.push_back(value(x, y, c));  // c counts in RGB order
      }
    }
  }
  return image;
}

double element(const Output& output, const void* data, std::size_t index) {
  switch (output.type) {
    case Type::kFloat32: return static_cast<const float*>(data)[index];
    case Type::kUint16: return static_cast<const std::uint16_t*>(data)[index];
    case Type::kUint8: return static_cast<const std::uint8_t*>(data)[index];
  }
  return 0;
}

// Mean error as a share of the deviation, without the worst sixteenth of the values; for labels the share that differs.
// Not finite if a value is not finite.
double error_of(const Output& output, const void* data, const SelfTestOutput& expected) {
  const std::size_t count = expected.values.size();
  const double last = static_cast<double>(output.elements() - 1);
  std::vector<double> errors;
  errors.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    // The indices of numpy.linspace(0, last, count), truncated to integers.
    const double step = count > 1 ? last / static_cast<double>(count - 1) : 0;
    const double place = i + 1 == count && count > 1 ? last : static_cast<double>(i) * step;
    const double value = element(output, data, static_cast<std::size_t>(place));
    const double difference = std::abs(value - expected.values[i]);
    if (!std::isfinite(difference)) return difference;
    errors.push_back(output.name == "labels" ? (difference != 0 ? 1 : 0) : difference / expected.deviation);
  }
  std::size_t kept = count;
  if (output.name != "labels") {
    std::sort(errors.begin(), errors.end());
    kept -= count / kLeftOut;
  }
  return std::accumulate(errors.begin(), errors.begin() + static_cast<std::ptrdiff_t>(kept), 0.0) /
         static_cast<double>(kept);
}

std::string meaning(const std::string& precision) {
  const std::string wrong = "this engine computes wrong numbers on this machine";
  if (precision == "fp32") return wrong;
  return wrong + ", or " + precision + " is too coarse for this network; build it with --precision fp32";
}

}  // namespace

Runtime::Runtime(const std::string& path, const m2h_options& options) : path_(path) {
  Bundle bundle = read_bundle(path);
  BackendOptions chosen;
  chosen.threads = options.threads;
  if (options.threads < 0 || options.threads > 1024) throw Failure("threads: must be from 1 to 1024, or 0");
  if (options.device != nullptr) chosen.device = options.device;
  chosen.allow_engine_code = options.allow_engine_code != 0;
  try {
    backend_ = open_backend(bundle, chosen);
  } catch (const Failure& failure) {
    if (bundle.manifest.edited.empty()) throw;
    throw Failure(std::string(failure.what()) + "; its manifest was edited: " + bundle.manifest.edited, failure.status);
  }
  description_ = backend_->description();
  warning_ = backend_->warning();
  manifest_ = std::move(bundle.manifest);
  spares_.resize(manifest_.outputs.size());
  outputs_.resize(manifest_.outputs.size());
  if (options.uncalibrated != 0) manifest_.calibration.reset();
  if (options.skip_self_test == 0 && manifest_.self_test) self_test();
}

void Runtime::run(const m2h_image& image, const m2h_results& results) {
  const auto start = Clock::now();
  const std::uint8_t* input = input_of(image);
  check_wanted(results);
  for (std::size_t i = 0; i < outputs_.size(); ++i) outputs_[i] = target(manifest_.outputs[i], i, results);
  run_engine(input, outputs_);
  for (std::size_t i = 0; i < outputs_.size(); ++i) {
    if (manifest_.outputs[i].name == "depth" && results.depth != nullptr) {
      finish_depth(manifest_.outputs[i], outputs_[i], results.depth);
    }
  }
  total_ms = milliseconds(start);
}

// Converts the engine's millimeters to meters, and calibrates.
void Runtime::finish_depth(const Output& output, const void* given, float* depth) const {
  const std::size_t count = output.elements();
  if (output.type == Type::kUint16) {
    const auto* millimeters = static_cast<const std::uint16_t*>(given);
    for (std::size_t i = 0; i < count; ++i) depth[i] = static_cast<float>(millimeters[i]) * 1e-3F;
  }
  if (manifest_.calibration) manifest_.calibration->apply(depth, count);
}

void Runtime::run_engine(const std::uint8_t* input, const std::vector<void*>& outputs) {
  const auto start = Clock::now();
  backend_->run(input, outputs);
  engine_ms = milliseconds(start);
}

const std::uint8_t* Runtime::input_of(const m2h_image& image) {
  if (image.data == nullptr) throw Failure("image: data is NULL");
  if (image.width != manifest_.width || image.height != manifest_.height) {
    throw Failure("image: " + std::to_string(image.width) + " x " + std::to_string(image.height) +
                  " pixels, this bundle takes the camera's " + std::to_string(manifest_.width) + " x " +
                  std::to_string(manifest_.height) + ": export with --camera-size " + std::to_string(image.width) + "x" +
                  std::to_string(image.height));
  }
  const bool nv12 = image.color == M2H_NV12;
  if (!nv12 && image.color != M2H_BGR && image.color != M2H_RGB) throw Failure("image: unknown color order");
  if (nv12 != manifest_.nv12) {
    throw Failure(std::string("image: this bundle takes ") + (manifest_.nv12 ? "NV12" : "BGR or RGB") +
                  ": export with --sensor " + (nv12 ? "nv12" : "uint8"));
  }
  const auto width = static_cast<std::size_t>(manifest_.width);
  const std::size_t row = nv12 ? width : 3 * width;
  const std::size_t stride = image.stride == 0 ? row : image.stride;
  if (stride < row) throw Failure("image: a stride of " + std::to_string(stride) + " bytes is less than a row");
  if (stride == row && image.color != M2H_RGB) return image.data;
  std::uint8_t* staging = backend_->host_input();
  if (staging == nullptr) {
    staging_.resize(manifest_.input_bytes());
    staging = staging_.data();
  }
  const std::size_t rows = manifest_.input_bytes() / row;
  for (std::size_t y = 0; y < rows; ++y) {
    const std::uint8_t* from = image.data + y * stride;
    std::uint8_t* to = staging + y * row;
    if (image.color != M2H_RGB) {
      std::memcpy(to, from, row);
      continue;
    }
    for (std::size_t x = 0; x < row; x += 3) {
      to[x] = from[x + 2];
      to[x + 1] = from[x + 1];
      to[x + 2] = from[x];
    }
  }
  return staging;
}

// An array for a missing output would stay unchanged and could be mistaken for a result.
void Runtime::check_wanted(const m2h_results& results) const {
  const auto check = [this](const char* name, const void* wanted) {
    if (wanted == nullptr) return;
    for (const Output& output : manifest_.outputs) {
      if (output.name == name) return;
    }
    throw Failure(std::string("results: this bundle gives no ") + name + ": leave it NULL, or export with --outputs");
  };
  check("depth", results.depth);
  check("labels", results.labels);
  check("normals", results.normals);
  check("edges", results.edges);
}

void* Runtime::target(const Output& output, std::size_t index, const m2h_results& results) {
  void* wanted = nullptr;
  std::size_t given = 0;
  if (output.name == "depth") {
    wanted = results.depth;
    given = results.depth_bytes;
  } else if (output.name == "labels") {
    wanted = results.labels;
    given = results.labels_bytes;
  } else if (output.name == "normals") {
    wanted = results.normals;
    given = results.normals_bytes;
  } else {
    wanted = results.edges;
    given = results.edges_bytes;
  }
  if (wanted == nullptr) return spare(index);
  const std::size_t caller = output.type == Type::kUint8 ? 1 : sizeof(float);
  const std::size_t needed = output.elements() * caller;
  if (given != needed) {
    throw Failure("results: " + output.name + " needs an array of " + std::to_string(needed) + " bytes, got " +
                  std::to_string(given));
  }
  return output.type == Type::kUint16 ? spare(index) : wanted;
}

void* Runtime::spare(std::size_t index) {
  if (void* own = backend_->host_output(index); own != nullptr) return own;
  const Output& output = manifest_.outputs[index];
  spares_[index].resize(output.elements() * bytes_of(output.type));
  return spares_[index].data();
}

void Runtime::self_test() {
  if (!manifest_.edited.empty()) {
    throw Failure(path_ + ": self-test failed: its manifest was edited: " + manifest_.edited +
                      "; put it back, or export and build again",
                  M2H_CHECK_FAILED);
  }
  const std::vector<std::uint8_t> image = pattern(manifest_);
  std::vector<void*> outputs;
  for (std::size_t i = 0; i < manifest_.outputs.size(); ++i) outputs.push_back(spare(i));
  run_engine(image.data(), outputs);
  run_engine(image.data(), outputs);  // the first run may differ from later ones
  for (std::size_t i = 0; i < manifest_.outputs.size(); ++i) {
    const Output& output = manifest_.outputs[i];
    const auto expected = manifest_.self_test->outputs.find(output.name);
    if (expected == manifest_.self_test->outputs.end()) continue;
    const double error = error_of(output, outputs[i], expected->second);
    if (!(error <= expected->second.tolerance)) {  // also if it is NaN
      throw Failure(path_ + ": self-test failed: " + output.name + " is off by " + std::to_string(error) + " (allowed " +
                        std::to_string(expected->second.tolerance) + "): " + meaning(manifest_.precision),
                    M2H_CHECK_FAILED);
    }
  }
}

m2h_info Runtime::info() const {
  m2h_info info{};
  info.struct_size = sizeof info;
  info.width = manifest_.width;
  info.height = manifest_.height;
  info.takes_nv12 = manifest_.nv12 ? 1 : 0;
  for (const Output& output : manifest_.outputs) {
    if (output.name == "depth") info.has_depth = 1;
    if (output.name == "labels") info.has_labels = 1;
    if (output.name == "normals") info.has_normals = 1;
    if (output.name == "edges") info.has_edges = 1;
  }
  info.min_depth = manifest_.min_depth;
  info.max_depth = manifest_.max_depth;
  info.classes = static_cast<int>(manifest_.class_names.size());
  info.variant = manifest_.variant.c_str();
  info.precision = manifest_.precision.c_str();
  info.engine = description_.c_str();
  info.warning = warning_.empty() ? nullptr : warning_.c_str();
  const DepthCalibration calibration = manifest_.calibration.value_or(DepthCalibration{});
  info.calibrated = manifest_.calibration ? 1 : 0;
  info.depth_scale = calibration.scale;
  info.depth_offset = calibration.offset;
  return info;
}

}  // namespace m2h::detail
