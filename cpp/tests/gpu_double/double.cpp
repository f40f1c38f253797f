// CUDA and TensorRT without a GPU. Work is queued by stream and done when the stream is waited for, as on a GPU, so that
// a missing wait, or a buffer that is used again too early, gives wrong numbers. There are two GPUs, of compute
// capability 8.9 and 8.6, and objects belong to the one that was current when they were made.
//
// The environment variable M2H_FAULTS names calls that fail, separated by commas: "enqueue" always, "enqueue@2" the
// second time. AddressSanitizer finds what is not released.
#include <NvInferRuntime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <sstream>
#include <vector>

#include "double.hpp"

using Work = std::vector<std::function<void()>>;
struct CUstream_st {
  int device;
  Work queue;
  bool capturing = false, invalid = false;
};
struct CUgraph_st {
  Work work;
};
struct CUgraphExec_st {
  Work work;
};

namespace {

thread_local int current = 0;
std::map<std::string, int> counts;
std::map<unsigned char*, std::size_t> host_memory, device_memory;
nvinfer1::ILogger* listener = nullptr;

bool fails(const std::string& name) {
  const int call = ++counts[name];
  const char* faults = std::getenv("M2H_FAULTS");
  std::istringstream list(faults == nullptr ? "" : faults);
  for (std::string word; std::getline(list, word, ',');) {
    if (word == name || word == name + "@" + std::to_string(call)) return true;
  }
  return false;
}

cudaError_t unless(const std::string& name, cudaError_t error) { return fails(name) ? error : cudaSuccess; }

bool within(const std::map<unsigned char*, std::size_t>& blocks, const void* memory, std::size_t bytes) {
  const auto* first = static_cast<const unsigned char*>(memory);
  return std::any_of(blocks.begin(), blocks.end(), [&](const auto& block) {
    return first >= block.first && first + bytes <= block.first + block.second;
  });
}

cudaError_t allocate(std::map<unsigned char*, std::size_t>& blocks, void** memory, std::size_t bytes) {
  auto* block = static_cast<unsigned char*>(std::malloc(bytes));
  blocks[block] = bytes;
  *memory = block;
  return cudaSuccess;
}

cudaError_t release(std::map<unsigned char*, std::size_t>& blocks, void* memory) {
  blocks.erase(static_cast<unsigned char*>(memory));
  std::free(memory);
  return cudaSuccess;
}

bool say(const char* message) {
  listener->log(nvinfer1::ILogger::Severity::kERROR, message);
  return false;
}

std::size_t elements(const nvinfer1::Dims& shape) {
  std::size_t count = 1;
  for (int i = 0; i < shape.nbDims; ++i) count *= static_cast<std::size_t>(shape.d[i]);
  return count;
}

}  // namespace

std::string double_report() {
  std::string report;
  for (const auto& [name, count] : counts) report += name + "=" + std::to_string(count) + "; ";
  return report;
}

void double_destroys(int device) noexcept {
  if (device != current) std::fputs("an object is destroyed while another GPU is current\n", stderr);
}

const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaErrorOther";
}
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "out of memory" : "another error";
}
cudaError_t cudaGetLastError() { return cudaSuccess; }

