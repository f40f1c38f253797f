// The part of TensorRT, or with M2H_DOUBLE_RTX of TensorRT-RTX, that libm2h calls, declared for a double: see
// double.cpp. A plan of it is text, a line for each tensor: name, "in" or "out", "u8" or "f32", and its sides.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <map>
#include <string>

#define NV_TENSORRT_MAJOR 10
#define NV_TENSORRT_MINOR 16
#ifdef M2H_DOUBLE_RTX
#define TRT_MAJOR_RTX 1
#define TRT_MINOR_RTX 4
#endif

std::int32_t getInferLibMajorVersion() noexcept;
std::int32_t getInferLibMinorVersion() noexcept;
std::int32_t getInferLibPatchVersion() noexcept;
std::int32_t getInferLibBuildVersion() noexcept;

// Complains on stderr if another GPU is current than the one that an object belongs to.
void double_destroys(int device) noexcept;

namespace nvinfer1 {

enum class DataType : std::int32_t { kFLOAT = 0, kUINT8 = 5 };
enum class TensorIOMode : std::int32_t { kNONE = 0, kINPUT = 1, kOUTPUT = 2 };
struct Dims {
  std::int32_t nbDims;
  std::int64_t d[8];
};

class ILogger {
 public:
  enum class Severity : std::int32_t { kINTERNAL_ERROR = 0, kERROR = 1, kWARNING = 2 };
  virtual ~ILogger() = default;
  virtual void log(Severity severity, const char* message) noexcept = 0;
};

struct Tensor {
  TensorIOMode mode = TensorIOMode::kNONE;
  DataType type = DataType::kFLOAT;
  Dims shape{-1, {}};
  unsigned char* address = nullptr;
};
using Tensors = std::map<std::string, Tensor>;

class IHostMemory {
 public:
  void* data() noexcept { return content.data(); }
  std::size_t size() const noexcept { return content.size(); }
  std::string content;
};

#ifdef M2H_DOUBLE_RTX
enum class EngineValidity : std::int32_t { kVALID = 0, kSUBOPTIMAL = 1, kINVALID = 2 };
enum class EngineInvalidityDiagnostics : std::uint64_t {
  kVERSION_MISMATCH = 1,
  kUNSUPPORTED_CC = 2,
  kOLD_CUDA_DRIVER = 4,
  kOLD_CUDA_RUNTIME = 8,
  kINSUFFICIENT_GPU_MEMORY = 16,
  kMALFORMED_ENGINE = 32,
  kCUDA_ERROR = 64
};
enum class CudaGraphStrategy : std::int32_t { kDISABLED = 0, kWHOLE_GRAPH_CAPTURE = 1 };
enum class DynamicShapesKernelSpecializationStrategy : std::int32_t { kLAZY = 0, kEAGER = 1 };

class IRuntimeCache {
 public:
  IHostMemory* serialize() const noexcept;
  bool deserialize(const void* content, std::size_t size) noexcept;
  std::string kernels;
};

class IRuntimeConfig {
 public:
  IRuntimeCache* createRuntimeCache() const noexcept;
  bool setRuntimeCache(const IRuntimeCache& given) noexcept;
  void setDynamicShapesKernelSpecializationStrategy(DynamicShapesKernelSpecializationStrategy strategy) noexcept;
  bool setCudaGraphStrategy(CudaGraphStrategy strategy) noexcept;
  IRuntimeCache* cache = nullptr;
};
#endif

class IExecutionContext {
 public:
  ~IExecutionContext() { double_destroys(device); }
  bool setInputShape(const char* name, const Dims& shape) noexcept;
  Dims getTensorShape(const char* name) const noexcept;
  bool setTensorAddress(const char* name, void* address) noexcept;
  bool enqueueV3(cudaStream_t stream) noexcept;
  int device;
  Tensors tensors;
#ifdef M2H_DOUBLE_RTX
  IRuntimeCache* cache = nullptr;
#endif
};

class ICudaEngine {
 public:
  ~ICudaEngine() { double_destroys(device); }
  std::int32_t getNbIOTensors() const noexcept { return static_cast<std::int32_t>(tensors.size()); }
  TensorIOMode getTensorIOMode(const char* name) const noexcept { return find(name).mode; }
  DataType getTensorDataType(const char* name) const noexcept { return find(name).type; }
  Dims getTensorShape(const char* name) const noexcept { return find(name).shape; }
#ifdef M2H_DOUBLE_RTX
  IRuntimeConfig* createRuntimeConfig() noexcept;
  IExecutionContext* createExecutionContext(IRuntimeConfig* config) noexcept;
#else
  IExecutionContext* createExecutionContext() noexcept;
#endif
  Tensor find(const char* name) const { return tensors.count(name) != 0 ? tensors.at(name) : Tensor{}; }
  int device;
  Tensors tensors;
};

class IRuntime {
 public:
  void setEngineHostCodeAllowed(bool given) noexcept { allowed = given; }
  ICudaEngine* deserializeCudaEngine(const void* plan, std::size_t size) noexcept;
#ifdef M2H_DOUBLE_RTX
  std::int64_t getEngineHeaderSize() const noexcept { return 8; }
  EngineValidity getEngineValidity(const void* plan, std::int64_t size, std::uint64_t* diagnostics) const noexcept;
#endif
  bool allowed = false;
};

IRuntime* createInferRuntime(ILogger& logger) noexcept;

}  // namespace nvinfer1
