// TensorRT or TensorRT-RTX, depending on the NvInfer.h at compile time: one plan, one stream, reused buffers.
#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include "backend.hpp"
#include "error.hpp"

namespace m2h::detail {
namespace {

nvinfer1::DataType element(Type type) {
  return type == Type::kUint8 ? nvinfer1::DataType::kUINT8 : nvinfer1::DataType::kFLOAT;
}

class Logger final : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity > Severity::kERROR) return;
    try {
      last = first_line(message);
    } catch (...) {  // a lost message must not end the process
    }
  }
  std::string last = "it gives no reason";
};

void check(cudaError_t status, const std::string& where) {
  if (status != cudaSuccess) throw Failure(where + ": CUDA: " + cudaGetErrorString(status));
}

struct FreeDevice {
  void operator()(void* memory) const noexcept { cudaFree(memory); }
};
using DeviceMemory = std::unique_ptr<void, FreeDevice>;

class Stream {
 public:
  explicit Stream(const std::string& where) { check(cudaStreamCreate(&stream_), where); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() { cudaStreamDestroy(stream_); }
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

int device_index(const std::string& device, const std::string& where) {
  std::string digits = device.rfind("cuda", 0) == 0 ? device.substr(4) : device;
  if (!digits.empty() && digits[0] == ':') digits.erase(0, 1);
  if (digits.empty()) return 0;
  if (digits.size() > 3 || digits.find_first_not_of("0123456789") != std::string::npos) {
    throw Failure(where + ": device '" + device + "': give a GPU as 0 or cuda:0");
  }
  return std::stoi(digits);
}

class TensorRt final : public Backend {
 public:
  TensorRt(const Bundle& bundle, const BackendOptions& options) : where_(bundle.path), manifest_(bundle.manifest) {
    if (manifest_.texts.count("weights") != 0) {
      throw Failure(where_ + ": the plan was built without its weights, which libm2h does not put back: build it with");
    }
    device_ = device_index(options.device, where_);
    check(cudaSetDevice(device_), where_);
    stream_ = std::make_unique<Stream>(where_);
    runtime_.reset(nvinfer1::createInferRuntime(logger_));
    if (!runtime_) throw Failure(where_ + ": TensorRT does not start: " + logger_.last);
    const std::vector<char>& plan = bundle.file(manifest_.engine_file);
    engine_.reset(runtime_->deserializeCudaEngine(plan.data(), plan.size()));
    if (!engine_) throw Failure(where_ + ": TensorRT refuses the plan (" + logger_.last + "); build it again here");
    context_.reset(engine_->createExecutionContext());
    if (!context_) throw Failure(where_ + ": TensorRT cannot run the plan: " + logger_.last);
    place(manifest_.input_name, manifest_.input_shape(), nvinfer1::DataType::kUINT8, manifest_.input_bytes(), true);
    for (const Output& output : manifest_.outputs) {
      place(output.name, output.shape, element(output.type), output.elements() * bytes_of(output.type), false);
    }
    description_ = manifest_.engine + " " + manifest_.engine_version + ", GPU " + std::to_string(device_);
  }

  std::string description() const override { return description_; }

  void run(const std::uint8_t* input, const std::vector<void*>& outputs) override {
    check(cudaSetDevice(device_), where_);  // the current device belongs to the thread, not to the runtime
    const cudaStream_t stream = stream_->get();
    check(cudaMemcpyAsync(buffers_[0].get(), input, sizes_[0], cudaMemcpyHostToDevice, stream), where_);
    if (!context_->enqueueV3(stream)) throw Failure(where_ + ": TensorRT could not run: " + logger_.last);
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      check(cudaMemcpyAsync(outputs[i], buffers_[i + 1].get(), sizes_[i + 1], cudaMemcpyDeviceToHost, stream), where_);
    }
    check(cudaStreamSynchronize(stream), where_);
  }

 private:
  void place(const std::string& name, const std::vector<std::int64_t>& shape, nvinfer1::DataType type,
             std::size_t bytes, bool is_input) {
    const auto mode = is_input ? nvinfer1::TensorIOMode::kINPUT : nvinfer1::TensorIOMode::kOUTPUT;
    const bool there = engine_->getTensorIOMode(name.c_str()) == mode;
    bool fits = there && engine_->getTensorDataType(name.c_str()) == type;
    const nvinfer1::Dims dims = engine_->getTensorShape(name.c_str());
    fits = fits && dims.nbDims == static_cast<int>(shape.size());
    for (int i = 0; fits && i < dims.nbDims; ++i) {
      fits = dims.d[i] == shape[static_cast<std::size_t>(i)] || (i == 0 && dims.d[i] == -1);
    }
    if (!fits) {
      throw Failure(where_ + ": '" + name + "' of the engine is not what the manifest says: build the bundle again");
    }
    if (is_input && dims.d[0] == -1) {
      nvinfer1::Dims one = dims;
      one.d[0] = 1;
      if (!context_->setInputShape(name.c_str(), one)) throw Failure(where_ + ": the plan takes no single frame");
    }
    void* memory = nullptr;
    check(cudaMalloc(&memory, bytes), where_);
    buffers_.emplace_back(memory);
    sizes_.push_back(bytes);
    if (!context_->setTensorAddress(name.c_str(), memory)) throw Failure(where_ + ": TensorRT refuses '" + name + "'");
  }

  std::string where_, description_;
  Manifest manifest_;
  int device_ = 0;
  Logger logger_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  std::vector<DeviceMemory> buffers_;
  std::vector<std::size_t> sizes_;
};

}  // namespace

std::unique_ptr<Backend> open_tensorrt(const Bundle& bundle, const BackendOptions& options) {
  return std::make_unique<TensorRt>(bundle, options);
}

}  // namespace m2h::detail
