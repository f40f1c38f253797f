// SHA-256 (FIPS 180-4).
#pragma once

#include <cstddef>
#include <string>

namespace m2h::detail {

// The digest of `size` bytes as 64 lower-case hexadecimal digits.
std::string sha256(const void* data, std::size_t size);

}  // namespace m2h::detail
