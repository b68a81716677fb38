// A choice by name holds for products and for a step's own kernels.
#include "serve/model/kernel_choice.h"

#include <gtest/gtest.h>
#include <map>
#include <string>

#include "serve/kernels/targets.h"
#include "serve/model/step_kernels.h"

namespace scant::serve {
namespace {

TEST(KernelChoice, TheBestIsTheFirst) {
  EXPECT_EQ(best_kernels().products, &kernel_targets().front());
  EXPECT_EQ(best_kernels().step, &step_kernel_targets().front());
  EXPECT_EQ(kernels_named("").value().products, &kernel_targets().front());
}

TEST(KernelChoice, AStepNeedsNoMoreOfTheCpuThanItsProducts) {
  const std::map<std::string_view, std::string_view> step_of = {
      {"amx", "avx512"},    {"avx512bf16", "avx512"}, {"avx512vnni", "avx512"},
      {"avx512", "avx512"}, {"avx2", "avx2"},         {"neon", "neon"},
      {"neondot", "neon"},  {"reference", "plain"}};
  for (const std::string_view name : kernel_names()) {
    const auto choice = kernels_named(name);
    ASSERT_TRUE(choice.ok()) << name;
    EXPECT_EQ(choice.value().products->name, name);
    const std::string_view step = choice.value().step->name;
    const auto known = step_of.find(name);
    EXPECT_TRUE(known != step_of.end() ? step == known->second : name.starts_with(step)) << name;
    EXPECT_EQ(choice.value().rows->name, step == "plain" ? "scalar" : step) << name;
  }
}

TEST(KernelChoice, AnUnknownNameIsToldWhatThereIs) {
  for (const std::string_view name : {"foo", "AVX2", "plain", "avx2 "}) {
    const auto choice = kernels_named(name);
    ASSERT_FALSE(choice.ok()) << name;
    EXPECT_EQ(choice.error().code, ErrorCode::invalid_argument);
    for (const std::string_view known : kernel_names())
      EXPECT_NE(choice.error().message.find(known), std::string::npos) << choice.error().message;
  }
}

}  // namespace
}  // namespace scant::serve
