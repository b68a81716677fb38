// Scant from C++: every rank gives four numbers and prints their sums. RANK and WORLD_SIZE come
// from a launcher; the argument is an empty directory that all ranks see, used for one run.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "scant/collective/communicator.h"
#include "scant/collective/store.h"

namespace {

scant::Result<void> run(const std::string& directory, int rank, int size) {
  auto store = scant::open_directory_store(directory);
  if (!store) return store.error();
  auto created = scant::Communicator::create(*store.value(), {.rank = rank, .size = size});
  if (!created) return created.error();
  const std::unique_ptr<scant::Communicator> ranks = std::move(created).value();

  std::vector<float> data(4, static_cast<float>(rank + 1));
  const scant::MutableBytes bytes = std::as_writable_bytes(std::span(data));
  const scant::Work work = ranks->all_reduce(bytes, bytes, scant::DType::f32, scant::ReduceOp::sum);
  if (auto done = work.wait(); !done) return done.error();
  std::printf("rank %d of %d: %g %g %g %g\n", rank, size, data[0], data[1], data[2], data[3]);
  return ranks->shutdown();
}

int number(const char* name) {
  const char* text = std::getenv(name);
  return text == nullptr ? -1 : std::atoi(text);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: RANK=… WORLD_SIZE=… %s DIRECTORY\n", argv[0]);
    return 2;
  }
  const scant::Result<void> done = run(argv[1], number("RANK"), number("WORLD_SIZE"));
  if (!done) std::fprintf(stderr, "%s\n", done.error().to_string().c_str());
  return done ? 0 : 1;
}
