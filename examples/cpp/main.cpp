// Print the nearest point of every frame of a raw video on stdin, with the name of its class.
//
//   ffmpeg -i video.mp4 -vf scale=640:480 -f rawvideo -pix_fmt bgr24 - | build/nearest bundle/
//
// The bundle is of a sensor graph with depth and labels (`m2h-deploy export --sensor uint8 --camera-size 640x480`).
#include <algorithm>
#include <cstdio>
#include <vector>

#include <m2h/m2h.hpp>

int main(int count, char** words) try {
  if (count != 2) {
    std::fprintf(stderr, "usage: nearest BUNDLE < BGR frames\n");
    return 2;
  }
  m2h::Runtime runtime(words[1]);
  const m2h_info& info = runtime.info();
  if (!info.has_depth || !info.has_labels || info.takes_nv12) {
    std::fprintf(stderr, "error: %s: needs depth and labels, and takes BGR pixels\n", words[1]);
    return 2;
  }
  std::vector<std::uint8_t> pixels(std::size_t(info.width) * std::size_t(info.height) * 3);
  m2h_image image{};
  image.data = pixels.data();
  image.width = info.width;
  image.height = info.height;
  image.color = M2H_BGR;

  m2h::Arrays frame;  // reused from frame to frame
  for (long index = 0; std::fread(pixels.data(), 1, pixels.size(), stdin) == pixels.size(); ++index) {
    runtime.run(image, frame);
    const auto nearest = std::min_element(frame.depth.begin(), frame.depth.end()) - frame.depth.begin();
    std::printf("frame %ld: %.3f m at x=%ld y=%ld, %s\n", index, double(frame.depth[std::size_t(nearest)]),
                long(nearest % info.width), long(nearest / info.width),
                runtime.class_name(frame.labels[std::size_t(nearest)]).c_str());
    std::fflush(stdout);
  }
} catch (const m2h::Error& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 2;
}
