// The program that libm2h's tests run; each command prints a line and returns the library's status.
//
//   m2h_driver open BUNDLE                            opens and closes
//   m2h_driver frame BUNDLE IMAGE OUT COLOR [STRIDE]  raw bytes of a picture to OUT/{depth,labels,normals,edges}.raw
//   m2h_driver uncalibrated ...                       the same, of a runtime without the bundle's depth calibration
//   m2h_driver soak BUNDLE FRAMES                     frames of noise into arrays that move now and then
//   m2h_driver threads BUNDLE FRAMES                  two threads, a runtime each, the results of one thread alone
//   m2h_driver misuse BUNDLE                          wrong arguments give an error each, and nothing else
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <random>
#include <thread>

#include "m2h/m2h.hpp"

namespace {

using Bytes = std::vector<std::uint8_t>;

m2h_image image_of(const m2h_info& info, const Bytes& bytes, m2h_color color, std::size_t stride = 0) {
  m2h_image image{};
  image.struct_size = sizeof image;
  image.data = bytes.data();
  image.width = info.width;
  image.height = info.height;
  image.stride = stride;
  image.color = color;
  return image;
}

std::size_t frame_bytes(const m2h_info& info) {
  const std::size_t pixels = static_cast<std::size_t>(info.width) * static_cast<std::size_t>(info.height);
  return info.takes_nv12 ? pixels / 2 * 3 : pixels * 3;
}

Bytes noise(const m2h_info& info, unsigned seed) {
  std::mt19937 generator(seed);
  Bytes bytes(frame_bytes(info));
  for (auto& byte : bytes) byte = static_cast<std::uint8_t>(generator());
  return bytes;
}

m2h_color own_color(const m2h_info& info) { return info.takes_nv12 ? M2H_NV12 : M2H_BGR; }

template <typename T>
void save(const std::string& path, const std::vector<T>& values) {
  if (values.empty()) return;
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(T)));
}

