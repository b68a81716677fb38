// Processes that are killed or stopped in the middle of their work: every survivor names the one
// that is gone, goes on without it, and nothing stays behind. The moment of each signal is drawn
// from a seed and counted in finished operations of the victim, so it falls anywhere within the
// next one. Delays are printed and not judged; bench and documents state them.
#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <gtest/gtest.h>
#include <numeric>
#include <optional>
#include <poll.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/rng.h"
#include "scant/collective/communicator.h"

namespace scant {
namespace {

using namespace std::chrono_literals;

constexpr unsigned kHangSeconds = 60;  // a rank that lives longer is ended by SIGALRM: a hang
constexpr size_t kElements = 40'000;   // several segments, so that signals fall between them

struct Round {
  uint64_t seed = 0;
  int size = 4;
  Rank victim = 0;
  int signal = SIGKILL;
  int operations_before = 1;
  bool unix_sockets = true;
  bool shrinks = true;
};

// What a survivor reports before it ends; also its one word to the parent.
struct Report {
  int64_t noticed_ns = 0;
  int32_t code = -1;
  int32_t peer = kNoRank;
  int32_t named = 0;  // the message says rank, host and process
  int32_t went_on = 0;
};

Round round_of(uint64_t seed) {
  base::Rng rng(seed, 17);
  Round round;
  round.seed = seed;
  round.size = 2 + static_cast<int>(rng.below(4));
  round.victim = static_cast<Rank>(rng.below(static_cast<uint64_t>(round.size)));
  round.signal = rng.chance(0.5) ? SIGKILL : SIGSTOP;
  round.operations_before = 1 + static_cast<int>(rng.below(60));
  round.unix_sockets = rng.chance(0.5);
  round.shrinks = rng.chance(0.7);
  return round;
}

int64_t now_ns() { return base::MonotonicClock().now().time_since_epoch().count(); }

// The k-th operation, the same on every rank.
Work start(Communicator& communicator, uint64_t seed, uint64_t k, std::vector<float>& data) {
  base::Rng rng(seed, k);
  const size_t count = rng.chance(0.5) ? 16 : kElements;
  const MutableBytes bytes = std::as_writable_bytes(std::span(data).first(count));
  switch (rng.below(3)) {
    case 0:
      return communicator.broadcast(
          bytes, DType::f32,
          static_cast<Rank>(rng.below(static_cast<uint64_t>(communicator.size()))));
    case 1:
      return communicator.barrier();
    default:
      return communicator.all_reduce(bytes, bytes, DType::f32, ReduceOp::average);
  }
}

bool complain(const Error& error) {
  std::fprintf(stderr, "%s\n", error.to_string().c_str());
  return false;
}

bool goes_on(Communicator& communicator, int size) {
  auto survivors = communicator.shrink(20s);
  if (!survivors) return complain(survivors.error());
  if (static_cast<int>(survivors.value().size()) != size - 1) {
    std::fprintf(stderr, "%zu survivors of %d\n", survivors.value().size(), size);
    return false;
  }
  std::vector<float> ones(kElements, 1.0F);
  const MutableBytes bytes = std::as_writable_bytes(std::span(ones));
  const auto reduced = communicator.all_reduce(bytes, bytes, DType::f32, ReduceOp::sum).wait();
  if (!reduced) return complain(reduced.error());
  const auto expected = static_cast<float>(size - 1);
  return std::all_of(ones.begin(), ones.end(), [&](float x) { return x == expected; });
}

// Runs in a process of its own; never returns. Each finished operation is a byte in `progress`.
[[noreturn]] void be_rank(const Round& round, Rank rank, const std::string& directory, int progress,
                          int report_to) {
  alarm(kHangSeconds);
  auto store = open_directory_store(directory);
  CommunicatorOptions options;
  options.rank = rank;
  options.size = round.size;
  options.address = "127.0.0.1";
  options.same_host_sockets = round.unix_sockets;
  auto made = Communicator::create(*store.value(), options);
  if (!made) _exit(2);
  Communicator& communicator = *made.value();
  std::vector<float> data(kElements, 1.0F);
  for (uint64_t k = 0;; ++k) {
    const auto outcome = start(communicator, round.seed, k, data).wait();
    if (outcome) {
      const char byte = 0;
      static_cast<void>(!write(progress, &byte, 1));
      continue;
    }
    Report report;
    report.noticed_ns = now_ns();
    const Error& error = outcome.error();
    report.code = static_cast<int32_t>(error.code);
    report.peer = error.peer;
    report.named =
        error.message.find("rank " + std::to_string(round.victim)) != std::string::npos &&
        error.message.find("host ") != std::string::npos &&
        error.message.find("last heard") != std::string::npos;
    if (report.named == 0) complain(error);
    report.went_on = !round.shrinks || goes_on(communicator, round.size) ? 1 : 0;
    const bool told = write(report_to, &report, sizeof(report)) == sizeof(report);
    const bool left = communicator.shutdown().ok();
    made.value().reset();
    _exit(told && left ? 0 : 3);
  }
}

// The children of one round; whatever happens, none outlives it.
class Ranks {
 public:
  explicit Ranks(const Round& round) : round_(round) {
    std::string pattern = (std::filesystem::temp_directory_path() / "scant-loss-XXXXXX").string();
    directory_ = mkdtemp(pattern.data());
    for (Rank rank = 0; rank < round.size; ++rank) {
      std::array<int, 2> progress{};
      std::array<int, 2> reports{};
      EXPECT_EQ(pipe(progress.data()) | pipe(reports.data()), 0);
      const pid_t pid = fork();
      if (pid == 0) be_rank(round, rank, directory_, progress[1], reports[1]);
      close(progress[1]);
      close(reports[1]);
      children_.push_back({pid, progress[0], reports[0]});
    }
  }
  ~Ranks() {
    for (const Child& child : children_) {
      if (!child.ended) {
        kill(child.pid, SIGKILL);
        waitpid(child.pid, nullptr, 0);
      }
      close(child.progress);
      close(child.reports);
    }
    std::error_code ignored;
    std::filesystem::remove_all(directory_, ignored);
  }
  Ranks(const Ranks&) = delete;
  Ranks& operator=(const Ranks&) = delete;

