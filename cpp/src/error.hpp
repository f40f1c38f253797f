// An error with a one-line message: what is wrong, where, and what to do.
#pragma once

#include <stdexcept>
#include <string>

#include "m2h/m2h.h"

namespace m2h::detail {

class Failure : public std::runtime_error {
 public:
  explicit Failure(const std::string& what, m2h_status kind = M2H_ERROR)
      : std::runtime_error(what), status(kind) {}
  m2h_status status;
};

// The first line of another library's message; the others are locations in its sources.
inline std::string first_line(const std::string& text) {
  const auto start = text.find_first_not_of(" \t\r\n");
  if (start == std::string::npos) return "it gives no reason";
  return text.substr(start, text.find_first_of("\r\n", start) - start);
}

}  // namespace m2h::detail
