// ONNX Runtime through its C interface, which all later versions of the library support.
#include <onnxruntime_c_api.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <thread>

#ifdef __linux__
#include <sched.h>
#endif

#include "backend.hpp"
#include "error.hpp"

namespace m2h::detail {
namespace {

ONNXTensorElementDataType element(Type type) {
  switch (type) {
    case Type::kFloat32: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    case Type::kUint16: return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16;
    case Type::kUint8: return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
  }
  return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
}

const OrtApi& api() {
  // Headers may be newer than the library; all functions used here exist since 1.11.
  constexpr unsigned long kOldest = 11;
  const OrtApiBase* base = OrtGetApiBase();
  // A library prints a message if an interface newer than its own is requested, so its version is read first.
  const char* version = base->GetVersionString();
  unsigned long newest = ORT_API_VERSION;
  if (std::strncmp(version, "1.", 2) == 0) newest = std::min(newest, std::strtoul(version + 2, nullptr, 10));
  if (newest >= kOldest) {
    if (const OrtApi* found = base->GetApi(static_cast<std::uint32_t>(newest)); found != nullptr) return *found;
  }
  throw Failure(std::string("this ONNX Runtime is ") + version + ", and libm2h takes 1.11 or newer");
}

// Provider options that a bundle may set, as in m2h_deploy: others name libraries and files to load.
constexpr std::array<const char*, 5> kProviderOptions = {"device_id", "gpu_mem_limit", "arena_extend_strategy",
                                                         "cudnn_conv_algo_search", "use_tf32"};

// An object of ONNX Runtime that must be released.
template <typename T>
class Owned {
 public:
  using Release = void(ORT_API_CALL*)(T*);
  Owned() = default;
  explicit Owned(Release release) : release_(release) {}
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  ~Owned() { reset(); }
  T* get() const { return value_; }
  T** fill() {
    reset();
    return &value_;
  }

 private:
  void reset() {
    if (value_ != nullptr) release_(value_);
    value_ = nullptr;
  }
  T* value_ = nullptr;
  Release release_ = nullptr;
};

class OnnxRuntime final : public Backend {
 public:
  OnnxRuntime(const Bundle& bundle, const BackendOptions& options)
      : where_(bundle.path), api_(api()), env_(api_.ReleaseEnv), session_(api_.ReleaseSession),
        memory_(api_.ReleaseMemoryInfo), input_(api_.ReleaseValue) {
    const Manifest& manifest = bundle.manifest;
    const std::string provider = options.device.empty() ? manifest.text("provider", "cpu") : options.device;
    // Errors are returned as a status; the library prints nothing.
    check(api_.CreateEnv(ORT_LOGGING_LEVEL_FATAL, "m2h", env_.fill()));
    Owned<OrtSessionOptions> settings(api_.ReleaseSessionOptions);
    check(api_.CreateSessionOptions(settings.fill()));
    const int threads = options.threads > 0 ? options.threads : manifest.threads;
    check(api_.SetIntraOpNumThreads(settings.get(), threads > 0 ? threads : usable_processors()));
    check(api_.SetInterOpNumThreads(settings.get(), 1));
    // The pattern's single block for all buffers is larger than what they need at any time.
    if (provider == "cpu") check(api_.DisableMemPattern(settings.get()));
    choose(provider, manifest, settings.get());
    const std::vector<char>& file = bundle.file(manifest.engine_file);
    check(api_.CreateSessionFromArray(env_.get(), file.data(), file.size(), settings.get(), session_.fill()));
    check(api_.CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, memory_.fill()));
    input_name_ = manifest.input_name;
    input_shape_ = manifest.input_shape();
    input_bytes_ = manifest.input_bytes();
    outputs_ = manifest.outputs;
    check_nodes();
    for (const Output& output : outputs_) {
      names_.push_back(output.name.c_str());
      values_.push_back(std::make_unique<Owned<OrtValue>>(api_.ReleaseValue));
    }
    bound_.resize(outputs_.size(), nullptr);
    description_ = std::string("ONNX Runtime ") + OrtGetApiBase()->GetVersionString() + ", " + provider;
  }

  std::string description() const override { return description_; }

  void run(const std::uint8_t* input, const std::vector<void*>& outputs) override {
    if (input != bound_input_) {
      // ONNX Runtime has no const tensors; it only reads inputs.
      bind(input_, const_cast<std::uint8_t*>(input), input_bytes_, input_shape_, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8);
      bound_input_ = input;
    }
    std::vector<OrtValue*> values;
    for (std::size_t i = 0; i < outputs_.size(); ++i) {
      const Output& output = outputs_[i];
      if (outputs[i] != bound_[i]) {
        bind(*values_[i], outputs[i], output.elements() * bytes_of(output.type), output.shape, element(output.type));
        bound_[i] = outputs[i];
      }
      values.push_back(values_[i]->get());
    }
    const char* name = input_name_.c_str();
    const OrtValue* image = input_.get();
    check(api_.Run(session_.get(), nullptr, &name, &image, 1, names_.data(), names_.size(), values.data()));
  }

 private:
  // The processors that this process may use: ONNX Runtime's default counts all of the machine's.
  static int usable_processors() {
#ifdef __linux__
    std::array<cpu_set_t, 8> set{};  // the kernel rejects sets that are smaller than its own
    if (sched_getaffinity(0, sizeof set, set.data()) == 0) return CPU_COUNT_S(sizeof set, set.data());
#endif
    return static_cast<int>(std::thread::hardware_concurrency());
  }

