#include "cache.hpp"

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>

#include "sha256.hpp"

namespace m2h::detail {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kDigest = 32;

// The digest as bytes.
std::string digest_of(const void* content, std::size_t size) {
  const std::string digits = sha256(content, size);
  std::string bytes;
  for (std::size_t i = 0; i < digits.size(); i += 2) {
    bytes += static_cast<char>(std::stoi(digits.substr(i, 2), nullptr, 16));
  }
  return bytes;
}

}  // namespace

fs::path user_cache_folder(const std::string& kind) {
  const auto folder_of = [](const char* variable) {
    const char* value = std::getenv(variable);
    const fs::path folder(value == nullptr ? "" : value);
    return folder.is_absolute() ? folder : fs::path();
  };
  fs::path base = folder_of("XDG_CACHE_HOME");
  if (base.empty()) {
    base = folder_of("HOME");
    if (base.empty()) return {};
    base /= ".cache";
  }
  const fs::path folder = base / "m2h-deploy" / kind;
  std::error_code error;
  // Only the user has access, because engines execute the cached code.
  if (fs::create_directories(folder, error)) fs::permissions(folder, fs::perms::owner_all, error);
  return error || !fs::is_directory(folder, error) ? fs::path() : folder;
}

std::optional<std::vector<char>> read_checked(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  std::vector<char> content{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  if (content.size() < kDigest) return std::nullopt;
  const std::string digest(content.begin(), content.begin() + kDigest);
  content.erase(content.begin(), content.begin() + kDigest);
  if (digest_of(content.data(), content.size()) != digest) return std::nullopt;
  return content;
}

bool write_checked(const fs::path& file, const void* content, std::size_t size) {
  fs::path temporary = file;
  temporary += "." + std::to_string(std::random_device{}()) + ".tmp";
  std::ofstream stream(temporary, std::ios::binary);
  const std::string digest = digest_of(content, size);
  stream.write(digest.data(), static_cast<std::streamsize>(digest.size()));
  stream.write(static_cast<const char*>(content), static_cast<std::streamsize>(size));
  stream.close();
  std::error_code error;
  if (stream) fs::rename(temporary, file, error);
  if (stream && !error) return true;
  fs::remove(temporary, error);
  return false;
}

}  // namespace m2h::detail
