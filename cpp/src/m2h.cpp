// The C interface: it throws no exception, and keeps the last error message of each thread.
#include "m2h/m2h.h"

#include <cstddef>
#include <cstring>
#include <exception>
#include <new>
#include <string>

#include "error.hpp"
#include "point_cloud.hpp"
#include "runtime.hpp"

struct m2h_runtime {
  m2h::detail::Runtime inner;
};

namespace {

using m2h::detail::Failure;

// A fixed array, so that storing a message cannot fail when memory is exhausted.
thread_local char last_error[1024] = "";

m2h_status remember(const char* text, m2h_status status) noexcept {
  std::size_t length = 0;
  for (; text[length] != '\0' && length + 1 < sizeof last_error; ++length) {
    const auto c = static_cast<unsigned char>(text[length]);
    last_error[length] = c < 0x20 || c == 0x7F ? ' ' : text[length];  // keep it on one line
  }
  last_error[length] = '\0';
  return status;
}

template <typename Body>
m2h_status guarded(Body body) noexcept {
  try {
    body();
    return M2H_OK;
  } catch (const Failure& failure) {
    return remember(failure.what(), failure.status);
  } catch (const std::bad_alloc&) {
    return remember("out of memory", M2H_ERROR);
  } catch (const std::exception& error) {
    return remember(error.what(), M2H_ERROR);
  } catch (...) {
    return remember("the engine failed without a reason", M2H_ERROR);
  }
}

// A struct_size of 0 means the fields of 0.1, in this and every later version. A program that was built
// with 0.1 has only those fields, with any version of the library.
template <typename T>
constexpr std::size_t kFirstSize = 0;
template <>
constexpr std::size_t kFirstSize<m2h_options> = offsetof(m2h_options, uncalibrated) + sizeof(int);
template <>
constexpr std::size_t kFirstSize<m2h_image> = offsetof(m2h_image, color) + sizeof(m2h_color);
template <>
constexpr std::size_t kFirstSize<m2h_results> = offsetof(m2h_results, edges_bytes) + sizeof(std::size_t);
template <>
constexpr std::size_t kFirstSize<m2h_camera> = offsetof(m2h_camera, cy) + sizeof(double);
template <>
constexpr std::size_t kFirstSize<m2h_cloud> = offsetof(m2h_cloud, height) + sizeof(int);
static_assert(sizeof(void*) != 8 || (kFirstSize<m2h_options> == 36 && kFirstSize<m2h_image> == 36 &&
                                     kFirstSize<m2h_results> == 72 && kFirstSize<m2h_camera> == 48 &&
                                     kFirstSize<m2h_cloud> == 88),
              "the fields of 0.1 stay where they are");
static_assert(sizeof(void*) != 8 || (sizeof(m2h_options) == 40 && sizeof(m2h_image) == 40 && sizeof(m2h_results) == 72 &&
                                     sizeof(m2h_camera) == 48 && sizeof(m2h_cloud) == 88),
              "new fields begin behind the structure of 0.1, its padding counted in");

// Converts a caller's structure of this or an older version to this version.
template <typename T>
T upgraded(const T* given, const char* name) {
  T full{};
  if (given == nullptr) return full;
  const std::size_t size = given->struct_size == 0 ? kFirstSize<T> : given->struct_size;
  if (size < kFirstSize<T>) throw Failure(std::string(name) + ": struct_size is less than any version's");
  if (size > sizeof(T)) throw Failure(std::string(name) + ": struct_size is beyond this library's version");
  std::memcpy(&full, given, size);
  return full;
}

}  // namespace

extern "C" {

m2h_status m2h_open(const char* path, const m2h_options* options, m2h_runtime** runtime) {
  return guarded([&] {
    if (runtime == nullptr) throw Failure("m2h_open: runtime is NULL");
    *runtime = nullptr;
    if (path == nullptr) throw Failure("m2h_open: path is NULL");
    *runtime = new m2h_runtime{m2h::detail::Runtime(path, upgraded(options, "options"))};
  });
}

m2h_status m2h_run(m2h_runtime* runtime, const m2h_image* image, const m2h_results* results) {
  return guarded([&] {
    if (runtime == nullptr || image == nullptr || results == nullptr) throw Failure("m2h_run: an argument is NULL");
    runtime->inner.run(upgraded(image, "image"), upgraded(results, "results"));
  });
}

m2h_status m2h_point_cloud(const m2h_results* results, const m2h_camera* camera, const m2h_image* image,
                           m2h_cloud* cloud) {
  return guarded([&] {
    if (results == nullptr || camera == nullptr || cloud == nullptr) throw Failure("m2h_point_cloud: an argument is NULL");
    m2h_cloud full = upgraded(cloud, "cloud");
    const m2h_image picture = upgraded(image, "image");
    m2h::detail::fill_cloud(upgraded(results, "results"), upgraded(camera, "camera"), image == nullptr ? nullptr : &picture,
                            full);
    cloud->width = full.width;
    cloud->height = full.height;
  });
}

m2h_status m2h_get_info(const m2h_runtime* runtime, m2h_info* info) {
  return guarded([&] {
    if (runtime == nullptr || info == nullptr) throw Failure("m2h_get_info: an argument is NULL");
    const std::size_t size = info->struct_size;
    if (size < sizeof info->struct_size || size > sizeof(m2h_info)) {
      throw Failure("m2h_get_info: set info.struct_size to sizeof(m2h_info)");
    }
    m2h_info full = runtime->inner.info();
    full.struct_size = size;
    std::memcpy(info, &full, size);
  });
}

const char* m2h_class_name(const m2h_runtime* runtime, int index) {
  if (runtime == nullptr || index < 0) return nullptr;
  const auto& names = runtime->inner.manifest().class_names;
  return static_cast<std::size_t>(index) < names.size() ? names[static_cast<std::size_t>(index)].c_str() : nullptr;
}

const uint8_t* m2h_class_color(const m2h_runtime* runtime, int index) {
  if (runtime == nullptr || index < 0) return nullptr;
  const auto& palette = runtime->inner.manifest().palette;
  return static_cast<std::size_t>(index) < palette.size() ? palette[static_cast<std::size_t>(index)].data() : nullptr;
}

m2h_status m2h_timings(const m2h_runtime* runtime, double* total, double* engine) {
  return guarded([&] {
    if (runtime == nullptr) throw Failure("m2h_timings: runtime is NULL");
    if (total != nullptr) *total = runtime->inner.total_ms;
    if (engine != nullptr) *engine = runtime->inner.engine_ms;
  });
}

void m2h_close(m2h_runtime* runtime) {
  (void)guarded([&] { delete runtime; });
}

const char* m2h_last_error(void) { return last_error; }

const char* m2h_engines(void) { return m2h::detail::built_engines(); }

}  // extern "C"
