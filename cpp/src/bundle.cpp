#include "bundle.hpp"

#include <filesystem>
#include <fstream>

#include "error.hpp"
#include "sha256.hpp"

namespace m2h::detail {
namespace {

namespace fs = std::filesystem;

constexpr const char* kManifest = "manifest.json";
constexpr std::uintmax_t kMaxManifest = 16'000'000;

std::vector<char> read_file(const fs::path& file) {
  std::error_code error;
  const std::uintmax_t size = fs::file_size(file, error);
  std::ifstream stream(file, std::ios::binary);
  if (error || !stream) throw Failure("cannot read " + file.string());
  std::vector<char> content(static_cast<std::size_t>(size));
  stream.read(content.data(), static_cast<std::streamsize>(content.size()));
  if (static_cast<std::uintmax_t>(stream.gcount()) != size) throw Failure("cannot read " + file.string());
  return content;
}

void check_nothing_else(const fs::path& folder, const Manifest& manifest) {
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name != kManifest && manifest.files.count(name) == 0) {
      throw Failure(folder.string() + ": " + name + " is not named in the manifest; a bundle holds nothing else");
    }
  }
  if (error) throw Failure("cannot read the folder " + folder.string() + ": " + error.message());
}

}  // namespace

const std::vector<char>& Bundle::file(const std::string& name) const {
  const auto found = contents.find(name);
  if (found == contents.end()) throw Failure(path + ": " + name + " is not among the manifest's files; build it again");
  return found->second;
}

Bundle read_bundle(const std::string& path) {
  const fs::path folder(path);
  std::error_code error;
  if (!fs::is_regular_file(folder / kManifest, error)) {
    throw Failure(path + " is not a bundle: no manifest.json in it; make one with m2h-deploy build");
  }
  const std::string where = (folder / kManifest).string();
  if (fs::file_size(folder / kManifest, error) > kMaxManifest || error) {
    throw Failure(where + " is too large for a manifest");
  }
  const std::vector<char> text = read_file(folder / kManifest);
  Bundle bundle{path, parse_manifest(std::string(text.begin(), text.end()), where), {}};
  const fs::path home = fs::canonical(folder, error);
  for (const auto& [name, digest] : bundle.manifest.files) {
    const fs::path file = folder / name;
    if (!fs::is_regular_file(file, error)) throw Failure(path + ": " + name + " is missing; build or copy it again");
    if (fs::canonical(file, error).parent_path() != home) {
      throw Failure(path + ": " + name + " leads out of the bundle's folder");
    }
    std::vector<char> content = read_file(file);
    if (sha256(content.data(), content.size()) != digest) {
      throw Failure(path + ": " + name +
                    " does not have the manifest's sha256 (damaged or replaced): build or copy it again");
    }
    bundle.contents[name] = std::move(content);
  }
  check_nothing_else(folder, bundle.manifest);
  return bundle;
}

}  // namespace m2h::detail
