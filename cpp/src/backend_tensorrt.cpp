// TensorRT or TensorRT-RTX, depending on the NvInferRuntime.h at compile time: one plan, one stream, and a CUDA graph.
#include <NvInferRuntime.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstring>
#include <optional>
#include <string_view>

#include "backend.hpp"
#include "cuda.hpp"
#include "error.hpp"

#ifdef TRT_MAJOR_RTX
#include "cache.hpp"
#if TRT_MAJOR_RTX * 100 + TRT_MINOR_RTX < 103
#error "libm2h needs TensorRT-RTX 1.3 or newer, for its CUDA graphs"
#endif
#elif NV_TENSORRT_MAJOR * 100 + NV_TENSORRT_MINOR < 1003
#error "libm2h needs TensorRT 10.3 or newer"
#endif

namespace m2h::detail {
namespace {

#ifdef TRT_MAJOR_RTX
constexpr bool kRtx = true;
constexpr const char* kName = "TensorRT-RTX";
#else
constexpr bool kRtx = false;
constexpr const char* kName = "TensorRT";
#endif
static_assert((std::string_view(M2H_TENSORRT) == "tensorrt-rtx") == kRtx,
              "M2H_TENSORRT_FLAVOR and TENSORRT_ROOT are not of the same product");

// TensorRT's last error in this thread; empty if there was none since it was cleared.
thread_local std::string last_error;

class Logger final : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity > Severity::kERROR) return;
    try {
      last_error = first_line(message);
    } catch (...) {  // a lost message must not end the process
    }
  }
};

// TensorRT keeps the first logger that it is given until the process ends, so this one is never destroyed.
Logger& logger() {
  static Logger& one = *new Logger;
  return one;
}

std::string reason() { return last_error.empty() ? "it gives no reason" : last_error; }

int device_index(const std::string& device, const std::string& where) {
  std::string digits = device.rfind("cuda", 0) == 0 ? device.substr(4) : device;
  if (!digits.empty() && digits[0] == ':') digits.erase(0, 1);
  if (digits.empty()) return 0;
  if (digits.size() > 3 || digits.find_first_not_of("0123456789") != std::string::npos) {
    throw Failure(where + ": device '" + device + "': give a GPU as 0 or cuda:0");
  }
  return std::stoi(digits);
}

std::string installed_version() {
  return std::to_string(getInferLibMajorVersion()) + "." + std::to_string(getInferLibMinorVersion()) + "." +
         std::to_string(getInferLibPatchVersion()) + "." + std::to_string(getInferLibBuildVersion());
}

// The numbers of a version; 10.14rc1 has two.
std::vector<int> version_numbers(const std::string& version) {
  std::vector<int> numbers;
  for (std::size_t start = 0; start < version.size() && std::isdigit(static_cast<unsigned char>(version[start])) != 0;) {
    numbers.push_back(std::stoi(version.substr(start, 6)));
    const std::size_t dot = version.find('.', start);
    if (dot == std::string::npos) break;
    start = dot + 1;
  }
  return numbers;
}

// A plan runs on the version that built it. A version-compatible one also runs on later versions of the same major
// version, and one of TensorRT 10 on TensorRT 11.
void check_version(const Manifest& manifest, const std::string& installed, const std::string& where) {
  std::vector<int> built = version_numbers(manifest.engine_version), here = version_numbers(installed);
  const std::size_t known = std::min(built.size(), here.size());  // some packages leave the build number out
  built.resize(known);
  here.resize(known);
  if (known >= 2 && built == here) return;
  const bool same_line = known >= 2 && (built[0] == here[0] || (built[0] == 10 && here[0] == 11));
  if (!kRtx && manifest.version_compatible && same_line && built < here) return;
  throw Failure(where + " was built by " + kName + " " + manifest.engine_version + " and " + installed +
                " is installed: install " + kName + " " + manifest.engine_version + ", or build it again");
}

void check_capability(const Manifest& manifest, const Gpu& gpu, const std::string& where) {
  const std::vector<std::string>& targets = manifest.targets;
  if (targets.empty() || std::find(targets.begin(), targets.end(), gpu.capability) != targets.end()) return;
  std::string list;
  for (const std::string& target : targets) list += (list.empty() ? "" : ", ") + target;
  throw Failure(where + " was built for compute capability " + list + " and this GPU has " + gpu.capability +
                ": build it again with --target " + gpu.capability);
}

