// m2h_overhead BUNDLE [FRAMES]: prints the time that libm2h adds to the engine's own, as JSON.
#include <algorithm>
#include <iostream>
#include <random>

#include "m2h/m2h.hpp"

int main(int argc, char** argv) {
  if (argc < 2) {
    std::cerr << "usage: m2h_overhead BUNDLE [FRAMES]\n";
    return 2;
  }
  try {
    const int frames = argc > 2 ? std::stoi(argv[2]) : 200;
    if (frames < 1) throw std::runtime_error("frames: at least 1");
    m2h::Runtime runtime(argv[1]);
    const m2h_info& info = runtime.info();
    const std::size_t pixels = static_cast<std::size_t>(info.width) * static_cast<std::size_t>(info.height);
    std::vector<std::uint8_t> bytes(info.takes_nv12 ? pixels / 2 * 3 : pixels * 3);
    std::mt19937 generator(0);
    for (auto& byte : bytes) byte = static_cast<std::uint8_t>(generator());
    m2h::Arrays out;
    // The three kinds of input: read in place, with a gap between rows, and in another color order.
    struct Way {
      const char* name;
      m2h_color color;
      bool gap;
    };
    std::vector<Way> ways = {{"in place", info.takes_nv12 ? M2H_NV12 : M2H_BGR, false}};
    ways.push_back({"with a stride", ways[0].color, true});
    if (!info.takes_nv12) ways.push_back({"RGB", M2H_RGB, false});
    const std::size_t row = (info.takes_nv12 ? 1 : 3) * static_cast<std::size_t>(info.width);
    std::vector<std::uint8_t> gapped(bytes.size() / row * (row + 64), 100);
    std::cout << "{";
    for (std::size_t w = 0; w < ways.size(); ++w) {
      std::vector<double> total, over;
      for (int i = -5; i < frames; ++i) {
        m2h_image image{};
        image.data = ways[w].gap ? gapped.data() : bytes.data();
        image.width = info.width;
        image.height = info.height;
        image.stride = ways[w].gap ? row + 64 : 0;
        image.color = ways[w].color;
        runtime.run(image, out);
        double all = 0, engine = 0;
        m2h::check(m2h_timings(runtime.handle(), &all, &engine));
        if (i < 0) continue;
        total.push_back(all);
        over.push_back(100 * (all - engine) / engine);
      }
      std::sort(total.begin(), total.end());
      std::sort(over.begin(), over.end());
      std::cout << (w ? ", " : "") << "\"" << ways[w].name << "\": {\"median_ms\": " << total[total.size() / 2]
                << ", \"overhead_percent\": " << over[over.size() / 2] << "}";
    }
    std::cout << "}\n";
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 2;
  }
}