cudaError_t cudaGetDeviceCount(int* count) {
  if (fails("no driver") || fails("old driver")) return cudaErrorInsufficientDriver;
  if (fails("no device")) return cudaErrorNoDevice;
  *count = 2;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = fails("no driver") ? 0 : 12060;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  *value = attribute == cudaDevAttrIntegrated               ? static_cast<int>(fails("integrated"))
           : attribute == cudaDevAttrComputeCapabilityMajor ? 8
                                                            : (device == 0 ? 9 : 6);
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = current;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  current = device;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  if (fails("malloc")) return cudaErrorMemoryAllocation;
  return allocate(device_memory, memory, bytes);
}
cudaError_t cudaFree(void* memory) { return release(device_memory, memory); }
cudaError_t cudaHostAlloc(void** memory, std::size_t bytes, unsigned int) {
  if (fails("host alloc")) return cudaErrorMemoryAllocation;
  return allocate(host_memory, memory, bytes);
}
cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned int) {
  *device = host;
  return unless("map", cudaErrorInvalidValue);
}
cudaError_t cudaFreeHost(void* memory) { return release(host_memory, memory); }

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int) {
  *stream = new CUstream_st{current, {}};
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  double_destroys(stream->device);
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (stream->capturing) return cudaErrorStreamCaptureInvalidated;
  for (const auto& step : stream->queue) step();
  stream->queue.clear();
  return unless("synchronize", cudaErrorLaunchFailure);
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (fails("begin capture") || !stream->queue.empty()) return cudaErrorInvalidValue;
  stream->capturing = true;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const bool invalid = stream->invalid || fails("end capture");
  *graph = invalid ? nullptr : new CUgraph_st{stream->queue};
  stream->queue.clear();
  stream->capturing = stream->invalid = false;
  return invalid ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
}
// Only page-locked memory is copied by the GPU itself.
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  const bool up = kind == cudaMemcpyHostToDevice;
  if (fails("copy") || current != stream->device) return cudaErrorInvalidValue;
  if (!within(up ? device_memory : host_memory, to, bytes)) return cudaErrorInvalidValue;
  if (!within(up ? host_memory : device_memory, from, bytes)) return cudaErrorInvalidValue;
  stream->queue.emplace_back([=] { std::memcpy(to, from, bytes); });
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  if (fails("instantiate")) return cudaErrorMemoryAllocation;
  *executable = new CUgraphExec_st{graph->work};
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  if (fails("launch") || current != stream->device) return cudaErrorInvalidValue;
  stream->queue.insert(stream->queue.end(), executable->work.begin(), executable->work.end());
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return cudaSuccess;
}

#ifdef M2H_DOUBLE_RTX
std::int32_t getInferLibMajorVersion() noexcept { return 1; }
std::int32_t getInferLibMinorVersion() noexcept { return 4; }
#else
std::int32_t getInferLibMajorVersion() noexcept { return 11; }
std::int32_t getInferLibMinorVersion() noexcept { return 1; }
#endif
std::int32_t getInferLibPatchVersion() noexcept { return 0; }
std::int32_t getInferLibBuildVersion() noexcept { return 76; }

namespace nvinfer1 {

IRuntime* createInferRuntime(ILogger& logger) noexcept {
  listener = &logger;
  if (fails("runtime")) return nullptr;
  if (fails("cuda of tensorrt")) say("CUDA initialization failure with error: 35");
  return new IRuntime;
}

ICudaEngine* IRuntime::deserializeCudaEngine(const void* plan, std::size_t size) noexcept {
  if (fails("deserialize")) return say("the plan is of another device"), nullptr;
  auto* engine = new ICudaEngine{current, {}};
  std::istringstream lines(std::string(static_cast<const char*>(plan), size));
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string name, mode, type;
    words >> name >> mode >> type;
    if (name == "code" && !allowed) {
      delete engine;
      return say("host code is not allowed"), nullptr;
    }
    if (name == "code") continue;
    Tensor& tensor = engine->tensors[name];
    tensor.mode = mode == "in" ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
    tensor.type = type == "u8" ? DataType::kUINT8 : DataType::kFLOAT;
    tensor.shape.nbDims = 0;
    for (std::int64_t side = 0; words >> side;) tensor.shape.d[tensor.shape.nbDims++] = side;
  }
  return engine;
}

bool IExecutionContext::setInputShape(const char* name, const Dims& shape) noexcept {
  if (fails("input shape")) return say("the profile does not contain this shape");
  for (auto& [other, tensor] : tensors) tensor.shape.d[0] = other == name ? shape.d[0] : 1;
  return true;
}
Dims IExecutionContext::getTensorShape(const char* name) const noexcept {
  return tensors.count(name) != 0 ? tensors.at(name).shape : Tensor{}.shape;
}
bool IExecutionContext::setTensorAddress(const char* name, void* address) noexcept {
  if (fails("address")) return say("the address is not aligned");
  tensors.at(name).address = static_cast<unsigned char*>(address);
  return true;
}

