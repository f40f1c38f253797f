// m2h_run BUNDLE SOURCE OUT [--points FX FY CX CY]: depth (16 bits, millimeters) and labels (8 bits) of every frame, and
// its points as PLY, for a camera with this focal length and center in pixels.
//
// With OpenCV, SOURCE is a picture, a folder of pictures, a video or a camera's index, and results are PNG. Without, it
// is a PPM picture (P6) or a folder of them, and results are PGM.
#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <cstring>
#include <functional>
#include <iostream>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

#include "m2h/point_cloud.hpp"

#ifdef EXAMPLE_OPENCV
#include <opencv2/imgcodecs.hpp>
#include <opencv2/videoio.hpp>
#endif

namespace fs = std::filesystem;

namespace {

using Camera = std::optional<m2h::Intrinsics>;

// Writes the points as binary PLY, in this machine's byte order, which is little endian on x86 and ARM.
void write_ply(const fs::path& file, const m2h::PointCloud& cloud) {
  const std::size_t points = cloud.xyz.size() / 3;
  std::ofstream stream(file, std::ios::binary);
  stream << "ply\nformat binary_little_endian 1.0\ncomment m2h-deploy\nelement vertex " << points << '\n';
  stream << "property float x\nproperty float y\nproperty float z\n";
  if (!cloud.normals.empty()) stream << "property float nx\nproperty float ny\nproperty float nz\n";
  stream << "property uchar red\nproperty uchar green\nproperty uchar blue\n";
  if (!cloud.labels.empty()) stream << "property uchar label\n";
  stream << "end_header\n";
  for (std::size_t i = 0; i < points; ++i) {
    stream.write(reinterpret_cast<const char*>(&cloud.xyz[3 * i]), 3 * sizeof(float));
    if (!cloud.normals.empty()) stream.write(reinterpret_cast<const char*>(&cloud.normals[3 * i]), 3 * sizeof(float));
    stream.write(reinterpret_cast<const char*>(&cloud.rgb[3 * i]), 3);
    if (!cloud.labels.empty()) stream.put(static_cast<char>(cloud.labels[i]));
  }
  if (!stream.flush()) throw std::runtime_error("cannot write " + file.string());
}

constexpr m2h::CloudOptions kDense{1, true, true};

double number(const std::string& word) {
  std::size_t read = 0;
  double value = 0;
  try {
    value = std::stod(word, &read);
  } catch (const std::exception&) {
    read = 0;
  }
  if (read == 0 || read != word.size()) throw std::runtime_error("--points: '" + word + "' is not a number");
  return value;
}

std::vector<fs::path> pictures(const fs::path& source, const std::vector<std::string>& suffixes) {
  std::vector<fs::path> files;
  if (!fs::is_directory(source)) return {source};
  for (const auto& entry : fs::directory_iterator(source)) {
    const std::string suffix = entry.path().extension().string();
    if (std::find(suffixes.begin(), suffixes.end(), suffix) != suffixes.end()) files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  if (files.empty()) throw std::runtime_error(source.string() + " holds no pictures");
  return files;
}

#ifdef EXAMPLE_OPENCV

void write_png(const fs::path& file, const cv::Mat& pixels) {
  if (!cv::imwrite(file.string(), pixels)) throw std::runtime_error("cannot write " + file.string());
}

void write(const fs::path& out, const std::string& name, const m2h::Prediction& frame) {
  if (!frame.depth.empty()) {
    cv::Mat depth;
    frame.depth.convertTo(depth, CV_16U, 1000);
    write_png(out / (name + "_depth.png"), depth);
  }
  if (!frame.labels.empty()) write_png(out / (name + "_labels.png"), frame.labels);
}

// Returns whether a JPEG lacks its end marker: OpenCV before 4.11 decodes truncated files without an error.
bool truncated_jpeg(const std::vector<std::uint8_t>& bytes) {
  if (bytes.size() < 3 || bytes[0] != 0xFF || bytes[1] != 0xD8 || bytes[2] != 0xFF) return false;
  for (std::size_t at = 2; at + 1 < bytes.size(); ++at) {
    const int marker = bytes[at + 1];
    // A stuffed zero, fill bytes and restart markers are part of the image's data.
    const bool data = marker == 0 || marker == 0xFF || (marker >= 0xD0 && marker <= 0xD7);
    if (bytes[at] != 0xFF || data) continue;
    if (marker == 0xD9) return false;
    const bool alone = marker == 0x01 || marker == 0xD8;  // the others open a segment that begins with its length
    if (!alone && at + 3 >= bytes.size()) return true;
    at += alone ? 1U : 1U + (static_cast<std::size_t>(bytes[at + 2]) << 8) + bytes[at + 3];
  }
  return true;
}

// Reads a picture in BGR; empty for a depth map, as RGB-D folders have one beside each picture.
cv::Mat read_picture(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  const std::vector<std::uint8_t> bytes((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  cv::Mat image;
  if (!bytes.empty() && !truncated_jpeg(bytes)) image = cv::imdecode(bytes, cv::IMREAD_ANYDEPTH | cv::IMREAD_ANYCOLOR);
  if (image.empty()) throw std::runtime_error(file.string() + " is not a readable picture, or truncated");
  if (image.depth() != CV_8U) {
    if (image.channels() > 1) throw std::runtime_error(file.string() + " has more than 8 bits a color");
    std::cerr << file.string() << " is a depth map, not a picture: skipped\n";
    return {};
  }
  cv::Mat color;
  if (image.channels() == 1) cv::merge(std::vector<cv::Mat>(3, image), color);
  return image.channels() == 1 ? color : image;
}

// Calls `use` with each frame and its name; returns how many there were.
int each_frame(const std::string& source, const std::function<void(const cv::Mat&, const std::string&)>& use) {
  const std::vector<std::string> suffixes = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm"};
  const std::string suffix = fs::path(source).extension().string();
  int count = 0;
  if (fs::is_directory(source) || std::find(suffixes.begin(), suffixes.end(), suffix) != suffixes.end()) {
    for (const fs::path& file : pictures(source, suffixes)) {
      const cv::Mat image = read_picture(file);
      if (image.empty()) continue;
      use(image, file.stem().string());
      ++count;
    }
    return count;
  }
  const auto digit = [](unsigned char c) { return std::isdigit(c) != 0; };
  const bool camera = !source.empty() && std::all_of(source.begin(), source.end(), digit);
  // Absolute, because FFmpeg takes the part before a colon for a protocol.
  const std::string opened = fs::exists(source) ? fs::absolute(source).string() : source;
  cv::VideoCapture capture = camera ? cv::VideoCapture(std::stoi(source)) : cv::VideoCapture(opened);
  if (!capture.isOpened()) throw std::runtime_error("cannot open " + source);
  cv::Mat image;
  while (capture.read(image)) {
    char name[32];
    std::snprintf(name, sizeof name, "frame_%06d", count++);
    use(image, name);
  }
  return count;
}

int run(m2h::Runtime& runtime, const std::string& source, const fs::path& out, const Camera& camera,
        std::vector<double>& times) {
  m2h::Prediction prediction;  // its memory is reused from frame to frame
  m2h::PointCloud cloud;
  return each_frame(source, [&](const cv::Mat& image, const std::string& name) {
    runtime.run(image, prediction);
    double total = 0;
    m2h::check(m2h_timings(runtime.handle(), &total, nullptr));
    times.push_back(total);
    write(out, name, prediction);
    if (!camera) return;
    m2h::to_point_cloud(prediction, *camera, cloud, image, kDense);
    write_ply(out / (name + "_points.ply"), cloud);
  });
}

#else

struct Picture {
  int width = 0, height = 0;
  std::vector<std::uint8_t> pixels;  // RGB
};

Picture read_ppm(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  std::string magic;
  int most = 0;
  Picture picture;
  stream >> magic >> picture.width >> picture.height >> most;
  stream.get();
  const bool sane = picture.width > 0 && picture.height > 0 && picture.width <= 16384 && picture.height <= 16384;
  if (!stream || magic != "P6" || most != 255 || !sane) {
    throw std::runtime_error(file.string() + " is not an 8-bit PPM (P6) without comments");
  }
  picture.pixels.resize(3 * static_cast<std::size_t>(picture.width) * static_cast<std::size_t>(picture.height));
  stream.read(reinterpret_cast<char*>(picture.pixels.data()), static_cast<std::streamsize>(picture.pixels.size()));
  if (!stream) throw std::runtime_error(file.string() + " is cut off");
  return picture;
}

std::uint16_t millimeters(float meters) {
  return static_cast<std::uint16_t>(std::lround(std::min(std::max(meters * 1000.0F, 0.0F), 65535.0F)));
}

void write_pgm(const fs::path& file, const m2h::Arrays& frame, int most, const std::vector<std::uint8_t>& bytes) {
  std::ofstream stream(file, std::ios::binary);
  stream << "P5\n" << frame.width << ' ' << frame.height << '\n' << most << '\n';
  stream.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  if (!stream) throw std::runtime_error("cannot write " + file.string());
}

void write(const fs::path& out, const std::string& name, const m2h::Arrays& frame) {
  if (!frame.depth.empty()) {
    std::vector<std::uint8_t> bytes;
    bytes.reserve(2 * frame.depth.size());
    for (const float meters : frame.depth) {
      const std::uint16_t value = millimeters(meters);
      bytes.push_back(static_cast<std::uint8_t>(value >> 8));  // PGM puts the high byte first
      bytes.push_back(static_cast<std::uint8_t>(value & 255));
    }
    write_pgm(out / (name + "_depth.pgm"), frame, 65535, bytes);
  }
  if (!frame.labels.empty()) write_pgm(out / (name + "_labels.pgm"), frame, 255, frame.labels);
}

int run(m2h::Runtime& runtime, const std::string& source, const fs::path& out, const Camera& camera,
        std::vector<double>& times) {
  m2h::Arrays frame;  // its memory is reused from frame to frame
  m2h::PointCloud cloud;
  int count = 0;
  for (const fs::path& file : pictures(source, {".ppm"})) {
    const Picture picture = read_ppm(file);
    m2h_image image{};
    image.struct_size = sizeof image;
    image.data = picture.pixels.data();
    image.width = picture.width;
    image.height = picture.height;
    image.color = M2H_RGB;
    runtime.run(image, frame);
    double total = 0;
    m2h::check(m2h_timings(runtime.handle(), &total, nullptr));
    times.push_back(total);
    write(out, file.stem().string(), frame);
    ++count;
    if (!camera) continue;
    m2h::to_point_cloud(frame, *camera, cloud, &image, kDense);
    write_ply(out / (file.stem().string() + "_points.ply"), cloud);
  }
  return count;
}

#endif

}  // namespace

int main(int argc, char** argv) {
  const bool points = argc == 9 && std::strcmp(argv[4], "--points") == 0;
  if (argc != 4 && !points) {
    std::cerr << "usage: m2h_run BUNDLE SOURCE OUT [--points FX FY CX CY]\n";
    return 2;
  }
  try {
    Camera camera;
    if (points) camera = m2h::Intrinsics{number(argv[5]), number(argv[6]), number(argv[7]), number(argv[8])};
    m2h::Runtime runtime(argv[1]);
    std::cerr << runtime.info().variant << ", " << runtime.info().precision << ", " << runtime.info().engine << '\n';
    if (runtime.info().warning != nullptr) std::cerr << "warning: " << runtime.info().warning << '\n';
    fs::create_directories(argv[3]);
    std::vector<double> times;
    const int frames = run(runtime, argv[2], argv[3], camera, times);
    std::sort(times.begin(), times.end());
    std::cout << "frames " << frames << '\n';
    if (!times.empty()) std::cout << "median_ms " << times[times.size() / 2] << '\n';
    return 0;
  } catch (const m2h::Error& error) {
    std::cerr << "error: " << error.what() << '\n';
    return error.status();
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 2;
  }
}
