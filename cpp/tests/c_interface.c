/* Uses the C interface from C: open, query, run one gray frame, convert it to points, close. */
#include <m2h/m2h.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char** argv) {
  m2h_runtime* runtime = NULL;
  m2h_info info;
  m2h_image image;
  m2h_results results;
  m2h_status status;
  if (argc != 2) return 2;
  status = m2h_open(argv[1], NULL, &runtime);
  if (status != M2H_OK) {
    fprintf(stderr, "error: %s\n", m2h_last_error());
    return (int)status;
  }
  info.struct_size = sizeof info;
  if (m2h_get_info(runtime, &info) != M2H_OK) return 2;
  memset(&image, 0, sizeof image);
  memset(&results, 0, sizeof results);
  {
    const size_t pixels = (size_t)info.width * (size_t)info.height;
    uint8_t* pixel = malloc(3 * pixels);
    if (info.has_depth) {
      results.depth_bytes = sizeof(float) * pixels;
      results.depth = malloc(results.depth_bytes);
      if (results.depth == NULL) return 2;
    }
    if (info.has_labels) {
      results.labels_bytes = pixels;
      results.labels = malloc(pixels);
      if (results.labels == NULL) return 2;
    }
    if (pixel == NULL) return 2;
    memset(pixel, 128, 3 * pixels);
    image.data = pixel;
    image.width = info.width;
    image.height = info.height;
    image.color = info.takes_nv12 ? M2H_NV12 : M2H_BGR;
    status = m2h_run(runtime, &image, &results);
    if (status != M2H_OK) fprintf(stderr, "error: %s\n", m2h_last_error());
    if (status == M2H_OK) printf("%s on %s", info.variant, m2h_engines());
    if (status == M2H_OK && results.depth != NULL) printf(", %.3f m", (double)results.depth[0]);
    if (status == M2H_OK && results.labels != NULL) printf(", %s", m2h_class_name(runtime, results.labels[0]));
    if (status == M2H_OK && results.depth != NULL) {
      m2h_camera camera = {0};
      m2h_cloud cloud = {0};
      camera.width = info.width;
      camera.height = info.height;
      camera.fx = camera.fy = 500;
      cloud.step = 4;
      cloud.xyz_bytes = 3 * results.depth_bytes;
      cloud.xyz = malloc(cloud.xyz_bytes);
      if (cloud.xyz == NULL) return 2;
      status = m2h_point_cloud(&results, &camera, NULL, &cloud);
      if (status != M2H_OK) fprintf(stderr, "error: %s\n", m2h_last_error());
      if (status == M2H_OK) printf(", %d x %d points", cloud.width, cloud.height);
      free(cloud.xyz);
    }
    if (status == M2H_OK) printf("\n");
    free(pixel);
    free(results.depth);
    free(results.labels);
  }
  m2h_close(runtime);
  return (int)status;
}
