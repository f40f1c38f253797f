// What an engine compiles, kept in the user's cache folder in the same files as m2h_deploy (m2h_deploy/files/cache.py).
#pragma once

#include <cstddef>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace m2h::detail {

// `$XDG_CACHE_HOME/m2h-deploy/KIND`, or the same under `~/.cache`; empty if it cannot be made.
std::filesystem::path user_cache_folder(const std::string& kind);

// The content that write_checked wrote; nothing if the file is missing or damaged.
std::optional<std::vector<char>> read_checked(const std::filesystem::path& file);

// Writes the sha256 of the content and the content, atomically; returns false if that fails.
bool write_checked(const std::filesystem::path& file, const void* content, std::size_t size);

}  // namespace m2h::detail
