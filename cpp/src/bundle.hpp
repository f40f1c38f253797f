// A bundle's files, read once and checked: the engine gets the bytes that were hashed.
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

  // Throws Failure if the manifest does not name the file.
  const std::vector<char>& file(const std::string& name) const;
};

// Throws Failure that names the invalid file or field.
Bundle read_bundle(const std::string& path);

}  // namespace m2h::detail