// A float32 output is the first channel of the image, a uint8 output the second.
bool IExecutionContext::enqueueV3(cudaStream_t stream) noexcept {
  if (stream->capturing && fails("captured enqueue")) {
    stream->invalid = true;
    return say("operation not permitted when stream is capturing");
  }
  if (fails("enqueue") || current != stream->device) return say("an illegal memory access was encountered");
#ifdef M2H_DOUBLE_RTX
  if (cache->kernels.empty()) {
    ++counts["compile"];
    cache->kernels = "compiled";
  }
  if (fails("more kernels")) cache->kernels += " more";
#endif
  const auto image = std::find_if(tensors.begin(), tensors.end(),
                                  [](const auto& one) { return one.second.mode == TensorIOMode::kINPUT; });
  for (const auto& [name, tensor] : tensors) {
    if (tensor.mode == TensorIOMode::kINPUT) continue;
    stream->queue.emplace_back([in = image->second, out = tensor] {
      const std::size_t pixels = elements(in.shape) / 3;
      for (std::size_t i = 0; i < elements(out.shape); ++i) {
        const unsigned char* pixel = in.address + 3 * (i % pixels);
        if (out.type == DataType::kFLOAT) {
          reinterpret_cast<float*>(out.address)[i] = pixel[0];
        } else {
          out.address[i] = pixel[1];
        }
      }
    });
  }
  return true;
}

#ifdef M2H_DOUBLE_RTX
EngineValidity IRuntime::getEngineValidity(const void*, std::int64_t, std::uint64_t* diagnostics) const noexcept {
  // The plan is for the second GPU.
  *diagnostics = current == 1 ? 0 : static_cast<std::uint64_t>(EngineInvalidityDiagnostics::kUNSUPPORTED_CC);
  return current == 1 ? EngineValidity::kVALID : EngineValidity::kINVALID;
}
IHostMemory* IRuntimeCache::serialize() const noexcept { return new IHostMemory{kernels}; }
bool IRuntimeCache::deserialize(const void* content, std::size_t size) noexcept {
  if (fails("old kernels")) return say("the cache is of another driver");
  kernels.assign(static_cast<const char*>(content), size);
  return true;
}
IRuntimeCache* IRuntimeConfig::createRuntimeCache() const noexcept { return new IRuntimeCache; }
bool IRuntimeConfig::setRuntimeCache(const IRuntimeCache& given) noexcept {
  cache = const_cast<IRuntimeCache*>(&given);
  return !fails("set cache");
}
void IRuntimeConfig::setDynamicShapesKernelSpecializationStrategy(
    DynamicShapesKernelSpecializationStrategy strategy) noexcept {
  counts["eager"] = static_cast<int>(strategy);
}
bool IRuntimeConfig::setCudaGraphStrategy(CudaGraphStrategy strategy) noexcept {
  counts["whole graph"] = static_cast<int>(strategy);
  return !fails("graph strategy");
}
IRuntimeConfig* ICudaEngine::createRuntimeConfig() noexcept { return fails("config") ? nullptr : new IRuntimeConfig; }
IExecutionContext* ICudaEngine::createExecutionContext(IRuntimeConfig* config) noexcept {
  if (fails("context")) return say("Error Code 2: OutOfMemory (requested 123 bytes)"), nullptr;
  return new IExecutionContext{device, tensors, config->cache};
}
#else
IExecutionContext* ICudaEngine::createExecutionContext() noexcept {
  if (fails("context")) return say("Error Code 2: OutOfMemory (requested 123 bytes)"), nullptr;
  return new IExecutionContext{device, tensors};
}
#endif

}  // namespace nvinfer1