  // Sends the signal once the victim has finished its share; when it was sent.
  int64_t strike() {
    const Child& victim = child(round_.victim);
    std::array<char, 64> bytes{};
    for (int done = 0; done < round_.operations_before;) {
      const ssize_t n = read(victim.progress, bytes.data(), bytes.size());
      if (n <= 0) return 0;
      done += static_cast<int>(n);
    }
    const int64_t at = now_ns();
    EXPECT_EQ(kill(victim.pid, round_.signal), 0);
    return at;
  }
  // Progress is read along, so that nobody blocks on a full pipe.
  std::optional<Report> report_of(Rank rank) {
    const Child& of = child(rank);
    std::array<char, 4096> bytes{};
    while (read(of.progress, bytes.data(), bytes.size()) > 0) {
    }
    Report report;
    if (read(of.reports, &report, sizeof(report)) != sizeof(report)) return std::nullopt;
    return report;
  }
  int end_of(Rank rank) {
    Child& of = child(rank);
    int status = 0;
    EXPECT_EQ(waitpid(of.pid, &status, 0), of.pid);
    of.ended = true;
    return status;
  }
  [[nodiscard]] pid_t pid_of(Rank rank) { return child(rank).pid; }

 private:
  struct Child {
    pid_t pid = 0;
    int progress = -1;
    int reports = -1;
    bool ended = false;
  };
  Child& child(Rank rank) { return children_[static_cast<size_t>(rank)]; }

  Round round_;
  std::string directory_;
  std::vector<Child> children_;
};

void run_round(const Round& round, std::vector<double>& delays_s) {
  SCOPED_TRACE("seed " + std::to_string(round.seed) + ": rank " + std::to_string(round.victim) +
               " of " + std::to_string(round.size) +
               (round.signal == SIGKILL ? " killed" : " stopped") + " after " +
               std::to_string(round.operations_before) + " operations");
  Ranks ranks(round);
  const int64_t struck = ranks.strike();
  ASSERT_NE(struck, 0) << "the victim ended before its time";
  for (Rank rank = 0; rank < round.size; ++rank) {
    if (rank == round.victim) continue;
    const auto report = ranks.report_of(rank);
    const int status = ranks.end_of(rank);
    ASSERT_TRUE(report.has_value()) << "rank " << rank << " ended with status " << status;
    EXPECT_EQ(report->code, static_cast<int32_t>(ErrorCode::peer_lost)) << "rank " << rank;
    EXPECT_EQ(report->peer, round.victim) << "rank " << rank;
    EXPECT_TRUE(report->named) << "rank " << rank;
    EXPECT_TRUE(report->went_on) << "rank " << rank;
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "rank " << rank << " " << status;
    delays_s.push_back(static_cast<double>(report->noticed_ns - struck) / 1e9);
  }
  if (round.signal == SIGSTOP) kill(ranks.pid_of(round.victim), SIGKILL);
  const int status = ranks.end_of(round.victim);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

void run_rounds(uint64_t first, uint64_t count) {
  std::vector<double> killed;
  std::vector<double> stopped;
  for (uint64_t seed = first; seed < first + count && !testing::Test::HasFatalFailure(); ++seed) {
    const Round round = round_of(seed);
    run_round(round, round.signal == SIGKILL ? killed : stopped);
  }
  EXPECT_EQ(waitpid(-1, nullptr, WNOHANG), -1) << "a child is left";
  EXPECT_EQ(errno, ECHILD);
  for (auto* delays : {&killed, &stopped}) {
    if (delays->empty()) continue;
    std::sort(delays->begin(), delays->end());
    std::printf("%s: %zu named losses, seconds from signal to error: median %.3f, largest %.3f\n",
                delays == &killed ? "SIGKILL" : "SIGSTOP", delays->size(),
                (*delays)[delays->size() / 2], delays->back());
  }
}

// A few rounds, or a hundred in the long label (CMakeLists.txt).
TEST(Loss, IsNamedByEverySurvivor) { run_rounds(1001, SCANT_LOSS_ROUNDS); }

}  // namespace
}  // namespace scant