void frame(m2h::Runtime& runtime, const std::string& path, const std::string& out, const std::string& color,
           std::size_t stride) {
  std::ifstream stream(path, std::ios::binary);
  const Bytes bytes{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  const m2h_color order = color == "nv12" ? M2H_NV12 : color == "rgb" ? M2H_RGB : M2H_BGR;
  const m2h::Arrays arrays = runtime.run(image_of(runtime.info(), bytes, order, stride));
  save(out + "/depth.raw", arrays.depth);
  save(out + "/labels.raw", arrays.labels);
  save(out + "/normals.raw", arrays.normals);
  save(out + "/edges.raw", arrays.edges);
}

void soak(m2h::Runtime& runtime, int frames) {
  m2h::Arrays kept;
  for (int i = 0; i < frames; ++i) {
    const Bytes bytes = noise(runtime.info(), static_cast<unsigned>(i));
    m2h::Arrays fresh;
    runtime.run(image_of(runtime.info(), bytes, own_color(runtime.info())), i % 3 == 0 ? fresh : kept);
  }
}

bool same(const m2h::Arrays& a, const m2h::Arrays& b) {
  return a.depth == b.depth && a.labels == b.labels && a.normals == b.normals && a.edges == b.edges;
}

// An error message of one thread is not visible in another.
bool errors_stay_in_their_thread() {
  m2h_runtime* none = nullptr;
  const bool failed = m2h_open(nullptr, nullptr, &none) == M2H_ERROR;
  const std::string mine = m2h_last_error();
  std::string before = "not asked", theirs;
  std::thread([&] {
    before = m2h_last_error();
    (void)m2h_run(nullptr, nullptr, nullptr);
    theirs = m2h_last_error();
  }).join();
  return failed && !mine.empty() && before.empty() && !theirs.empty() && theirs != mine && mine == m2h_last_error();
}

bool threads(const std::string& bundle, int frames) {
  std::vector<m2h::Arrays> expected;
  {
    m2h::Runtime runtime(bundle);
    for (int i = 0; i < frames; ++i) {
      expected.push_back(runtime.run(image_of(runtime.info(), noise(runtime.info(), unsigned(i)), own_color(runtime.info()))));
    }
  }
  int wrong[2] = {0, 0};
  const auto work = [&](int index) {
    try {
      m2h::Runtime runtime(bundle);
      for (int i = 0; i < frames; ++i) {
        const Bytes bytes = noise(runtime.info(), unsigned(i));
        const m2h::Arrays arrays = runtime.run(image_of(runtime.info(), bytes, own_color(runtime.info())));
        wrong[index] += same(arrays, expected[static_cast<std::size_t>(i)]) ? 0 : 1;
      }
    } catch (const std::exception& error) {
      std::cerr << error.what() << '\n';
      ++wrong[index];
    }
  };
  std::thread first(work, 0), second(work, 1);
  first.join();
  second.join();
  return wrong[0] == 0 && wrong[1] == 0;
}

int misuse(m2h::Runtime& runtime) {
  const m2h_info& info = runtime.info();
  const Bytes bytes(frame_bytes(info), 128);
  std::vector<std::uint8_t> labels(static_cast<std::size_t>(info.width) * static_cast<std::size_t>(info.height));
  int failures = 0;
  const auto refused = [&](const char* what, const char* word, m2h_status status) {
    const std::string said = m2h_last_error();
    if (status == M2H_ERROR && said.find(word) != std::string::npos && said.find('\n') == std::string::npos) return;
    std::cerr << what << ": status " << status << ", and the words are '" << said << "', without '" << word << "'\n";
    ++failures;
  };
  const auto run = [&](const std::function<void(m2h_image&, m2h_results&)>& change) {
    m2h_image image = image_of(info, bytes, own_color(info));
    m2h_results results{};
    results.labels = labels.data();
    results.labels_bytes = labels.size();
    image.struct_size = 0;
    change(image, results);
    return m2h_run(runtime.handle(), &image, &results);
  };
  refused("no runtime", "an argument", m2h_run(nullptr, nullptr, nullptr));
  refused("no place for a runtime", "runtime is NULL", m2h_open("nothing", nullptr, nullptr));
  m2h_runtime* none = nullptr;
  refused("no path", "path is NULL", m2h_open(nullptr, nullptr, &none));
  m2h_info old{};
  refused("no size", "struct_size", m2h_get_info(runtime.handle(), &old));
  refused("no pixels", "data is NULL", run([](m2h_image& image, m2h_results&) { image.data = nullptr; }));
  refused("another width", "--camera-size", run([](m2h_image& image, m2h_results&) { image.width += 1; }));
  refused("a negative height", "x -1 pixels", run([](m2h_image& image, m2h_results&) { image.height = -1; }));
  refused("a stride below a row", "stride of 1 ", run([](m2h_image& image, m2h_results&) { image.stride = 1; }));
  refused("an unknown color", "unknown color",
          run([](m2h_image& image, m2h_results&) { image.color = static_cast<m2h_color>(3); }));
  refused("a short array", "labels needs", run([](m2h_image&, m2h_results& results) { results.labels_bytes -= 1; }));
  refused("a newer structure", "beyond", run([](m2h_image& image, m2h_results&) { image.struct_size = 4096; }));
  refused("a structure of no version", "less than", run([](m2h_image& image, m2h_results&) { image.struct_size = 8; }));
  refused("no camera", "an argument is NULL", m2h_point_cloud(nullptr, nullptr, nullptr, nullptr));
  // The result is refused before its size is checked.
  float one = 0;
  if (!info.has_normals) {
    refused("no such result", "gives no normals", run([&](m2h_image&, m2h_results& results) { results.normals = &one; }));
  }
  if (!info.has_edges) {
    refused("no such result", "gives no edges", run([&](m2h_image&, m2h_results& results) { results.edges = &one; }));
  }
  const m2h_color other = info.takes_nv12 ? M2H_BGR : M2H_NV12;
  refused("another color", "--sensor", run([&](m2h_image& image, m2h_results&) { image.color = other; }));
  if (m2h_class_name(runtime.handle(), -1) != nullptr || m2h_class_name(runtime.handle(), info.classes) != nullptr) {
    std::cerr << "a class index out of range has a name\n";
    ++failures;
  }
  if (run([](m2h_image&, m2h_results&) {}) != M2H_OK) {
    std::cerr << "a good call fails after the bad ones: " << m2h_last_error() << '\n';
    ++failures;
  }
  m2h_close(nullptr);
  return failures == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  try {
    if (words.size() < 2) throw std::runtime_error("usage: m2h_driver COMMAND BUNDLE ...");
    if (words[0] == "threads") {
      const bool good = errors_stay_in_their_thread() && threads(words[1], std::stoi(words.at(2)));
      std::cout << (good ? "ok" : "wrong") << '\n';
      return good ? 0 : 1;
    }
    m2h::Options options;
    options.calibrated = words[0] != "uncalibrated";
    m2h::Runtime runtime(words[1], options);
    if (words[0] == "frame" || words[0] == "uncalibrated") {
      const std::size_t stride = words.size() > 5 ? std::stoul(words[5]) : 0;
      frame(runtime, words.at(2), words.at(3), words.at(4), stride);
    } else if (words[0] == "soak") {
      soak(runtime, std::stoi(words.at(2)));
    } else if (words[0] == "misuse") {
      return misuse(runtime);
    }
    const m2h_info& info = runtime.info();
    std::cout << info.variant << ", " << info.engine;
    if (info.calibrated) std::cout << ", depth calibrated by " << info.depth_scale << ' ' << info.depth_offset;
    std::cout << '\n';
    return 0;
  } catch (const m2h::Error& error) {
    std::cerr << "error: " << error.what() << '\n';
    return error.status();
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 3;
  }
}
