// Prints the sha256 of a file's content, to compare it with another implementation's.
#include <fstream>
#include <iostream>
#include <iterator>
#include <vector>

#include "sha256.hpp"

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  std::ifstream stream(argv[1], std::ios::binary);
  const std::vector<char> content{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  std::cout << m2h::detail::sha256(content.data(), content.size()) << '\n';
}
