#include "backend.hpp"

#include "error.hpp"

namespace m2h::detail {

const std::string& built_engines() {
  static const std::string names = [] {
    std::string list;
    const auto add = [&list](const char* name) { list += (list.empty() ? "" : ", ") + std::string(name); };
#ifdef M2H_OPENVINO
    add("openvino");
#endif
#ifdef M2H_ONNXRUNTIME
    add("onnxruntime");
#endif
#ifdef M2H_TENSORRT
    add(M2H_TENSORRT);
#endif
    (void)add;
    return list;
  }();
  return names;
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
                (built_engines().empty() ? "no engine" : built_engines()) +
                ": build the library with it, or the bundle with --engine");
}

}  // namespace m2h::detail