nvinfer1::Dims dims_of(const std::vector<std::int64_t>& shape) {
  nvinfer1::Dims dims{};
  dims.nbDims = static_cast<std::int32_t>(shape.size());
  std::copy(shape.begin(), shape.end(), dims.d);
  return dims;
}

class TensorRt final : public Backend {
 public:
  // The GPU is current in this thread.
  TensorRt(const Bundle& bundle, const Gpu& gpu)
      : where_(bundle.path), manifest_(bundle.manifest), gpu_(gpu), stream_(make_stream(where_)) {
    const std::vector<char>& plan = bundle.file(manifest_.engine_file);
    last_error.clear();
    runtime_.reset(nvinfer1::createInferRuntime(logger()));
    // If CUDA fails, TensorRT logs an error but returns an object, and using that ends the process.
    if (!runtime_ || !last_error.empty()) fail("does not start");
    check_validity(plan);
    if (manifest_.version_compatible) runtime_->setEngineHostCodeAllowed(true);  // open_tensorrt asked for permission
    engine_.reset(runtime_->deserializeCudaEngine(plan.data(), plan.size()));
    if (!engine_) fail("refuses the plan; build it again on this machine");
    make_context();
    bind();
    // The first run loads or compiles the kernels, which a graph cannot contain.
    std::memset(buffers_->host(), 0, total_);
    enqueue();
    wait();
    if constexpr (kRtx) {
      save_kernels();
    } else {
      capture();
    }
    description_ = std::string(kName) + " " + installed_version() + ", GPU " + std::to_string(gpu_.index) + " (" +
                   gpu_.capability + ")";
  }

  TensorRt(const TensorRt&) = delete;
  TensorRt& operator=(const TensorRt&) = delete;

  ~TensorRt() override {
    try {
      closing_.emplace(gpu_.index, where_);
      if constexpr (kRtx) save_kernels();  // those that TensorRT-RTX compiled while it ran
    } catch (...) {  // closing cannot fail
    }
  }

  std::string description() const override { return description_; }
  std::string warning() const override { return warning_; }
  std::uint8_t* host_input() override { return buffers_->host(); }
  void* host_output(std::size_t index) override { return buffers_->host() + offsets_[index]; }

