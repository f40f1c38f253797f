// m2h_gpu BUNDLE DEVICE ALLOW_CODE: four frames on a double of CUDA and TensorRT (gpu_double), one of them from another
// thread, one in RGB order. Prints the engine, warnings and errors, the first pixel of each frame's results, the GPU that
// is current after them, and the calls that the double counted.
#include <cuda_runtime_api.h>

#include <iostream>
#include <thread>

#include "gpu_double/double.hpp"
#include "m2h/m2h.hpp"

namespace {

void frame(m2h::Runtime& runtime, int blue, int green, m2h_color color) {
  const m2h_info& info = runtime.info();
  const std::size_t pixels = std::size_t(info.width) * std::size_t(info.height);
  std::vector<std::uint8_t> bytes;
  for (std::size_t i = 0; i < pixels; ++i) {
    const int first = color == M2H_RGB ? 0 : blue, last = color == M2H_RGB ? blue : 0;
    for (const int value : {first, green, last}) bytes.push_back(static_cast<std::uint8_t>(value));
  }
  m2h_image image{};
  image.data = bytes.data();
  image.width = info.width;
  image.height = info.height;
  image.color = color;
  try {
    const m2h::Arrays out = runtime.run(image);
    bool same = true;
    for (std::size_t i = 0; i < pixels; ++i) same = same && out.depth[i] == out.depth[0] && out.labels[i] == out.labels[0];
    std::cout << "frame " << out.depth[0] << ' ' << int(out.labels[0]) << (same ? "" : " and others") << '\n';
  } catch (const m2h::Error& error) {
    std::cout << "failed: " << error.what() << '\n';
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 3;
  m2h_status status = M2H_OK;
  try {
    m2h::Options options;
    options.device = argv[2];
    options.allow_engine_code = std::string(argv[3]) == "1";
    m2h::Runtime runtime(argv[1], options);
    std::cout << "engine " << runtime.info().engine << '\n';
    if (runtime.info().warning != nullptr) std::cout << "warning: " << runtime.info().warning << '\n';
    frame(runtime, 10, 11, M2H_BGR);
    frame(runtime, 20, 21, M2H_BGR);
    std::thread([&] { frame(runtime, 30, 31, M2H_BGR); }).join();
    frame(runtime, 40, 41, M2H_RGB);
  } catch (const m2h::Error& error) {
    std::cout << "error: " << error.what() << '\n';
    status = error.status();
  }
  int device = -1;
  (void)cudaGetDevice(&device);
  std::cout << "device " << device << '\n' << double_report() << '\n';
  return status;
}
