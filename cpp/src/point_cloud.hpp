// Points of a frame's results in the camera's optical frame.
#pragma once

#include "m2h/m2h.h"

namespace m2h::detail {

// Fills the arrays of `cloud`, its width and its height. `image` may be null. Throws Failure.
void fill_cloud(const m2h_results& results, const m2h_camera& camera, const m2h_image* image, m2h_cloud& cloud);

}  // namespace m2h::detail
