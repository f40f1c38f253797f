#include "affinity.hpp"

#include <algorithm>

#include "error.hpp"

#ifdef __linux__
#include <sched.h>

#include <array>
#include <cerrno>
#include <cstring>
#endif

namespace m2h::detail {
namespace {

std::string words(const std::vector<int>& processors) {
  std::string list;
  for (const int processor : processors) list += (list.empty() ? "" : ", ") + std::to_string(processor);
  return list;
}

#ifdef __linux__

// One set holds 1024 processors, and the kernel refuses sets that are smaller than its own.
using Set = std::array<cpu_set_t, 8>;
constexpr int kMost = 8 * CPU_SETSIZE;

bool stay_on(const std::vector<int>& processors) {
  Set set{};
  for (const int processor : processors) {
    if (processor >= 0 && processor < kMost) CPU_SET_S(static_cast<std::size_t>(processor), sizeof set, set.data());
  }
  return sched_setaffinity(0, sizeof set, set.data()) == 0;
}

#endif

}  // namespace

#ifdef __linux__

std::vector<int> usable_processors() {
  Set set{};
  std::vector<int> processors;
  if (sched_getaffinity(0, sizeof set, set.data()) != 0) return processors;
  for (int processor = 0; processor < kMost; ++processor) {
    if (CPU_ISSET_S(static_cast<std::size_t>(processor), sizeof set, set.data())) processors.push_back(processor);
  }
  return processors;
}

Affinity::Affinity(const std::vector<int>& processors, const std::string& where) {
  if (processors.empty()) return;
  std::vector<int> usable = usable_processors();
  for (const int processor : processors) {
    if (std::binary_search(usable.begin(), usable.end(), processor)) continue;
    throw Failure(where + " asks for the processors " + words(processors) + ", and this process may use " +
                  words(usable) + ": build it with another --affinity");
  }
  if (!stay_on(processors)) throw Failure(where + ": cannot stay on the processors: " + std::strerror(errno));
  before_ = std::move(usable);
}

Affinity::~Affinity() {
  if (!before_.empty()) stay_on(before_);
}

#else

std::vector<int> usable_processors() { return {}; }

Affinity::Affinity(const std::vector<int>& processors, const std::string& where) {
  if (!processors.empty()) {
    throw Failure(where + " asks for the processors " + words(processors) +
                  ", which this library sets on Linux alone: build it without --affinity");
  }
}

Affinity::~Affinity() = default;

#endif

}  // namespace m2h::detail
