#include "point_cloud.hpp"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "error.hpp"

namespace m2h::detail {
namespace {

constexpr int kMaxSide = 16384;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

void check_camera(const m2h_camera& camera) {
  if (camera.width < 1 || camera.height < 1 || camera.width > kMaxSide || camera.height > kMaxSide) {
    throw Failure("camera: " + std::to_string(camera.width) + " x " + std::to_string(camera.height) +
                  " pixels: expected 1 to " + std::to_string(kMaxSide) + " in both directions");
  }
  const bool focal = std::isfinite(camera.fx) && std::isfinite(camera.fy) && camera.fx > 0 && camera.fy > 0;
  if (!focal) throw Failure("camera: fx and fy must be finite and above 0");
  if (!std::isfinite(camera.cx) || !std::isfinite(camera.cy)) throw Failure("camera: cx and cy must be finite");
}

void check_source(const char* name, const void* wanted, const void* source, std::size_t given, std::size_t needed) {
  if (wanted == nullptr) return;
  if (source == nullptr) throw Failure(std::string("cloud: results have no ") + name + ": leave it NULL");
  if (given != needed) {
    throw Failure(std::string("results: ") + name + " of this camera has " + std::to_string(needed) + " bytes, got " +
                  std::to_string(given));
  }
}

void check_space(const char* name, const void* wanted, std::size_t given, std::size_t needed) {
  if (wanted == nullptr || given >= needed) return;
  throw Failure(std::string("cloud: ") + name + " needs an array of " + std::to_string(needed) + " bytes, got " +
                std::to_string(given));
}

// Returns the distance between the rows of `image` in bytes.
std::size_t check_image(const m2h_image* image, const m2h_camera& camera) {
  if (image == nullptr || image->data == nullptr) throw Failure("cloud: rgb needs an image: give one, or leave rgb NULL");
  if (image->color != M2H_BGR && image->color != M2H_RGB) {
    throw Failure("cloud: an NV12 image has no RGB values: convert it to BGR, or leave rgb NULL");
  }
  if (image->width != camera.width || image->height != camera.height) {
    throw Failure("cloud: the image is " + std::to_string(image->width) + " x " + std::to_string(image->height) +
                  " pixels, and the camera's are " + std::to_string(camera.width) + " x " +
                  std::to_string(camera.height));
  }
  const std::size_t row = 3 * static_cast<std::size_t>(camera.width);
  const std::size_t stride = image->stride == 0 ? row : image->stride;
  if (stride < row) throw Failure("image: a stride of " + std::to_string(stride) + " bytes is less than a row");
  return stride;
}

void check(const m2h_results& results, const m2h_camera& camera, const m2h_cloud& cloud, std::size_t points) {
  if (cloud.xyz == nullptr) throw Failure("cloud: xyz is NULL");
  const std::size_t pixels = static_cast<std::size_t>(camera.width) * static_cast<std::size_t>(camera.height);
  check_source("depth", cloud.xyz, results.depth, results.depth_bytes, pixels * sizeof(float));
  check_source("labels", cloud.labels, results.labels, results.labels_bytes, pixels);
  check_source("normals", cloud.normals, results.normals, results.normals_bytes, 3 * pixels * sizeof(float));
  check_space("xyz", cloud.xyz, cloud.xyz_bytes, 3 * points * sizeof(float));
  check_space("rgb", cloud.rgb, cloud.rgb_bytes, 3 * points);
  check_space("labels", cloud.labels, cloud.labels_bytes, points);
  check_space("normals", cloud.normals, cloud.normals_bytes, 3 * points * sizeof(float));
}

}  // namespace

void fill_cloud(const m2h_results& results, const m2h_camera& camera, const m2h_image* image, m2h_cloud& cloud) {
  check_camera(camera);
  if (cloud.step < 0 || cloud.step > kMaxSide) throw Failure("cloud: step must be 1 to " + std::to_string(kMaxSide));
  const int step = cloud.step == 0 ? 1 : cloud.step;
  const int columns = (camera.width + step - 1) / step, rows = (camera.height + step - 1) / step;
  check(results, camera, cloud, static_cast<std::size_t>(columns) * static_cast<std::size_t>(rows));
  const std::size_t stride = cloud.rgb != nullptr ? check_image(image, camera) : 0;
  const std::size_t red = image != nullptr && image->color == M2H_RGB ? 0 : 2;
  // x at a depth of 1 m, rounded once: a point is one multiplication.
  thread_local std::vector<float> rays;
  rays.resize(static_cast<std::size_t>(columns));
  for (int c = 0; c < columns; ++c) rays[std::size_t(c)] = static_cast<float>((c * step - camera.cx) / camera.fx);
  std::size_t n = 0;
  for (int r = 0; r < rows; ++r) {
    const std::size_t v = static_cast<std::size_t>(r) * static_cast<std::size_t>(step);
    const float ray = static_cast<float>((static_cast<double>(v) - camera.cy) / camera.fy);
    for (std::size_t c = 0; c < rays.size(); ++c) {
      const std::size_t u = c * static_cast<std::size_t>(step);
      const std::size_t pixel = v * static_cast<std::size_t>(camera.width) + u;
      const float z = results.depth[pixel];
      const bool valid = z > 0 && z <= std::numeric_limits<float>::max();
      if (!valid && cloud.dense != 0) continue;
      cloud.xyz[3 * n] = valid ? rays[c] * z : kNan;
      cloud.xyz[3 * n + 1] = valid ? ray * z : kNan;
      cloud.xyz[3 * n + 2] = valid ? z : kNan;
      if (cloud.labels != nullptr) cloud.labels[n] = results.labels[pixel];
      if (cloud.rgb != nullptr) {
        const std::uint8_t* color = image->data + v * stride + 3 * u;
        cloud.rgb[3 * n] = color[red];
        cloud.rgb[3 * n + 1] = color[1];
        cloud.rgb[3 * n + 2] = color[2 - red];
      }
      for (std::size_t axis = 0; cloud.normals != nullptr && axis < 3; ++axis) {
        cloud.normals[3 * n + axis] = valid ? -results.normals[3 * pixel + axis] : kNan;
      }
      ++n;
    }
  }
  cloud.width = cloud.dense != 0 ? static_cast<int>(n) : columns;
  cloud.height = cloud.dense != 0 ? 1 : rows;
}

}  // namespace m2h::detail