  void choose(const std::string& provider, const Manifest& manifest, OrtSessionOptions* settings) {
    std::vector<const char*> keys, values;
    for (const auto& [key, value] : manifest.provider_options) {
      const auto same = [&key = key](const char* known) { return key == known; };
      if (provider != "cuda" || std::none_of(kProviderOptions.begin(), kProviderOptions.end(), same)) {
        throw Failure(where_ + ": libm2h does not set the option '" + key.substr(0, 64) + "' of the provider " +
                      provider);
      }
      keys.push_back(key.c_str());
      values.push_back(value.c_str());
    }
    if (provider == "cpu") return;
    if (provider != "cuda") throw Failure(where_ + ": the provider '" + provider + "' is not one that libm2h starts");
    OrtCUDAProviderOptionsV2* cuda = nullptr;
    check(api_.CreateCUDAProviderOptions(&cuda));
    OrtStatus* status = nullptr;
    if (!keys.empty()) status = api_.UpdateCUDAProviderOptions(cuda, keys.data(), values.data(), keys.size());
    if (status == nullptr) status = api_.SessionOptionsAppendExecutionProvider_CUDA_V2(settings, cuda);
    api_.ReleaseCUDAProviderOptions(cuda);
    check(status);
  }

  void bind(Owned<OrtValue>& value, void* data, std::size_t bytes, const std::vector<std::int64_t>& shape,
            ONNXTensorElementDataType type) {
    check(api_.CreateTensorWithDataAsOrtValue(memory_.get(), data, bytes, shape.data(), shape.size(), type,
                                              value.fill()));
  }

  // Compares names, types and shapes of manifest and session: a difference would otherwise be detected during a
  // frame, or write past an array.
  void check_nodes() {
    std::size_t inputs = 0, count = 0;
    check(api_.SessionGetInputCount(session_.get(), &inputs));
    check(api_.SessionGetOutputCount(session_.get(), &count));
    OrtAllocator* allocator = nullptr;
    check(api_.GetAllocatorWithDefaultOptions(&allocator));
    char* name = nullptr;
    if (inputs != 1) throw Failure(where_ + ": the engine takes " + std::to_string(inputs) + " inputs, expected one");
    check(api_.SessionGetInputName(session_.get(), 0, allocator, &name));
    Owned<OrtTypeInfo> input(api_.ReleaseTypeInfo);
    check(api_.SessionGetInputTypeInfo(session_.get(), 0, input.fill()));
    check_node(take(allocator, name), input_name_, input.get(), ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, input_shape_);
    for (const Output& output : outputs_) {
      bool found = false;
      for (std::size_t i = 0; i < count && !found; ++i) {
        check(api_.SessionGetOutputName(session_.get(), i, allocator, &name));
        const std::string given = take(allocator, name);
        if (given != output.name) continue;
        Owned<OrtTypeInfo> type(api_.ReleaseTypeInfo);
        check(api_.SessionGetOutputTypeInfo(session_.get(), i, type.fill()));
        check_node(given, output.name, type.get(), element(output.type), output.shape);
        found = true;
      }
      if (!found) throw Failure(where_ + ": the engine has no output '" + output.name + "', the manifest names it");
    }
  }

  std::string take(OrtAllocator* allocator, char* name) {
    std::string copy(name);
    check(api_.AllocatorFree(allocator, name));
    return copy;
  }

  void check_node(const std::string& given, const std::string& expected, OrtTypeInfo* info,
                  ONNXTensorElementDataType type, const std::vector<std::int64_t>& shape) {
    const OrtTensorTypeAndShapeInfo* tensor = nullptr;
    check(api_.CastTypeInfoToTensorInfo(info, &tensor));
    ONNXTensorElementDataType found = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    std::size_t rank = 0;
    if (tensor != nullptr) {
      check(api_.GetTensorElementType(tensor, &found));
      check(api_.GetDimensionsCount(tensor, &rank));
    }
    std::vector<std::int64_t> sides(rank);
    if (rank != 0) check(api_.GetDimensions(tensor, sides.data(), rank));
    bool fits = given == expected && found == type && rank == shape.size();
    for (std::size_t i = 0; fits && i < rank; ++i) fits = sides[i] == shape[i] || (i == 0 && sides[i] < 0);
    if (!fits) {
      throw Failure(where_ + ": '" + expected + "' of the engine is not what the manifest says: build the bundle again");
    }
  }

  void check(OrtStatus* status) const {
    if (status == nullptr) return;
    const std::string reason = first_line(api_.GetErrorMessage(status));
    api_.ReleaseStatus(status);
    throw Failure(where_ + ": ONNX Runtime: " + reason);
  }

  std::string where_, description_, input_name_;
  const OrtApi& api_;
  Owned<OrtEnv> env_;
  Owned<OrtSession> session_;
  Owned<OrtMemoryInfo> memory_;
  Owned<OrtValue> input_;
  std::vector<std::int64_t> input_shape_;
  std::size_t input_bytes_ = 0;
  std::vector<Output> outputs_;
  std::vector<const char*> names_;
  std::vector<std::unique_ptr<Owned<OrtValue>>> values_;
  const std::uint8_t* bound_input_ = nullptr;
  std::vector<void*> bound_;
};

}  // namespace

std::unique_ptr<Backend> open_onnxruntime(const Bundle& bundle, const BackendOptions& options) {
  return std::make_unique<OnnxRuntime>(bundle, options);
}

}  // namespace m2h::detail