  void run(const std::uint8_t* input, const std::vector<void*>& outputs) override {
    const CurrentDevice current(gpu_.index, where_);  // the current GPU belongs to the thread
    if (input != host_input()) std::memcpy(host_input(), input, manifest_.input_bytes());
    try {
      if (graph_) {
        check_cuda(cudaGraphLaunch(graph_.get(), stream_.get()), where_, "launch the CUDA graph");
      } else {
        enqueue();
      }
      wait();
    } catch (...) {
      (void)cudaStreamSynchronize(stream_.get());  // what was enqueued still uses the buffers
      throw;
    }
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      if (outputs[i] != host_output(i)) std::memcpy(outputs[i], host_output(i), bytes(manifest_.outputs[i]));
    }
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw Failure(where_ + ": " + kName + " " + what + ": " + reason());
  }

  static std::size_t bytes(const Output& output) { return output.elements() * bytes_of(output.type); }

  // The compatibility of the plan with this GPU, driver and version, which its header tells before it is loaded.
  void check_validity([[maybe_unused]] const std::vector<char>& plan) const {
#ifdef TRT_MAJOR_RTX
    using Reason = nvinfer1::EngineInvalidityDiagnostics;
    static constexpr std::array<std::pair<Reason, const char*>, 7> kReasons = {{
        {Reason::kVERSION_MISMATCH, "it was built by another version of TensorRT-RTX"},
        {Reason::kUNSUPPORTED_CC, "it was built for other GPUs"},
        {Reason::kOLD_CUDA_DRIVER, "the NVIDIA driver is too old for it"},
        {Reason::kOLD_CUDA_RUNTIME, "the CUDA runtime is too old for it"},
        {Reason::kINSUFFICIENT_GPU_MEMORY, "the GPU has too little memory for it"},
        {Reason::kMALFORMED_ENGINE, "the file is damaged or not a plan"},
        {Reason::kCUDA_ERROR, "CUDA fails on this machine"},
    }};
    std::uint64_t found = 0;
    const auto size = static_cast<std::int64_t>(plan.size());
    const bool whole = size >= runtime_->getEngineHeaderSize();
    if (!whole) found = static_cast<std::uint64_t>(Reason::kMALFORMED_ENGINE);
    if (whole && runtime_->getEngineValidity(plan.data(), size, &found) != nvinfer1::EngineValidity::kINVALID) return;
    std::string words;
    for (const auto& [bit, text] : kReasons) {
      if ((found & static_cast<std::uint64_t>(bit)) != 0) words += (words.empty() ? "" : "; ") + std::string(text);
    }
    throw Failure(where_ + ": the plan cannot run here: " + (words.empty() ? reason() : words) +
                  ": build it again for this machine");
#endif
  }

  void make_context() {
    last_error.clear();
#ifdef TRT_MAJOR_RTX
    config_.reset(engine_->createRuntimeConfig());
    if (!config_) fail("cannot make a runtime configuration");
    kernels_.reset(config_->createRuntimeCache());
    if (!kernels_) fail("cannot make a cache for its kernels");
    const std::filesystem::path folder = user_cache_folder("tensorrt-rtx");
    if (!folder.empty()) {
      std::string capability = gpu_.capability;
      capability.erase(capability.find('.'), 1);
      kernels_file_ = folder / (manifest_.files.at(manifest_.engine_file) + "." + installed_version() + ".sm" +
                                capability + ".cache");
      const auto saved = read_checked(kernels_file_);
      // TensorRT-RTX compiles the kernels again if the saved ones are of another driver or GPU.
      if (saved && kernels_->deserialize(saved->data(), saved->size())) saved_bytes_ = saved->size();
      last_error.clear();
    }
    if (!config_->setRuntimeCache(*kernels_)) fail("does not take the cache for its kernels");
    // There is one shape, so its kernels are compiled in the first run and not during later ones.
    config_->setDynamicShapesKernelSpecializationStrategy(
        nvinfer1::DynamicShapesKernelSpecializationStrategy::kEAGER);
    if (!config_->setCudaGraphStrategy(nvinfer1::CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE)) {
      fail("does not take the CUDA graph strategy");
    }
    context_.reset(engine_->createExecutionContext(config_.get()));
#else
    context_.reset(engine_->createExecutionContext());
#endif
    if (!context_) fail("cannot make an execution context (usually the GPU has too little free memory)");
  }

  // Compares the plan with the manifest, and gives each tensor its place in the buffers.
  void bind() {
    const std::string& input = manifest_.input_name;
    const bool complete = engine_->getNbIOTensors() == static_cast<std::int32_t>(1 + manifest_.outputs.size());
    if (complete && engine_->getTensorShape(input.c_str()).d[0] == -1 &&
        !context_->setInputShape(input.c_str(), dims_of(manifest_.input_shape()))) {
      fail("cannot run single frames of this plan");
    }
    using Mode = nvinfer1::TensorIOMode;
    bool fits = complete && has(input, Mode::kINPUT, Type::kUint8, manifest_.input_shape());
    total_ = aligned(manifest_.input_bytes());
    for (const Output& output : manifest_.outputs) {
      fits = fits && has(output.name, Mode::kOUTPUT, output.type, output.shape);
      offsets_.push_back(total_);
      total_ += aligned(bytes(output));
    }
    if (!fits) {
      throw Failure(where_ + ": inputs or outputs of the plan are not what the manifest says: build the bundle again");
    }
    buffers_ = std::make_unique<Buffers>(total_, gpu_.integrated, where_);
    place(input, 0);
    for (std::size_t i = 0; i < offsets_.size(); ++i) place(manifest_.outputs[i].name, offsets_[i]);
  }

  // TensorRT wants addresses that are multiples of 256.
  static std::size_t aligned(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

  bool has(const std::string& name, nvinfer1::TensorIOMode mode, Type type, const std::vector<std::int64_t>& shape) {
    if (type == Type::kUint16) return false;  // TensorRT has no such type
    const auto element = type == Type::kUint8 ? nvinfer1::DataType::kUINT8 : nvinfer1::DataType::kFLOAT;
    const nvinfer1::Dims dims = context_->getTensorShape(name.c_str());
    return engine_->getTensorIOMode(name.c_str()) == mode && engine_->getTensorDataType(name.c_str()) == element &&
           std::equal(dims.d, dims.d + std::max(dims.nbDims, 0), shape.begin(), shape.end());
  }

  void place(const std::string& name, std::size_t offset) {
    if (!context_->setTensorAddress(name.c_str(), buffers_->device() + offset)) {
      fail("does not take the address of '" + name + "'");
    }
  }

  // Enqueues upload, kernels and download. The outputs are one block, so one copy brings them all.
  void enqueue() {
    const cudaStream_t stream = stream_.get();
    unsigned char* const host = buffers_->host();
    unsigned char* const device = buffers_->device();
    if (!gpu_.integrated) {
      check_cuda(cudaMemcpyAsync(device, host, manifest_.input_bytes(), cudaMemcpyHostToDevice, stream), where_,
                 "copy the image to the GPU");
    }
    last_error.clear();
    if (!context_->enqueueV3(stream)) fail("could not run");
    if (!gpu_.integrated) {
      const std::size_t first = offsets_[0];
      check_cuda(cudaMemcpyAsync(host + first, device + first, total_ - first, cudaMemcpyDeviceToHost, stream), where_,
                 "copy the results from the GPU");
    }
  }

  void wait() { check_cuda(cudaStreamSynchronize(stream_.get()), where_, "run the plan"); }

  // Captures a frame's work as one CUDA graph; without one, every kernel is launched by itself.
  void capture() {
    try {
      check_cuda(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal), where_, "begin the capture");
      std::string failed;
      try {
        enqueue();
      } catch (const Failure& failure) {
        failed = failure.what();
      }
      cudaGraph_t captured = nullptr;
      const cudaError_t ended = cudaStreamEndCapture(stream_.get(), &captured);
      const CudaHandle<cudaGraph_t> graph(captured);
      if (!failed.empty()) {
        (void)cudaGetLastError();
        throw Failure(failed);
      }
      check_cuda(ended, where_, "end the capture");
      cudaGraphExec_t executable = nullptr;
      check_cuda(cudaGraphInstantiateWithFlags(&executable, captured, 0), where_, "make the CUDA graph");
      graph_.reset(executable);
    } catch (const Failure& failure) {
      warning_ = std::string("no CUDA graph, so that each frame takes longer: ") + failure.what();
      enqueue();  // throws if the failed capture broke more than the graph
      wait();
    }
  }

  // Saves the kernels that TensorRT-RTX compiled, unless they are those in the file. Without the file, opening the
  // bundle takes longer.
  void save_kernels() {
#ifdef TRT_MAJOR_RTX
    if (kernels_file_.empty() || !kernels_) return;
    const std::unique_ptr<nvinfer1::IHostMemory> content(kernels_->serialize());
    if (!content || content->size() == saved_bytes_) return;
    if (write_checked(kernels_file_, content->data(), content->size())) saved_bytes_ = content->size();
#endif
  }

  std::optional<CurrentDevice> closing_;  // the first member, so that the others are destroyed on their GPU
  std::string where_, description_, warning_;
  Manifest manifest_;
  Gpu gpu_;
  CudaHandle<cudaStream_t> stream_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
