// Processors that an engine's threads stay on.
#pragma once

#include <string>
#include <vector>

namespace m2h::detail {

// While it lives, threads that start stay on `processors`: a thread inherits those of the one that starts it. The
// calling thread's own are as before afterwards. None: nothing is changed. Throws Failure, which names `where`, when
// this process may not use one of them.
class Affinity {
 public:
  Affinity(const std::vector<int>& processors, const std::string& where);
  Affinity(const Affinity&) = delete;
  Affinity& operator=(const Affinity&) = delete;
  ~Affinity();

 private:
  std::vector<int> before_;  // empty: nothing to put back
};

// The processors that the calling thread may use; empty where the system does not say.
std::vector<int> usable_processors();

}  // namespace m2h::detail
