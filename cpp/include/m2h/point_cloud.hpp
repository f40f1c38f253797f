// A frame's results as points in the camera's optical frame: x right, y down, z forward, in meters.
//
//   m2h::PointCloud cloud;   // its memory is reused from frame to frame
//   m2h::to_point_cloud(frame, {525, 525, 319.5, 239.5}, cloud, image);
#pragma once

#include "m2h/m2h.hpp"

namespace m2h {

// Pinhole camera without lens distortion, in pixels; the first pixel's center is (0, 0).
struct Intrinsics {
  double fx = 0, fy = 0, cx = 0, cy = 0;
};

struct CloudOptions {
  int step = 1;         // use every step-th row and column, from the first
  bool dense = false;   // leave pixels without depth out, instead of a NaN point for each
  bool normals = true;  // if the frame has them
};

struct PointCloud {
  int width = 0;                     // points per row; of a dense cloud all of them
  int height = 0;                    // rows; 1 for a dense cloud
  std::vector<float> xyz;            // 3 per point
  std::vector<std::uint8_t> rgb;     // 3 per point; empty without an image
  std::vector<std::uint8_t> labels;  // 1 per point; empty if the frame has none
  std::vector<float> normals;        // 3 per point, unit vectors in the optical frame; empty if the frame has none
};

namespace detail {

template <typename T>
void give(std::vector<T>& values, T*& data, std::size_t& bytes) {
  data = values.empty() ? nullptr : values.data();
  bytes = values.size() * sizeof(T);
}

// m2h_point_cloud only reads the results.
template <typename T>
void show(const T* values, std::size_t count, T*& data, std::size_t& bytes) {
  data = count == 0 ? nullptr : const_cast<T*>(values);
  bytes = count * sizeof(T);
}

inline void fill(const m2h_results& frame, int width, int height, const Intrinsics& intrinsics, PointCloud& out,
                 const m2h_image* image, const CloudOptions& options) {
  const auto taken = [&](int side) {
    return side < 1 ? std::size_t(0) : static_cast<std::size_t>((side - 1) / (options.step < 1 ? 1 : options.step) + 1);
  };
  const std::size_t points = taken(width) * taken(height);
  out.xyz.resize(3 * points);
  out.rgb.resize(image != nullptr ? 3 * points : 0);
  out.labels.resize(frame.labels != nullptr ? points : 0);
  out.normals.resize(frame.normals != nullptr && options.normals ? 3 * points : 0);
  m2h_cloud cloud{};
  cloud.struct_size = sizeof cloud;
  cloud.step = options.step;
  cloud.dense = options.dense ? 1 : 0;
  give(out.xyz, cloud.xyz, cloud.xyz_bytes);
  give(out.rgb, cloud.rgb, cloud.rgb_bytes);
  give(out.labels, cloud.labels, cloud.labels_bytes);
  give(out.normals, cloud.normals, cloud.normals_bytes);
  const m2h_camera camera{sizeof camera, width, height, intrinsics.fx, intrinsics.fy, intrinsics.cx, intrinsics.cy};
  check(m2h_point_cloud(&frame, &camera, image, &cloud));
  out.width = cloud.width;
  out.height = cloud.height;
  const std::size_t count = static_cast<std::size_t>(cloud.width) * static_cast<std::size_t>(cloud.height);
  out.xyz.resize(3 * count);  // a dense cloud may have fewer points; the memory is kept
  if (!out.rgb.empty()) out.rgb.resize(3 * count);
  if (!out.labels.empty()) out.labels.resize(count);
  if (!out.normals.empty()) out.normals.resize(3 * count);
}

}  // namespace detail

// Fills `out`, whose memory is reused from frame to frame. Colors come from `image`, which is BGR or RGB: an NV12 image has
// none and is an error.
inline void to_point_cloud(const Arrays& frame, const Intrinsics& intrinsics, PointCloud& out,
                           const m2h_image* image = nullptr, const CloudOptions& options = {}) {
  m2h_results results{};
  results.struct_size = sizeof results;
  detail::show(frame.depth.data(), frame.depth.size(), results.depth, results.depth_bytes);
  detail::show(frame.labels.data(), frame.labels.size(), results.labels, results.labels_bytes);
  detail::show(frame.normals.data(), frame.normals.size(), results.normals, results.normals_bytes);
  detail::fill(results, frame.width, frame.height, intrinsics, out, image, options);
}

inline PointCloud to_point_cloud(const Arrays& frame, const Intrinsics& intrinsics, const m2h_image* image = nullptr,
                                 const CloudOptions& options = {}) {
  PointCloud out;
  to_point_cloud(frame, intrinsics, out, image, options);
  return out;
}

#ifdef M2H_WITH_OPENCV
// The same for matrices. `image` is CV_8UC3 in `color` order; empty for no colors, as with an NV12 camera.
inline void to_point_cloud(const Prediction& frame, const Intrinsics& intrinsics, PointCloud& out,
                           const cv::Mat& image = cv::Mat(), const CloudOptions& options = {},
                           m2h_color color = M2H_BGR) {
  if (!image.empty() && (image.dims != 2 || image.type() != CV_8UC3)) {
    throw Error(M2H_ERROR, "image: expected CV_8UC3 in BGR or RGB order");
  }
  const auto plain = [](const cv::Mat& matrix, int type) {
    if (matrix.empty() || (matrix.type() == type && matrix.isContinuous())) return;
    throw Error(M2H_ERROR, "frame: expected matrices as Runtime::run gives them");
  };
  plain(frame.depth, CV_32FC1);
  plain(frame.labels, CV_8UC1);
  plain(frame.normals, CV_32FC3);
  m2h_results results{};
  results.struct_size = sizeof results;
  detail::show(reinterpret_cast<const float*>(frame.depth.data), frame.depth.total(), results.depth,
               results.depth_bytes);
  detail::show(frame.labels.data, frame.labels.total(), results.labels, results.labels_bytes);
  detail::show(reinterpret_cast<const float*>(frame.normals.data), 3 * frame.normals.total(), results.normals,
               results.normals_bytes);
  m2h_image raw{};
  raw.struct_size = sizeof raw;
  raw.data = image.data;
  raw.width = image.cols;
  raw.height = image.rows;
  raw.stride = image.empty() ? 0 : image.step[0];
  raw.color = color;
  detail::fill(results, frame.depth.cols, frame.depth.rows, intrinsics, out, image.empty() ? nullptr : &raw, options);
}

inline PointCloud to_point_cloud(const Prediction& frame, const Intrinsics& intrinsics,
                                 const cv::Mat& image = cv::Mat(), const CloudOptions& options = {},
                                 m2h_color color = M2H_BGR) {
  PointCloud out;
  to_point_cloud(frame, intrinsics, out, image, options, color);
  return out;
}
#endif

}  // namespace m2h
