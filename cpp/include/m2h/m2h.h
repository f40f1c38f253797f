/* libm2h: runs a sensor bundle of m2h-deploy without Python. The C interface.
 *
 *   m2h_runtime* runtime = NULL;
 *   if (m2h_open("bundle", NULL, &runtime) != M2H_OK) puts(m2h_last_error());
 *
 * Threads: one thread at a time may use a runtime, and any number of runtimes may be used at the same time, one thread
 * each. m2h_last_error belongs to the calling thread. No function throws, prints or ends the process.
 */
#ifndef M2H_M2H_H
#define M2H_M2H_H

#include <stddef.h>
#include <stdint.h>

#if defined(M2H_STATIC)
#define M2H_API
#elif defined(_WIN32)
#if defined(M2H_BUILDING)
#define M2H_API __declspec(dllexport)
#else
#define M2H_API __declspec(dllimport)
#endif
#else
#define M2H_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define M2H_VERSION_MAJOR 0
#define M2H_VERSION_MINOR 1
#define M2H_VERSION_PATCH 0

/* The exit codes of the m2h-deploy command. */
typedef enum m2h_status {
  M2H_OK = 0,
  M2H_CHECK_FAILED = 1, /* the self-test: the engine computes wrong numbers on this machine */
  M2H_ERROR = 2         /* bad input or environment */
} m2h_status;

typedef enum m2h_color {
  M2H_BGR = 0,
  M2H_RGB = 1,
  M2H_NV12 = 2 /* 3/2 H rows: the plane of Y above the plane of interleaved U and V */
} m2h_color;

typedef struct m2h_runtime m2h_runtime;

/* A structure's struct_size is its sizeof, which identifies its version, or 0 for the fields of version 0.1. */

/* Zeros are the defaults: `m2h_options options = {0};`. */
typedef struct m2h_options {
  size_t struct_size;
  int threads;        /* of an engine on the CPU; 0: the bundle's number */
  const char* device; /* as the engine names it, such as CPU, GPU, cuda:0; NULL: the bundle's device */
  int skip_self_test; /* not 0: do not run the self-test when opening */
  /* not 0: run code that the bundle contains, as TensorRT's version-compatible plans do. Only for trusted bundles. */
  int allow_engine_code;
  int uncalibrated; /* not 0: depth is the network's own, as if the bundle had no depth calibration */
} m2h_options;

/* A bundle's input and outputs. Strings are valid as long as the runtime. */
typedef struct m2h_info {
  size_t struct_size; /* set to sizeof(m2h_info) before the call */
  int width;          /* of the camera's image, and of all results */
  int height;
  int takes_nv12;  /* 1: images are M2H_NV12; 0: M2H_BGR or M2H_RGB */
  int has_depth;   /* 1 if the engine gives it */
  int has_labels;
  int has_normals;
  int has_edges;
  float min_depth; /* meters; the network's depth is clamped to this range, before it is calibrated */
  float max_depth;
  int classes;           /* number of classes; labels are below it */
  const char* variant;   /* such as m2h-small */
  const char* precision; /* fp32, fp16, int8, fp8 */
  const char* engine;    /* engine, version and device in words */
  const char* warning;   /* what makes the engine slower than it should be, in one line; NULL if nothing does */
  /* 1: results contain depth_scale * depth + depth_offset, at least 0. 0: the bundle has no calibration, or it was opened
   * uncalibrated; the scale is then 1 and the offset 0. */
  int calibrated;
  float depth_scale;
  float depth_offset; /* meters */
} m2h_info;

/* An image of the camera. `stride` is the distance between rows in bytes, 0 for rows without gaps. A BGR or NV12 image
 * without gaps is read in place; others are copied row by row. */
typedef struct m2h_image {
  size_t struct_size;
  const uint8_t* data;
  int width;
  int height; /* of the picture: H for NV12 too */
  size_t stride;
  m2h_color color;
} m2h_image;

