#include "backend.hpp"

#include "error.hpp"

namespace m2h::detail {

// Concatenated by the preprocessor, which cannot fail at run time: the C interface returns it unchanged.
const char* built_engines() noexcept {
  static constexpr char names[] = ""
#ifdef M2H_OPENVINO
      ", openvino"
#endif
#ifdef M2H_ONNXRUNTIME
      ", onnxruntime"
#endif
#ifdef M2H_TENSORRT
      ", " M2H_TENSORRT
#endif
      ;
  return sizeof names > 2 ? names + 2 : "no engine";
}

std::unique_ptr<Backend> open_backend(const Bundle& bundle, const BackendOptions& options) {
  const std::string& kind = bundle.manifest.engine;
#ifdef M2H_OPENVINO
  if (kind == "openvino") return open_openvino(bundle, options);
#endif
#ifdef M2H_ONNXRUNTIME
  if (kind == "onnxruntime") return open_onnxruntime(bundle, options);
#endif
#ifdef M2H_TENSORRT
  if (kind == M2H_TENSORRT) return open_tensorrt(bundle, options);
#endif
  (void)options;
  throw Failure(bundle.path + " runs on " + kind.substr(0, 64) + ", and this library was built with " +
                built_engines() + ": build the library with it, or the bundle with --engine");
}

}  // namespace m2h::detail
