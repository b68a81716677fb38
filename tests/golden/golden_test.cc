// Golden files: records, averages, plans, collectives, frames and journals that are made from seeds
// are equal to the bit to those that golden.txt describes. A line is NAME SIZE HASH.
//
// Not covered, by name: the bytes of a verdict, which only ranks of one build exchange; nonces and
// codes of the handshake, which are random; anything that holds a time.
//
// A change that is meant to alter bytes writes the file anew, and says so:
//   SCANT_GOLDEN_WRITE=tests/golden/golden.txt build/dev/tests/golden/golden_test
// The thresholds of sparse records use pow and exp of the C library: glibc's, on x86-64.
#include "golden.h"

#include <bit>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <gtest/gtest.h>
#include <map>
#include <sstream>

namespace scant::golden {
namespace {

struct Subject {
  const char* name;
  void (*add)(Lines&);
};
constexpr Subject kSubjects[] = {{"record", add_records}, {"average", add_averages},
                                 {"plan", add_plans},     {"collective", add_collectives},
                                 {"frame", add_frames},   {"journal", add_journals}};

std::string value_of(const Line& line) {
  char text[64];
  std::snprintf(text, sizeof(text), "%llu %016llx", static_cast<unsigned long long>(line.size),
                static_cast<unsigned long long>(line.hash));
  return text;
}

// By name, those of one subject.
std::map<std::string, std::string> read_golden(const std::string& subject) {
  std::ifstream file(SCANT_GOLDEN_FILE);
  EXPECT_TRUE(file.good()) << SCANT_GOLDEN_FILE << " cannot be read";
  std::map<std::string, std::string> found;
  std::string line;
  while (std::getline(file, line)) {
    const size_t blank = line.find(' ');
    if (blank == std::string::npos || !line.starts_with(subject + "/")) continue;
    found[line.substr(0, blank)] = line.substr(blank + 1);
  }
  return found;
}

class Golden : public testing::TestWithParam<Subject> {};

TEST_P(Golden, BytesAreEqual) {
  const std::string subject = GetParam().name;
  std::map<std::string, std::string> wanted = read_golden(subject);
  ASSERT_FALSE(wanted.empty()) << "no line of " << subject << " in " << SCANT_GOLDEN_FILE;
  Lines lines;
  GetParam().add(lines);
  for (const Line& line : lines.all()) {
    const auto known = wanted.find(line.name);
    if (known == wanted.end()) {
      ADD_FAILURE() << line.name << ": not in the file, or twice here: " << value_of(line);
      continue;
    }
    EXPECT_EQ(value_of(line), known->second) << line.name << ": made here, then the file's";
    wanted.erase(known);
  }
  for (const auto& [name, value] : wanted) {
    ADD_FAILURE() << name << ": in the file (" << value << "), not made here";
  }
}

INSTANTIATE_TEST_SUITE_P(Subjects, Golden, testing::ValuesIn(kSubjects),
                         [](const auto& subject) { return std::string(subject.param.name); });

int write(const char* path) {
  std::ofstream file(path);
  for (const Subject& subject : kSubjects) {
    Lines lines;
    subject.add(lines);
    for (const Line& line : lines.all()) file << line.name << ' ' << value_of(line) << '\n';
  }
  file.close();
  const bool failed = testing::UnitTest::GetInstance()->ad_hoc_test_result().Failed();
  return file.good() && !failed ? EXIT_SUCCESS : EXIT_FAILURE;
}

float draw_value(base::Rng& rng, Family family) {
  const float sign = rng.chance(0.5) ? 1.0f : -1.0f;
  const auto share = static_cast<float>(rng.uniform());
  switch (family) {
    case Family::normal:  // near enough: a sum of three
      return 0.02f * (share + static_cast<float>(rng.uniform() + rng.uniform()) - 1.5f);
    case Family::heavy:
      return sign * 1e-4f / (share + 1e-5f);
    case Family::denormal:
      return std::bit_cast<float>(static_cast<uint32_t>(rng.next()) & 0x80FFFFFFu);
    case Family::huge:
      return sign * (3.0e38f + 0.4e38f * share);
    case Family::zero:
      return sign * 0.0f;
    case Family::repeated:
      return sign * 0.0371f;
    case Family::lone:
      return rng.chance(0.01) ? sign * 1000.0f : sign * 1e-3f * share;
    case Family::wide: {  // any finite bits
      const auto bits = static_cast<uint32_t>(rng.next());
      return std::bit_cast<float>((bits & 0x7F800000u) == 0x7F800000u ? bits ^ 0x40000000u : bits);
    }
    case Family::strange:
      break;
  }
  constexpr uint32_t kStrange[] = {0x7F800000u, 0xFF800000u, 0x7FC00000u, 0xFF812345u,
                                   0x7F7FFFFFu, 0x477FE000u, 0x477FF000u, 0xC77FEFFFu};
  return rng.chance(0.02) ? std::bit_cast<float>(kStrange[rng.below(8)]) : sign * share;
}

}  // namespace

std::vector<float> draw_values(Family family, size_t count, uint64_t seed) {
  base::Rng rng(seed, static_cast<uint64_t>(family));
  std::vector<float> values(count);
  for (float& value : values) value = draw_value(rng, family);
  return values;
}

}  // namespace scant::golden

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (const char* path = std::getenv("SCANT_GOLDEN_WRITE")) return scant::golden::write(path);
  return RUN_ALL_TESTS();
}
