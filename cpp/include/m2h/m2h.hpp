// libm2h for C++17: owns the runtime, throws m2h::Error, and takes and returns cv::Mat if OpenCV's headers are found.
//
//   m2h::Runtime runtime("bundle");
//   m2h::Prediction frame = runtime.run(image);   // image: cv::Mat CV_8UC3 BGR
//   frame.depth;                                  // CV_32FC1, meters
//
// Define M2H_NO_OPENCV to build without OpenCV although it is installed. Threads: see m2h.h.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "m2h/m2h.h"

#if !defined(M2H_NO_OPENCV) && defined(__has_include)
#if __has_include(<opencv2/core/mat.hpp>)
#define M2H_WITH_OPENCV 1
#include <opencv2/core/mat.hpp>
#endif
#endif

namespace m2h {

// An error of the C interface: a status and a one-line message.
class Error : public std::runtime_error {
 public:
  Error(m2h_status status, const std::string& what) : std::runtime_error(what), status_(status) {}
  m2h_status status() const noexcept { return status_; }

 private:
  m2h_status status_;
};

inline void check(m2h_status status) {
  if (status != M2H_OK) throw Error(status, m2h_last_error());
}

// A frame's results in owned memory; empty if the engine does not give one or it was not requested.
struct Arrays {
  int width = 0;
  int height = 0;
  std::vector<float> depth;           // height x width, meters
  std::vector<std::uint8_t> labels;   // height x width
  std::vector<float> normals;         // height x width x 3
  std::vector<float> edges;           // height x width, 0 to 1
};

#ifdef M2H_WITH_OPENCV
// The same as matrices; empty if the engine does not give one.
struct Prediction {
  cv::Mat depth;    // CV_32FC1, meters
  cv::Mat labels;   // CV_8UC1
  cv::Mat normals;  // CV_32FC3
  cv::Mat edges;    // CV_32FC1, 0 to 1
};
#endif

struct Options {
  int threads = 0;
  std::string device;
  bool self_test = true;
  bool allow_engine_code = false;  // see m2h_options
  bool calibrated = true;          // false: depth is the network's own
};

class Runtime {
 public:
  explicit Runtime(const std::string& bundle, const Options& options = {}) {
    m2h_options raw{};
    raw.struct_size = sizeof raw;
    raw.threads = options.threads;
    raw.device = options.device.empty() ? nullptr : options.device.c_str();
    raw.skip_self_test = options.self_test ? 0 : 1;
    raw.allow_engine_code = options.allow_engine_code ? 1 : 0;
    raw.uncalibrated = options.calibrated ? 0 : 1;
    m2h_runtime* opened = nullptr;
    check(m2h_open(bundle.c_str(), &raw, &opened));
    handle_.reset(opened);
    info_.struct_size = sizeof info_;
    check(m2h_get_info(opened, &info_));
  }

  const m2h_info& info() const noexcept { return info_; }
  m2h_runtime* handle() const noexcept { return handle_.get(); }

  std::string class_name(int index) const {
    const char* name = m2h_class_name(handle_.get(), index);
    return name ? name : "";
  }

  void run(const m2h_image& image, const m2h_results& results) { check(m2h_run(handle_.get(), &image, &results)); }

  // Fills `out`, whose memory is reused from frame to frame.
  void run(const m2h_image& image, Arrays& out) {
    const std::size_t pixels = static_cast<std::size_t>(info_.width) * static_cast<std::size_t>(info_.height);
    out.width = info_.width;
    out.height = info_.height;
    out.depth.resize(info_.has_depth ? pixels : 0);
    out.labels.resize(info_.has_labels ? pixels : 0);
    out.normals.resize(info_.has_normals ? 3 * pixels : 0);
    out.edges.resize(info_.has_edges ? pixels : 0);
    m2h_results results{};
    results.struct_size = sizeof results;
    set(out.depth, results.depth, results.depth_bytes);
    set(out.labels, results.labels, results.labels_bytes);
    set(out.normals, results.normals, results.normals_bytes);
    set(out.edges, results.edges, results.edges_bytes);
    run(image, results);
  }

  Arrays run(const m2h_image& image) {
    Arrays out;
    run(image, out);
    return out;
  }

#ifdef M2H_WITH_OPENCV
  // CV_8UC3 in `color` order, or CV_8UC1 of 3/2 H rows for NV12. Matrices of `out` are reused if size and type match.
  void run(const cv::Mat& image, Prediction& out, m2h_color color = M2H_BGR) {
    if (info_.takes_nv12) color = M2H_NV12;
    const int type = color == M2H_NV12 ? CV_8UC1 : CV_8UC3;
    if (image.dims != 2 || image.type() != type) {
      throw Error(M2H_ERROR, color == M2H_NV12 ? "image: expected CV_8UC1 of 3/2 H rows, for NV12"
                                               : "image: expected CV_8UC3 in BGR or RGB order");
    }
    m2h_image raw{};
    raw.struct_size = sizeof raw;
    raw.data = image.data;
    raw.width = image.cols;
    raw.height = color == M2H_NV12 ? image.rows * 2 / 3 : image.rows;
    raw.stride = image.step[0];
    raw.color = color;
    m2h_results results{};
    results.struct_size = sizeof results;
    set(info_.has_depth, CV_32FC1, out.depth, results.depth, results.depth_bytes);
    set(info_.has_labels, CV_8UC1, out.labels, results.labels, results.labels_bytes);
    set(info_.has_normals, CV_32FC3, out.normals, results.normals, results.normals_bytes);
    set(info_.has_edges, CV_32FC1, out.edges, results.edges, results.edges_bytes);
    run(raw, results);
  }

  Prediction run(const cv::Mat& image, m2h_color color = M2H_BGR) {
    Prediction out;
    run(image, out, color);
    return out;
  }
#endif

 private:
  struct Close {
    void operator()(m2h_runtime* runtime) const noexcept { m2h_close(runtime); }
  };

  template <typename T>
  static void set(std::vector<T>& values, T*& data, std::size_t& bytes) {
    data = values.empty() ? nullptr : values.data();
    bytes = values.size() * sizeof(T);
  }

#ifdef M2H_WITH_OPENCV
  template <typename T>
  void set(int wanted, int type, cv::Mat& matrix, T*& data, std::size_t& bytes) {
    if (!wanted) {
      matrix.release();
      return;
    }
    if (!matrix.isContinuous()) matrix.release();  // a region of another matrix: create would keep it
    matrix.create(info_.height, info_.width, type);
    data = reinterpret_cast<T*>(matrix.data);
    bytes = matrix.total() * matrix.elemSize();
  }
#endif

  std::unique_ptr<m2h_runtime, Close> handle_;
  m2h_info info_{};
};

}  // namespace m2h
