// validate: rows of a call and what must be said of it.
#include "collective/call.h"

#include <array>
#include <gtest/gtest.h>
#include <ostream>
#include <string>
#include <vector>

namespace scant::collective {
namespace {

// Bytes [at, at + size) of one memory that all buffers of a row share.
struct Stretch {
  size_t at = 0;
  size_t size = 0;
};

struct Row {
  const char* name;
  OpKind kind = OpKind::all_reduce;
  std::vector<Stretch> in = {};
  std::vector<Stretch> out = {};
  std::string problem;  // empty: the call is good
  DType dtype = DType::u8;
  ReduceOp reduce = ReduceOp::sum;
  Rank root = 0;
  Rank rank = 0;
  int size = 2;
};

std::ostream& operator<<(std::ostream& out, const Row& row) { return out << row.name; }

std::string verdict(const Row& row) {
  std::array<std::byte, 128> memory{};
  Call call;
  call.kind = row.kind;
  call.dtype = row.dtype;
  call.reduce = row.reduce;
  call.root = row.root;
  for (const Stretch& s : row.in) call.inputs.push_back(Bytes(memory).subspan(s.at, s.size));
  for (const Stretch& s : row.out)
    call.outputs.push_back(MutableBytes(memory).subspan(s.at, s.size));
  std::vector<uint64_t> received(static_cast<size_t>(row.size));
  if (row.kind == OpKind::exchange) call.received = received;
  const auto result = validate(call, row.rank, row.size);
  if (result) return {};
  EXPECT_EQ(result.error().code, ErrorCode::invalid_argument);
  const std::string where = std::string(name(row.kind)) + " on rank " + std::to_string(row.rank);
  const std::string& message = result.error().message;
  EXPECT_EQ(message.substr(0, where.size() + 2), where + ": ");
  return message.substr(where.size() + 2);
}

class CallRows : public testing::TestWithParam<Row> {};

TEST_P(CallRows, AreJudged) { EXPECT_EQ(verdict(GetParam()), GetParam().problem); }

std::string row_name(const testing::TestParamInfo<Row>& info) { return info.param.name; }

const Row kReductionRows[] = {
    {.name = "float_bits",
     .in = {{0, 4}},
     .out = {{8, 4}},
     .problem = "op bit_and is not defined for dtype f32",
     .dtype = DType::f32,
     .reduce = ReduceOp::bit_and},
    {.name = "half_bits",
     .kind = OpKind::reduce_scatter,
     .in = {{0, 2}, {2, 2}},
     .out = {{8, 2}},
     .problem = "op bit_xor is not defined for dtype bf16",
     .dtype = DType::bf16,
     .reduce = ReduceOp::bit_xor},
    {.name = "boolean_average",
     .kind = OpKind::reduce,
     .in = {{0, 1}},
     .out = {{1, 1}},
     .problem = "op average is not defined for dtype boolean",
     .dtype = DType::boolean,
     .reduce = ReduceOp::average},
    {.name = "integer_average",
     .in = {{0, 4}},
     .out = {{4, 4}},
     .problem = "",
     .dtype = DType::i32,
     .reduce = ReduceOp::average},
    {.name = "type_that_only_moves",
     .in = {{0, 4}},
     .out = {{4, 4}},
     .problem = "op sum is not defined for dtype int16",
     .dtype = moved_dtype("int16")},
    {.name = "no_type",
     .kind = OpKind::broadcast,
     .out = {{0, 4}},
     .problem = "dtype 31 is not known",
     .dtype = static_cast<DType>(31)},
    {.name = "part_of_a_moved_element",
     .kind = OpKind::broadcast,
     .out = {{0, 12}},
     .problem = "output of 12 bytes is not a whole number of complex64 elements",
     .dtype = moved_dtype("complex64")},
    // Kinds that only move bytes take no notice of op.
    {.name = "broadcast_ignores_op",
     .kind = OpKind::broadcast,
     .out = {{0, 4}},
     .problem = "",
     .dtype = DType::f32,
     .reduce = ReduceOp::bit_or},
};
INSTANTIATE_TEST_SUITE_P(Reductions, CallRows, testing::ValuesIn(kReductionRows), row_name);

const Row kRootRows[] = {
    {.name = "root_beyond",
     .kind = OpKind::broadcast,
     .out = {{0, 4}},
     .problem = "root 2 is out of range for a group of 2",
     .root = 2},
    {.name = "root_negative",
     .kind = OpKind::scatter,
     .out = {{0, 4}},
     .problem = "root -1 is out of range for a group of 2",
     .root = -1},
    {.name = "any_source_is_no_root",
     .kind = OpKind::gather,
     .in = {{0, 4}},
     .problem = "root -2 is out of range for a group of 2",
     .root = kAnySource},
    {.name = "any_source_is_no_target",
     .kind = OpKind::send,
     .in = {{0, 4}},
     .problem = "peer -2 is out of range for a group of 2",
     .root = kAnySource},
    {.name = "last_root", .kind = OpKind::broadcast, .out = {{0, 4}}, .problem = "", .root = 1},
    {.name = "peer_beyond",
     .kind = OpKind::recv,
     .out = {{0, 4}},
     .problem = "peer 5 is out of range for a group of 2",
     .root = 5},
    {.name = "send_to_itself",
     .kind = OpKind::send,
     .in = {{0, 4}},
     .problem = "peer 1 is this rank itself",
     .root = 1,
     .rank = 1},
    {.name = "recv_from_itself",
     .kind = OpKind::recv,
     .out = {{0, 4}},
     .problem = "peer 0 is this rank itself"},
    {.name = "recv_from_anyone",
     .kind = OpKind::recv,
     .out = {{0, 4}},
     .problem = "",
     .root = kAnySource},
    {.name = "send_to_another", .kind = OpKind::send, .in = {{0, 4}}, .problem = "", .root = 1},
};
INSTANTIATE_TEST_SUITE_P(Roots, CallRows, testing::ValuesIn(kRootRows), row_name);

const Row kPartRows[] = {
    {.name = "all_reduce_no_input", .out = {{0, 4}}, .problem = "input has 0 parts, needs 1"},
    {.name = "all_reduce_no_output", .in = {{0, 4}}, .problem = "output has 0 parts, needs 1"},
    {.name = "reduce_root_without_output",
     .kind = OpKind::reduce,
     .in = {{0, 4}},
     .problem = "output has 0 parts, needs 1"},
    {.name = "reduce_elsewhere_without_output",
     .kind = OpKind::reduce,
     .in = {{0, 4}},
     .problem = "",
     .rank = 1},
    {.name = "reduce_elsewhere_with_two",
     .kind = OpKind::reduce,
     .in = {{0, 4}},
     .out = {{4, 4}, {8, 4}},
     .problem = "output has 2 parts, needs 1",
     .rank = 1},
    {.name = "reduce_scatter_parts",
     .kind = OpKind::reduce_scatter,
     .in = {{0, 4}},
     .out = {{8, 4}},
     .problem = "input has 1 parts, needs 2"},
    {.name = "all_gather_parts",
     .kind = OpKind::all_gather,
     .in = {{0, 4}},
     .out = {{8, 4}},
     .problem = "output has 1 parts, needs 2"},
    {.name = "broadcast_input",
     .kind = OpKind::broadcast,
     .in = {{0, 4}},
     .out = {{8, 4}},
     .problem = "input has 1 parts, needs 0"},
    {.name = "gather_elsewhere_with_output",
     .kind = OpKind::gather,
     .in = {{0, 4}},
     .out = {{8, 4}, {12, 4}},
     .problem = "output has 2 parts, needs 0",
     .rank = 1},
    {.name = "scatter_elsewhere_with_input",
     .kind = OpKind::scatter,
     .in = {{0, 4}, {4, 4}},
     .out = {{8, 4}},
     .problem = "input has 2 parts, needs 0",
     .rank = 1},
    {.name = "scatter_root_parts",
     .kind = OpKind::scatter,
     .in = {{0, 4}, {4, 4}, {8, 4}},
     .out = {{12, 4}},
     .problem = "input has 3 parts, needs 2"},
    {.name = "all_to_all_parts",
     .kind = OpKind::all_to_all,
     .in = {{0, 4}, {4, 4}},
     .out = {{8, 4}},
     .problem = "output has 1 parts, needs 2"},
    {.name = "send_output",
     .kind = OpKind::send,
     .in = {{0, 4}},
     .out = {{4, 4}},
     .problem = "output has 1 parts, needs 0",
     .root = 1},
    {.name = "recv_input",
     .kind = OpKind::recv,
     .in = {{0, 4}},
     .out = {{4, 4}},
     .problem = "input has 1 parts, needs 0",
     .root = 1},
    {.name = "barrier_with_bytes",
     .kind = OpKind::barrier,
     .in = {{0, 4}},
     .problem = "input has 1 parts, needs 0"},
    {.name = "barrier", .kind = OpKind::barrier, .problem = ""},
};
INSTANTIATE_TEST_SUITE_P(Parts, CallRows, testing::ValuesIn(kPartRows), row_name);

const Row kSizeRows[] = {
    {.name = "all_reduce",
     .in = {{0, 4}},
     .out = {{8, 8}},
     .problem = "input has 4 bytes, output has 8"},
    {.name = "reduce_root",
     .kind = OpKind::reduce,
     .in = {{0, 4}},
     .out = {{8, 8}},
     .problem = "input has 4 bytes, output has 8"},
    {.name = "reduce_scatter_own",
     .kind = OpKind::reduce_scatter,
     .in = {{0, 4}, {4, 8}},
     .out = {{16, 4}},
     .problem = "this rank's input part has 8 bytes, output has 4",
     .rank = 1},
    {.name = "reduce_scatter_unequal",
     .kind = OpKind::reduce_scatter,
     .in = {{0, 4}, {4, 8}},
     .out = {{16, 8}},
     .problem = "",
     .rank = 1},
    {.name = "all_gather_own",
     .kind = OpKind::all_gather,
     .in = {{0, 4}},
     .out = {{8, 8}, {16, 4}},
     .problem = "input has 4 bytes, this rank's output part has 8"},
    {.name = "gather_own",
     .kind = OpKind::gather,
     .in = {{0, 4}},
     .out = {{8, 4}, {16, 3}},
     .problem = "input has 4 bytes, this rank's output part has 3",
     .root = 1,
     .rank = 1},
    {.name = "scatter_own",
     .kind = OpKind::scatter,
     .in = {{0, 4}, {4, 4}},
     .out = {{16, 3}},
     .problem = "this rank's input part has 4 bytes, output has 3"},
    {.name = "all_to_all_own",
     .kind = OpKind::all_to_all,
     .in = {{0, 4}, {4, 5}},
     .out = {{16, 4}, {24, 4}},
     .problem = "this rank's input part has 5 bytes, its output part has 4",
     .rank = 1},
    {.name = "exchange_parts",
     .kind = OpKind::exchange,
     .in = {{0, 4}},
     .out = {{8, 4}, {16, 4}},
     .problem = "input has 1 parts, needs 2"},
    {.name = "exchange_above_the_capacity",
     .kind = OpKind::exchange,
     .in = {{0, 4}, {4, 5}},
     .out = {{16, 4}, {24, 4}},
     .problem = "input part 1 has 5 bytes, the capacity is 4"},
    {.name = "exchange_own_part",
     .kind = OpKind::exchange,
     .in = {{0, 4}, {4, 5}},
     .out = {{16, 3}, {24, 5}},
     .problem = "input part 0 has 4 bytes, its output part has 3"},
    {.name = "exchange_two_capacities",
     .kind = OpKind::exchange,
     .in = {{0, 4}, {4, 4}, {8, 4}},
     .out = {{16, 4}, {24, 4}, {32, 5}},
     .problem = "output part 2 has 5 bytes, another has 4: all have the capacity",
     .size = 3},
    {.name = "exchange_own_output_of_any_size",
     .kind = OpKind::exchange,
     .in = {{0, 3}, {4, 0}},
     .out = {{16, 3}, {24, 8}},
     .problem = ""},
    {.name = "exchange_alone",
     .kind = OpKind::exchange,
     .in = {{0, 5}},
     .out = {{16, 4}},
     .problem = "input part 0 has 5 bytes, the capacity is 4",
     .size = 1},
    {.name = "input_cuts_an_element",
     .kind = OpKind::send,
     .in = {{0, 6}},
     .problem = "input of 6 bytes is not a whole number of f32 elements",
     .dtype = DType::f32,
     .root = 1},
    {.name = "output_cuts_an_element",
     .kind = OpKind::all_gather,
     .in = {{0, 8}},
     .out = {{16, 8}, {24, 7}},
     .problem = "output of 7 bytes is not a whole number of i64 elements",
     .dtype = DType::i64},
    {.name = "no_elements", .in = {{0, 0}}, .out = {{0, 0}}, .problem = "", .dtype = DType::f64},
    {.name = "empty_parts",
     .kind = OpKind::all_to_all,
     .in = {{0, 0}, {0, 4}},
     .out = {{8, 0}, {8, 8}},
     .problem = "",
     .dtype = DType::f32},
};
INSTANTIATE_TEST_SUITE_P(Sizes, CallRows, testing::ValuesIn(kSizeRows), row_name);

const Row kOverlapRows[] = {
    {.name = "in_place", .in = {{0, 4}}, .out = {{0, 4}}, .problem = ""},
    {.name = "adjacent", .in = {{0, 4}}, .out = {{4, 4}}, .problem = ""},
    {.name = "shifted_forwards",
     .in = {{0, 4}},
     .out = {{3, 4}},
     .problem = "input part 0 and output part 0 overlap in memory"},
    {.name = "shifted_backwards",
     .in = {{3, 4}},
     .out = {{0, 4}},
     .problem = "output part 0 and input part 0 overlap in memory"},
    {.name = "outputs",
     .kind = OpKind::all_gather,
     .in = {{0, 4}},
     .out = {{8, 4}, {11, 4}},
     .problem = "output part 0 and output part 1 overlap in memory"},
    {.name = "output_within_an_output",
     .kind = OpKind::all_gather,
     .in = {{0, 2}},
     .out = {{10, 2}, {8, 8}},
     .problem = "output part 1 and output part 0 overlap in memory"},
    {.name = "all_gather_in_place",
     .kind = OpKind::all_gather,
     .in = {{12, 4}},
     .out = {{8, 4}, {12, 4}},
     .problem = "",
     .rank = 1},
    {.name = "all_gather_in_the_place_of_another",
     .kind = OpKind::all_gather,
     .in = {{8, 4}},
     .out = {{7, 5}, {12, 4}},
     .problem = "output part 0 and input part 0 overlap in memory",
     .rank = 1},
    {.name = "reduce_scatter_in_place",
     .kind = OpKind::reduce_scatter,
     .in = {{0, 4}, {4, 4}},
     .out = {{4, 4}},
     .problem = "",
     .rank = 1},
    {.name = "reduce_scatter_over_anothers_part",
     .kind = OpKind::reduce_scatter,
     .in = {{1, 4}, {8, 4}},
     .out = {{0, 4}},
     .problem = "output part 0 and input part 0 overlap in memory",
     .rank = 1},
    // A long input hides the shorter ones behind it, but reaches the output.
    {.name = "behind_a_shorter_input",
     .kind = OpKind::all_to_all,
     .in = {{0, 16}, {2, 4}},
     .out = {{32, 16}, {14, 4}},
     .problem = "input part 0 and output part 1 overlap in memory"},
    // A long output reaches past a shorter one's end to an input.
    {.name = "behind_an_input_between",
     .kind = OpKind::all_to_all,
     .in = {{20, 4}, {40, 4}},
     .out = {{24, 4}, {28, 13}},
     .problem = "output part 1 and input part 1 overlap in memory"},
    {.name = "inputs_may_share",
     .kind = OpKind::all_to_all,
     .in = {{0, 8}, {2, 4}},
     .out = {{32, 8}, {14, 4}},
     .problem = ""},
    {.name = "all_to_all_own_in_place",
     .kind = OpKind::all_to_all,
     .in = {{0, 4}, {4, 4}},
     .out = {{0, 4}, {8, 4}},
     .problem = ""},
    {.name = "exchange_own_within_its_output",
     .kind = OpKind::exchange,
     .in = {{0, 3}, {16, 4}},
     .out = {{0, 8}, {8, 8}},
     .problem = ""},
    {.name = "exchange_of_another_part_in_place",
     .kind = OpKind::exchange,
     .in = {{16, 3}, {0, 3}},
     .out = {{24, 8}, {0, 8}},
     .problem = "output part 1 and input part 1 overlap in memory"},
    {.name = "empty_output_within_an_input",
     .kind = OpKind::all_to_all,
     .in = {{0, 4}, {4, 8}},
     .out = {{16, 4}, {6, 0}},
     .problem = ""},
    {.name = "empty_input_within_an_output",
     .kind = OpKind::all_to_all,
     .in = {{0, 4}, {18, 0}},
     .out = {{16, 4}, {32, 8}},
     .problem = ""},
    {.name = "reduce_elsewhere",
     .kind = OpKind::reduce,
     .in = {{0, 4}},
     .out = {{2, 4}},
     .problem = "input part 0 and output part 0 overlap in memory",
     .rank = 1},
};
INSTANTIATE_TEST_SUITE_P(Overlap, CallRows, testing::ValuesIn(kOverlapRows), row_name);

// The same bytes, but not this rank's own: whichever part is named first, the call is refused.
TEST(CallOverlap, TheExactPartOfAnotherRankIsRefused) {
  for (const OpKind kind : {OpKind::all_to_all, OpKind::reduce_scatter}) {
    Row row = {.name = "", .kind = kind, .in = {{0, 4}, {4, 4}}, .out = {{0, 4}}, .problem = ""};
    row.rank = 1;
    if (kind == OpKind::all_to_all) row.out = {{16, 4}, {0, 4}};
    EXPECT_NE(verdict(row).find("overlap in memory"), std::string::npos) << name(kind);
  }
}

// An output that the call may leave out is in place only when it is the whole input.
TEST(CallOverlap, AnOutputOfAnotherLengthIsNotInPlace) {
  Row row = {.name = "", .kind = OpKind::reduce, .in = {{0, 4}}, .out = {{0, 8}}, .problem = ""};
  row.rank = 1;
  EXPECT_NE(verdict(row).find("overlap in memory"), std::string::npos);
  row.out = {{0, 4}};
  EXPECT_EQ(verdict(row), "");
}

TEST(CallSizes, AnExchangeTellsTheBytesOfEveryRank) {
  std::array<std::byte, 4> memory{};
  std::array<uint64_t, 1> received{};
  Call call;
  call.kind = OpKind::exchange;
  call.inputs = {Bytes{}, Bytes{}};
  call.outputs = {MutableBytes(memory).first(2), MutableBytes(memory).last(2)};
  call.received = received;
  const Result<void> refused = validate(call, 0, 2);
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().message.find("received has 1 parts, needs 2"), std::string::npos);
}

TEST(CallNames, AreAllDifferent) {
  for (int a = 1; a <= static_cast<int>(kLastOpKind); ++a) {
    EXPECT_STRNE(name(static_cast<OpKind>(a)), "unknown");
    for (int b = 1; b < a; ++b)
      EXPECT_STRNE(name(static_cast<OpKind>(a)), name(static_cast<OpKind>(b)));
  }
}

}  // namespace
}  // namespace scant::collective
