// The cv::Mat overloads: a picture, a region of a larger one, and matrices that are reused.
#include <cstring>
#include <iostream>

#include <opencv2/core.hpp>

#include "m2h/point_cloud.hpp"

namespace {

void expect(bool holds, const char* what) {
  if (holds) return;
  std::cerr << "failed: " << what << '\n';
  std::exit(1);
}

bool same(const cv::Mat& a, const cv::Mat& b) {
  return a.size() == b.size() && a.type() == b.type() && std::memcmp(a.data, b.data, a.total() * a.elemSize()) == 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  m2h::Runtime runtime(argv[1]);
  const int width = runtime.info().width, height = runtime.info().height;
  cv::Mat large(height + 8, width + 16, CV_8UC3);
  for (int y = 0; y < large.rows; ++y) {
    for (int x = 0; x < large.cols; ++x) {
      large.at<cv::Vec3b>(y, x) = cv::Vec3b(uchar(x), uchar(3 * y), uchar(x + y));
    }
  }
  const cv::Mat region = large(cv::Rect(5, 3, width, height));
  const m2h::Prediction first = runtime.run(region);
  expect(first.depth.type() == CV_32FC1 && first.depth.rows == height && first.depth.cols == width, "depth's type");
  expect(first.labels.type() == CV_8UC1 && first.normals.type() == CV_32FC3 && first.edges.type() == CV_32FC1, "types");
  m2h::Prediction second;
  runtime.run(region.clone(), second);
  expect(same(first.depth, second.depth) && same(first.labels, second.labels), "a region is read like its copy");
  const uchar* memory = second.depth.data;
  runtime.run(region, second);
  expect(second.depth.data == memory, "matrices are reused");
  try {
    runtime.run(cv::Mat(height, width, CV_8UC1));
    expect(false, "gray is refused");
  } catch (const m2h::Error& error) {
    expect(error.status() == M2H_ERROR, "its status");
  }
  const m2h::Intrinsics camera{300, 300, 31.5, 23.5};
  m2h::PointCloud cloud = m2h::to_point_cloud(first, camera, region, {2, false, true});
  expect(cloud.width == (width + 1) / 2 && cloud.height == (height + 1) / 2, "the cloud's size");
  const int u = 2 * (cloud.width - 1), v = 2 * (cloud.height - 1);
  const std::size_t last = cloud.xyz.size() - 3;
  const float z = first.depth.at<float>(v, u);
  expect(cloud.xyz[last] == float((u - camera.cx) / camera.fx) * z && cloud.xyz[last + 2] == z, "the last point");
  const cv::Vec3b pixel = region.at<cv::Vec3b>(v, u);
  expect(cloud.rgb[last] == pixel[2] && cloud.rgb[last + 1] == pixel[1] && cloud.rgb[last + 2] == pixel[0], "its color");
  expect(cloud.labels.back() == first.labels.at<uchar>(v, u), "its label");
  expect(cloud.normals[last] == -first.normals.at<cv::Vec3f>(v, u)[0], "its normal");
  const float* points = cloud.xyz.data();
  m2h::to_point_cloud(second, camera, cloud, cv::Mat(), {2, false, false});
  expect(cloud.xyz.data() == points && cloud.rgb.empty() && cloud.normals.empty(), "a cloud is reused");
  try {
    (void)m2h::to_point_cloud(m2h::Prediction{}, camera);
    expect(false, "a frame without depth is refused");
  } catch (const m2h::Error& error) {
    expect(error.status() == M2H_ERROR, "its status");
  }
  std::cout << "ok\n";
}
