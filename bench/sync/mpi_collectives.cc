// Open MPI's side of bench/sync/collectives.py: one process beside each of its ranks, with the same
// collectives, sizes and checks.
//
// It sleeps in read() on a named pipe while the others are measured, so that its polling takes no
// CPU from them. Commands and answers are lines:
//
//   case OPERATION BYTES  ->  right | wrong | unknown     buffers made, one checked call, two more
//   block COUNT           ->  SECONDS CPU_SECONDS         per call, between two barriers
//
// The end of the commands ends the process. Limits: one case at a time; f32 and sum only.

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <fstream>
#include <functional>
#include <iomanip>
#include <iostream>
#include <memory>
#include <mpi.h>
#include <sstream>
#include <string>
#include <sys/resource.h>
#include <vector>

namespace {

constexpr std::size_t kBytesMax = std::size_t{4} << 30;  // MPI counts floats in an int

struct World {
  int rank = 0;
  int size = 1;
};

// One case: its buffers, the call to time, and whether the last call left what it should.
class Case {
 public:
  Case(const World& world, const std::string& operation, std::size_t bytes);
  Case(const Case&) = delete;  // its calls point into it
  Case& operator=(const Case&) = delete;

  [[nodiscard]] bool known() const { return static_cast<bool>(call_); }
  void call() { call_(); }
  [[nodiscard]] bool check();

 private:
  void make_in_place(const std::string& operation);
  void make_parts(const std::string& operation);
  [[nodiscard]] bool whole_is_by_rank() const;

