// A bundle's files, read once and checked: what was hashed is what the engine gets.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "manifest.hpp"

namespace m2h::detail {

struct Bundle {
  std::string path;
  Manifest manifest;
  std::map<std::string, std::vector<char>> contents;  // by file name

  // Throws Failure where the manifest names no such file.
  const std::vector<char>& file(const std::string& name) const;
};

// Throws Failure that names the file or field that does not fit.
Bundle read_bundle(const std::string& path);

}  // namespace m2h::detail
