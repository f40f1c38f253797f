// m2h_points FOLDER WIDTH HEIGHT FX FY CX CY STEP DENSE COLOR [GAP]: FOLDER's depth.raw, labels.raw, normals.raw and
// image.raw (with GAP bytes behind each row) as points, in xyz.raw, rgb.raw, point_labels.raw and point_normals.raw.
// Results without a file are left out. The second of two frames must not allocate memory.
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <new>

#include "m2h/point_cloud.hpp"

namespace {

long allocations = 0;

template <typename T>
std::vector<T> load(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  std::vector<T> values(bytes.size() / sizeof(T));
  std::copy(bytes.begin(), bytes.end(), reinterpret_cast<char*>(values.data()));
  return values;
}

template <typename T>
void save(const std::string& path, const std::vector<T>& values) {
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(T)));
}

}  // namespace

void* operator new(std::size_t size) {
  ++allocations;
  if (void* memory = std::malloc(size == 0 ? 1 : size)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

int main(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  if (words.size() < 10) return 3;
  const std::string folder = words[0];
  m2h::Arrays frame;
  frame.width = std::stoi(words[1]);
  frame.height = std::stoi(words[2]);
  frame.depth = load<float>(folder + "/depth.raw");
  frame.labels = load<std::uint8_t>(folder + "/labels.raw");
  frame.normals = load<float>(folder + "/normals.raw");
  const std::vector<std::uint8_t> pixels = load<std::uint8_t>(folder + "/image.raw");
  m2h_image image{};
  image.data = pixels.data();
  image.width = frame.width;
  image.height = frame.height;
  image.stride = words.size() > 10 ? 3 * std::size_t(frame.width) + std::stoul(words[10]) : 0;
  image.color = words[9] == "nv12" ? M2H_NV12 : words[9] == "rgb" ? M2H_RGB : M2H_BGR;
  const m2h::Intrinsics camera{std::stod(words[3]), std::stod(words[4]), std::stod(words[5]), std::stod(words[6])};
  m2h::CloudOptions options;
  options.step = std::stoi(words[7]);
  options.dense = words[8] == "1";
  try {
    m2h::PointCloud cloud;
    m2h::to_point_cloud(frame, camera, cloud, pixels.empty() ? nullptr : &image, options);
    const long before = allocations;
    m2h::to_point_cloud(frame, camera, cloud, pixels.empty() ? nullptr : &image, options);
    if (allocations != before) {
      std::cerr << "error: the second frame allocates " << allocations - before << " times\n";
      return 3;
    }
    save(folder + "/xyz.raw", cloud.xyz);
    save(folder + "/rgb.raw", cloud.rgb);
    save(folder + "/point_labels.raw", cloud.labels);
    save(folder + "/point_normals.raw", cloud.normals);
    std::cout << cloud.width << ' ' << cloud.height << '\n';
  } catch (const m2h::Error& error) {
    std::cerr << "error: " << error.what() << '\n';
    return error.status();
  }
  return 0;
}