  World world_;
  int count_;  // floats of the whole; a multiple of the number of ranks
  int part_count_;
  std::vector<float> source_;
  std::vector<float> target_;
  std::function<void()> call_;
  std::function<void()> prepare_;
  std::function<bool()> right_;
};

Case::Case(const World& world, const std::string& operation, std::size_t bytes)
    : world_(world), count_(0), part_count_(0) {
  const auto ranks = static_cast<std::size_t>(world.size);
  const std::size_t count = std::max(ranks, bytes / sizeof(float) / ranks * ranks);
  count_ = static_cast<int>(count);
  part_count_ = static_cast<int>(count / ranks);
  if (operation == "all_reduce" || operation == "broadcast") {
    make_in_place(operation);
  } else {
    make_parts(operation);
  }
}

void Case::make_in_place(const std::string& operation) {
  target_.assign(static_cast<std::size_t>(count_), 0.0F);
  const int root = world_.size - 1;
  const bool reduce = operation == "all_reduce";
  const float first = static_cast<float>(reduce ? world_.rank + 1 : world_.rank);
  const auto wanted = static_cast<float>(reduce ? world_.size * (world_.size + 1) / 2 : root);
  prepare_ = [this, first] { std::fill(target_.begin(), target_.end(), first); };
  right_ = [this, wanted, reduce] {
    const bool right = std::all_of(target_.begin(), target_.end(),
                                   [wanted](float value) { return value == wanted; });
    // Timed sums start from zeros: otherwise they would overflow, and infinities cost more.
    if (reduce) std::fill(target_.begin(), target_.end(), 0.0F);
    return right;
  };
  if (reduce) {
    call_ = [this] {
      MPI_Allreduce(MPI_IN_PLACE, target_.data(), count_, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    };
  } else {
    call_ = [this, root] { MPI_Bcast(target_.data(), count_, MPI_FLOAT, root, MPI_COMM_WORLD); };
  }
}

void Case::make_parts(const std::string& operation) {
  const auto whole = static_cast<std::size_t>(count_);
  const auto part = static_cast<std::size_t>(part_count_);
  const auto own = static_cast<float>(world_.rank + 1);
  const auto sum = static_cast<float>(world_.size * (world_.size + 1) / 2);
  source_.assign(operation == "all_gather" ? part : whole, own);
  target_.assign(operation == "reduce_scatter" ? part : whole, 0.0F);
  prepare_ = [this] { std::fill(target_.begin(), target_.end(), 0.0F); };
  right_ = [this] { return whole_is_by_rank(); };
  if (operation == "all_gather") {
    call_ = [this] {
      MPI_Allgather(source_.data(), part_count_, MPI_FLOAT, target_.data(), part_count_, MPI_FLOAT,
                    MPI_COMM_WORLD);
    };
  } else if (operation == "all_to_all") {
    call_ = [this] {
      MPI_Alltoall(source_.data(), part_count_, MPI_FLOAT, target_.data(), part_count_, MPI_FLOAT,
                   MPI_COMM_WORLD);
    };
  } else if (operation == "reduce_scatter") {
    call_ = [this] {
      MPI_Reduce_scatter_block(source_.data(), target_.data(), part_count_, MPI_FLOAT, MPI_SUM,
                               MPI_COMM_WORLD);
    };
    right_ = [this, sum] {
      return std::all_of(target_.begin(), target_.end(),
                         [sum](float value) { return value == sum; });
    };
  }
}

bool Case::whole_is_by_rank() const {
  for (std::size_t i = 0; i < target_.size(); ++i) {
    const std::size_t from = i / static_cast<std::size_t>(part_count_);
    if (target_[i] != static_cast<float>(from + 1)) return false;
  }
  return true;
}

bool Case::check() {
  prepare_();
  call_();
  return right_();
}

double cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

std::string run_block(Case& chosen, int count) {
  MPI_Barrier(MPI_COMM_WORLD);
  const double cpu = cpu_seconds();
  const auto began = std::chrono::steady_clock::now();
  for (int i = 0; i < count; ++i) chosen.call();
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
  const double cpu_took = cpu_seconds() - cpu;
  std::ostringstream answer;
  answer << std::setprecision(9) << took.count() / count << ' ' << cpu_took / count;
  // Nobody sleeps in read() yet while another still needs this rank's progress.
  MPI_Barrier(MPI_COMM_WORLD);
  return answer.str();
}

std::string start_case(Case& chosen) {
  if (!chosen.known()) return "unknown";
  const bool right = chosen.check();
  for (int i = 0; i < 2; ++i) chosen.call();
  MPI_Barrier(MPI_COMM_WORLD);
  return right ? "right" : "wrong";
}

// Answers commands until they end; false at one that is no command.
bool serve(const World& world, std::istream& commands, std::ostream& answers) {
  std::unique_ptr<Case> chosen;
  std::string line;
  while (std::getline(commands, line)) {
    std::istringstream words(line);
    std::string verb;
    std::string operation;
    std::size_t bytes = 0;
    int count = 0;
    words >> verb;
    std::string answer;
    if (verb == "case" && words >> operation >> bytes && bytes <= kBytesMax) {
      chosen.reset();  // the old buffers go before the new ones come
      chosen = std::make_unique<Case>(world, operation, bytes);
      answer = start_case(*chosen);
    } else if (verb == "block" && words >> count && count > 0 && chosen && chosen->known()) {
      answer = run_block(*chosen, count);
    } else {
      std::cerr << "mpi_collectives: no command: " << line << '\n';
      return false;
    }
    answers << answer << '\n' << std::flush;
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  World world;
  MPI_Comm_rank(MPI_COMM_WORLD, &world.rank);
  MPI_Comm_size(MPI_COMM_WORLD, &world.size);
  if (argc != 2) {
    std::cerr << "usage: mpi_collectives FOLDER\n";
    MPI_Abort(MPI_COMM_WORLD, 2);
  }
  MPI_Barrier(MPI_COMM_WORLD);
  const std::string folder = argv[1];
  const std::string own = std::to_string(world.rank);
  std::ofstream(folder + "/ready." + own) << world.size << '\n';
  std::ifstream commands(folder + "/in." + own);
  std::ofstream answers(folder + "/out." + own);
  if (!commands || !answers || !serve(world, commands, answers)) MPI_Abort(MPI_COMM_WORLD, 1);
  MPI_Finalize();
  return 0;
}
