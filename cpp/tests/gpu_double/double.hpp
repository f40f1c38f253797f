// What the double of CUDA and TensorRT counted, such as "enqueue=2; launch=3; ": calls, by their names in M2H_FAULTS.
#pragma once

#include <string>

std::string double_report();