/* The caller's arrays, H x W without gaps; NULL if a result is not requested. `*_bytes` is the size of each in bytes,
 * which is checked. The engine writes into them directly where it can: use the same ones from frame to frame. */
typedef struct m2h_results {
  size_t struct_size;
  float* depth;       /* meters, calibrated if m2h_info says so */
  size_t depth_bytes;
  uint8_t* labels; /* class index */
  size_t labels_bytes;
  float* normals; /* H x W x 3, unit vectors: x left, y up, z towards the camera */
  size_t normals_bytes;
  float* edges; /* probability of a boundary, 0 to 1 */
  size_t edges_bytes;
} m2h_results;

/* The pinhole camera that took the picture, without lens distortion. In pixels; the first pixel's center is (0, 0). */
typedef struct m2h_camera {
  size_t struct_size;
  int width; /* of the picture, and of the results */
  int height;
  double fx;
  double fy;
  double cx;
  double cy;
} m2h_camera;

/* Points in the camera's optical frame: x right, y down, z forward, in meters. The arrays are the caller's, with space
 * for a point per pixel of every step-th row and column; `*_bytes` is the size of each. NULL if one is not requested. */
typedef struct m2h_cloud {
  size_t struct_size;
  int step;  /* use every step-th row and column, from the first; 0 is 1 */
  int dense; /* 0: organized, where a pixel without depth is a NaN point; not 0: such points are left out */
  float* xyz; /* 3 per point */
  size_t xyz_bytes;
  uint8_t* rgb; /* 3 per point */
  size_t rgb_bytes;
  uint8_t* labels; /* 1 per point */
  size_t labels_bytes;
  float* normals; /* 3 per point, in the optical frame: the opposite of m2h_results.normals */
  size_t normals_bytes;
  int width; /* set by the call: points per row; of a dense cloud all of them */
  int height; /* set by the call: rows; 1 for a dense cloud */
} m2h_cloud;

/* Opens the bundle in the folder `path`: manifest, sha256 of every file, engine, self-test. `*runtime` is NULL after a
 * failure. */
M2H_API m2h_status m2h_open(const char* path, const m2h_options* options, m2h_runtime** runtime);

/* One frame. Results that are not NULL in `results` are filled, and one that the bundle does not give is an error;
 * after a failure their content is undefined. */
M2H_API m2h_status m2h_run(m2h_runtime* runtime, const m2h_image* image, const m2h_results* results);

/* Converts a frame's results to points: depth, and the others that the cloud requests. A depth that is not finite or not
 * above 0 is invalid. Colors come from `image`, which is BGR or RGB: requesting them with an NV12 image, which has none, is
 * an error. `image` may be NULL if they are not requested. Allocates no memory after a thread's first call. */
M2H_API m2h_status m2h_point_cloud(const m2h_results* results, const m2h_camera* camera, const m2h_image* image,
                                   m2h_cloud* cloud);

M2H_API m2h_status m2h_get_info(const m2h_runtime* runtime, m2h_info* info);

/* Name of a class and its color (3 bytes, RGB); NULL if there is no such class. */
M2H_API const char* m2h_class_name(const m2h_runtime* runtime, int index);
M2H_API const uint8_t* m2h_class_color(const m2h_runtime* runtime, int index);

/* Milliseconds of the last m2h_run of this runtime: the whole call, and the engine's own part of it. */
M2H_API m2h_status m2h_timings(const m2h_runtime* runtime, double* total, double* engine);

/* Releases the runtime. Does nothing for NULL. */
M2H_API void m2h_close(m2h_runtime* runtime);

/* The one-line error message of this thread's last failed call; never NULL. Valid until its next failed call. */
M2H_API const char* m2h_last_error(void);

/* Engines that this library was built with, such as "openvino, onnxruntime". */
M2H_API const char* m2h_engines(void);

#ifdef __cplusplus
}
#endif

#endif