#ifdef TRT_MAJOR_RTX
  std::unique_ptr<nvinfer1::IRuntimeConfig> config_;
  std::unique_ptr<nvinfer1::IRuntimeCache> kernels_;
  std::filesystem::path kernels_file_;
  std::size_t saved_bytes_ = 0;
#endif
  std::unique_ptr<Buffers> buffers_;
  std::vector<std::size_t> offsets_;  // of the outputs in the buffers; the input is at 0
  std::size_t total_ = 0;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  CudaHandle<cudaGraphExec_t> graph_;
};

}  // namespace

std::unique_ptr<Backend> open_tensorrt(const Bundle& bundle, const BackendOptions& options) {
  const Manifest& manifest = bundle.manifest;
  const std::string& where = bundle.path;
  if (manifest.texts.count("weights") != 0) {
    throw Failure(where + ": the plan was built without its weights, which libm2h does not put back: build it with");
  }
  if (manifest.version_compatible && !options.allow_engine_code) {
    throw Failure(where + ": the plan is version-compatible, so it contains code that runs in this process: set " +
                  "allow_engine_code if you trust its source, or build it without --version-compatible");
  }
  check_version(manifest, installed_version(), where);
  const Gpu gpu = find_gpu(device_index(options.device, where), where);
  check_capability(manifest, gpu, where);
  const CurrentDevice current(gpu.index, where);  // until the members of a constructor that throws are destroyed
  return std::make_unique<TensorRt>(bundle, gpu);
}

}  // namespace m2h::detail
