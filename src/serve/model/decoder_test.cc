// Models are bound tensor by tensor, and a token's logits do not depend on what runs beside it, on
// how its prompt was cut, or on threads.
#include "serve/model/decoder.h"

#include <array>
#include <cmath>
#include <cstring>
#include <gtest/gtest.h>

#include "base/buffer.h"
#include "serve/testing/models.h"

namespace scant::serve {
namespace {

using testing::MadeModel;
using Logits = std::vector<float>;

Description llama() {
  Description d = testing::small_description();
  d.layers = 2;
  d.heads = 4;
  d.kv_heads = 2;
  d.head_size = 24;
  d.rope_size = 16;
  d.width = 48;
  d.window = 33;
  d.flags = kGatedFfn | kQkvBias | kOutputBias | kFfnBias | kQkNorm;
  return d;
}

Description gpt2() {
  Description d = testing::small_description();
  d.family = Family::gpt2;
  d.layers = 2;
  d.kv_heads = 2;
  d.norm = Norm::layer;
  d.activation = Activation::gelu_tanh;
  d.position = Position::learned;
  d.rope_size = 0;
  d.rope_base = 0;
  d.flags = kTiedEmbedding | kQkvBias | kOutputBias | kFfnBias;
  return d;
}

struct Running {
  Running(const Description& d, const MadeModel& made, KvKind kind = KvKind::bf16,
          size_t threads = 1) {
    testing::write_model(folder.at("a.scp"), d, made);
    auto opened = testing::open_model(folder.at("a.scp"));
    EXPECT_TRUE(opened.ok()) << opened.error().to_string();
    model = std::move(opened).value();
    decoder = Decoder::create(*model, kind, 32, threads).value();
  }
  [[nodiscard]] Logits run(std::span<const Piece> pieces) const {
    const auto logits = decoder->run(pieces);
    EXPECT_TRUE(logits.ok());
    return {logits.value().begin(), logits.value().end()};
  }
  [[nodiscard]] Logits run(std::initializer_list<Piece> pieces) const {
    return run(std::span(pieces.begin(), pieces.size()));
  }

  testing::Folder folder;
  std::unique_ptr<Model> model;
  std::unique_ptr<Decoder> decoder;
};

std::vector<uint32_t> text(size_t n, uint64_t seed) {
  base::Rng rng(seed);
  std::vector<uint32_t> tokens(n);
  for (uint32_t& one : tokens) one = static_cast<uint32_t>(rng.below(100));
  return tokens;
}

bool same_bits(const Logits& a, const Logits& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), sizeof(float) * a.size()) == 0;
}

const std::vector<uint32_t> kPagesA = {5, 30, 2, 9, 11, 0, 1};
const std::vector<uint32_t> kPagesB = {6, 7, 8, 20, 21};

class Decoding : public ::testing::TestWithParam<Description> {};

TEST_P(Decoding, TheSameBitsHoweverAPromptIsCut) {
  const auto tokens = text(90, 1);
  for (const KvKind kind : {KvKind::f32, KvKind::bf16, KvKind::q8}) {
    const Running whole(GetParam(), {}, kind);
    const Logits wanted = whole.run({{tokens, 0, kPagesA, 90}});
    ASSERT_EQ(wanted.size(), 90U * 100);
    for (const float one : wanted) ASSERT_TRUE(std::isfinite(one));
    for (const size_t cut : {1U, 7U, 16U, 50U}) {
      Logits found;
      for (size_t at = 0; at < tokens.size(); at += cut) {
        const std::span now = std::span(tokens).subspan(at, std::min(cut, tokens.size() - at));
        const auto outputs = static_cast<uint32_t>(now.size());
        const Logits part = whole.run({{now, static_cast<uint32_t>(at), kPagesA, outputs}});
        found.insert(found.end(), part.begin(), part.end());
      }
      EXPECT_TRUE(same_bits(found, wanted)) << "pieces of " << cut;
    }
  }
}

TEST_P(Decoding, TheSameBitsWithAllKernels) {
  const auto tokens = text(40, 1);
  Running running(GetParam(), {.matrices = TensorKind::q4}, KvKind::q8);
  const Logits wanted = running.run({{tokens, 0, kPagesA, 40}});
  for (const std::string_view name : kernel_names()) {
    running.decoder =
        Decoder::create(*running.model, KvKind::q8, 32, 1, kernels_named(name).value()).value();
    EXPECT_TRUE(same_bits(running.run({{tokens, 0, kPagesA, 40}}), wanted)) << name;
  }
}

TEST_P(Decoding, TheSameBitsBesideOthersAndOnSeveralThreads) {
  const auto a = text(40, 1);
  const auto b = text(23, 2);
  const Running alone(GetParam(), {});
  const Logits of_a = alone.run({{a, 0, kPagesA, 2}});
  Logits wanted = alone.run({{b, 0, kPagesB, 3}});
  wanted.insert(wanted.begin(), of_a.begin(), of_a.end());
  for (const size_t threads : {1U, 3U}) {
    const Running run(GetParam(), {}, KvKind::bf16, threads);
    EXPECT_TRUE(same_bits(run.run({{a, 0, kPagesA, 2}, {b, 0, kPagesB, 3}}), wanted));
    // The beginning of b; then what is left of it, a piece without outputs, and a new token of a.
    const uint32_t next[] = {3};
    EXPECT_TRUE(run.run({{std::span(b).first(20), 0, kPagesB, 0}}).empty());
    const Logits mixed = run.run({{next, 40, kPagesA, 1},
                                  {std::span(b).first(5), 0, std::span(kPagesA).last(1), 0},
                                  {std::span(b).subspan(20), 20, kPagesB, 3}});
    EXPECT_TRUE(
        same_bits({mixed.begin() + 100, mixed.end()}, {wanted.begin() + 200, wanted.end()}));
    const Logits once = alone.run({{next, 40, kPagesA, 1}});
    EXPECT_TRUE(same_bits({mixed.begin(), mixed.begin() + 100}, once));
  }
}

TEST_P(Decoding, VectorsRunBesideLogitsAndThreadsChangeNoBit) {
  const auto a = text(40, 1);
  const auto b = text(23, 2);
  const Running run(GetParam(), {}, KvKind::bf16, 3);
  const Piece logits_of_a = {a, 0, kPagesA, 2};
  const Piece vectors_of_b = {.tokens = b, .pages = kPagesB, .outputs = 23, .vectors = true};
  const Logits alone = run.run({logits_of_a});
  EXPECT_TRUE(run.decoder->vectors().empty());
  EXPECT_TRUE(run.run({vectors_of_b}).empty());
  const auto row = run.decoder->vectors();
  const Logits wanted(row.begin(), row.end());
  ASSERT_EQ(wanted.size(), 23U * GetParam().width);
  for (const size_t threads : {1U, 3U, 2U}) {
    run.decoder->use_threads(threads);
    for (const bool first : {false, true}) {
      const std::array pieces = {first ? vectors_of_b : logits_of_a,
                                 first ? logits_of_a : vectors_of_b};
      EXPECT_TRUE(same_bits(run.run(pieces), alone));
      const auto found = run.decoder->vectors();
      EXPECT_TRUE(same_bits({found.begin(), found.end()}, wanted));
    }
  }
}

TEST_P(Decoding, CopiesOfPagesAreAsGood) {
  const auto tokens = text(20, 1);
  const Running run(GetParam(), {}, KvKind::q8);
  static_cast<void>(run.run({{std::span(tokens).first(19), 0, kPagesA, 1}}));
  const std::vector<uint32_t> copies = {17, 18};
  run.decoder->copy_page(kPagesA[0], 17);
  run.decoder->copy_page(kPagesA[1], 18);
  const std::span last = std::span(tokens).last(1);
  const Logits wanted = run.run({{last, 19, kPagesA, 1}});
  EXPECT_TRUE(same_bits(run.run({{last, 19, copies, 1}}), wanted));
}

TEST_P(Decoding, NothingIsPaddedAndMemoryStays) {
  const Description d = GetParam();
  const Running run(d, {});
  uint64_t layer = 0;
  for (const auto& [name, dims] : testing::tensors_of(d)) {
    if (name.starts_with("blk.") && dims.size() == 2) layer += dims[0] * dims[1];
  }
  const auto tokens = text(64, 1);
  static_cast<void>(run.run({{tokens, 0, kPagesA, 64}}));
  const Work work = run.decoder->work();
  EXPECT_EQ(work.products, 64 * (layer + uint64_t{d.vocabulary} * d.width));
  EXPECT_GE(work.attention, work.seen);
  EXPECT_LE(static_cast<double>(work.products + work.attention),
            1.05 * static_cast<double>(work.products + work.seen));
  const uint64_t bytes = run.decoder->memory_bytes();
  EXPECT_GT(bytes, 32 * kv_page_bytes(d, KvKind::bf16));
  for (const uint32_t outputs : {64U, 1U, 0U}) {
    static_cast<void>(run.run({{tokens, 0, kPagesA, outputs}}));
    EXPECT_EQ(run.decoder->memory_bytes(), bytes);
  }
  EXPECT_TRUE(run.run({}).empty());
}

TEST_P(Decoding, VectorsMayBeOfOtherKinds) {
  const auto tokens = text(10, 1);
  const auto to_bf16 = [](const std::string&, std::vector<float>& values) {
    for (float& one : values) {
      const uint32_t bits = std::bit_cast<uint32_t>(one) & 0xFFFF0000U;
      one = std::bit_cast<float>(bits);
    }
  };
  const Running wide(GetParam(), {.values = to_bf16});
  const Running narrow(GetParam(), {.vectors = TensorKind::bf16, .values = to_bf16});
  EXPECT_TRUE(
      same_bits(narrow.run({{tokens, 0, kPagesA, 1}}), wide.run({{tokens, 0, kPagesA, 1}})));
}

INSTANTIATE_TEST_SUITE_P(All, Decoding, ::testing::Values(llama(), gpt2()),
                         [](const auto& which) { return which.index == 0 ? "llama" : "gpt2"; });

// ---- models ------------------------------------------------------------------------------------

// What opening a model says that was made so.
std::string refusal(const Description& d, const MadeModel& made) {
  const testing::Folder folder;
  testing::write_model(folder.at("a.scp"), d, made);
  const auto model = testing::open_model(folder.at("a.scp"));
  if (model) return "opened";
  EXPECT_EQ(model.error().code, ErrorCode::corrupt);
  return model.error().message;
}

TEST(Models, FaultsAreNamed) {
  const auto without = [](const std::string& name) {
    return MadeModel{.dims = [name](testing::Dims& dims) { dims.erase(name); }};
  };
  const auto shaped = [](const std::string& name, const std::vector<uint64_t>& wrong) {
    return MadeModel{.dims = [name, wrong](testing::Dims& dims) { dims[name] = wrong; }};
  };
  for (const Description& d : {llama(), gpt2()}) {
    for (const auto& tensor : testing::tensors_of(d)) {
      const std::string& name = tensor.first;
      const std::vector<uint64_t>& dims = tensor.second;
      if (name.ends_with("attn_qkv.weight")) continue;  // then query, key and value are looked for
      EXPECT_NE(refusal(d, without(name)).find("'" + name + "' is missing"), std::string::npos)
          << name;
      auto wrong = dims;
      wrong.back() += 1;
      EXPECT_NE(refusal(d, shaped(name, wrong)).find("tensor '" + name + "' is "),
                std::string::npos)
          << name;
      if (dims.size() > 1) continue;
      const MadeModel infinite{.values = [&](const std::string& of, std::vector<float>& values) {
        if (of == name) values.back() = INFINITY;
      }};
      const std::string says = "tensor '" + name + "': value " + std::to_string(dims[0] - 1);
      EXPECT_NE(refusal(d, infinite).find(says), std::string::npos) << name;
    }
  }
  EXPECT_NE(refusal(gpt2(), without("blk.0.attn_qkv.weight")).find("'blk.0.attn_q.weight' is"),
            std::string::npos);
}

TEST(Models, DivisorsOfFrequenciesAreChecked) {
  Description d = testing::small_description();
  d.rope_scaling = RopeScaling::tensor;
  EXPECT_EQ(refusal(d, {}), "opened");
  const MadeModel strange{.values = [](const std::string& name, std::vector<float>& values) {
    if (name == "rope_freqs.weight") values[2] = 0;
  }};
  EXPECT_NE(refusal(d, strange).find("'rope_freqs.weight': value 2"), std::string::npos);
}

TEST(Models, EveryKindOfMatrixRuns) {
  const auto tokens = text(12, 1);
  Description d = testing::small_description();
  d.flags |= kTiedEmbedding;
  const Logits wanted = Running(d, {}).run({{tokens, 0, kPagesA, 12}});
  for (const TensorKind kind : tensor_kinds()) {
    const bool blocks = row_by_row(kind) && kind >= TensorKind::q4_0;  // made by others only
    if (blocks) continue;
    const Logits found = Running(d, {.matrices = kind}).run({{tokens, 0, kPagesA, 12}});
    double error = 0;
    double all = 0;
    for (size_t i = 0; i < wanted.size(); ++i) {
      error += std::pow(found[i] - wanted[i], 2);
      all += std::pow(wanted[i], 2);
    }
    const double most = kind == TensorKind::q2 ? 1 : kind == TensorKind::q3 ? 0.3 : 0.1;
    EXPECT_LT(error / all, most) << name(kind);
    EXPECT_TRUE(kind == TensorKind::f32 || error > 0) << name(kind);
    // One token at a time, which products do in another way.
    const Running again(d, {.matrices = kind});
    for (uint32_t i = 0; i < tokens.size(); ++i) {
      const Logits one = again.run({{std::span(tokens).subspan(i, 1), i, kPagesA, 1}});
      EXPECT_TRUE(same_bits(one, {found.begin() + 100 * i, found.begin() + 100 * (i + 1)}))
          << name(kind) << " token " << i;
    }
  }
}

TEST(Models, ADescriptionThatNoModelHasIsRefused) {
  Description d = testing::small_description();
  d.head_size = 0;
  const testing::Folder folder;
  auto writer = GgufWriter::create(folder.at("a.gguf"), 0, {},
                                   {{.name = "w", .kind = TensorKind::f32, .dims = {1, 2}}});
  ASSERT_TRUE(writer.ok());
  const float values[2] = {};
  ASSERT_TRUE(writer.value().append(std::as_bytes(std::span(values))).ok());
  ASSERT_TRUE(writer.value().finish().ok());
  for (const uint32_t layers : {1U, 1U << 14}) {
    Description most = testing::small_description();
    most.layers = layers;
    most.vocabulary = 1U << 24;
    const auto model = Model::open(GgufFile::open(folder.at("a.gguf")).value(), most);
    ASSERT_FALSE(model.ok());
    EXPECT_NE(model.error().message.find("'token_embd.weight' is missing"), std::string::npos);
  }
  const auto model = Model::open(GgufFile::open(folder.at("a.gguf")).value(), d);
  ASSERT_FALSE(model.ok());
  EXPECT_NE(model.error().message.find("head_size of 0"), std::string::npos);
}

TEST(Models, NoMemoryIsAnError) {
  const Running run(testing::small_description(), {});
  base::set_allocation_gate([](size_t) { return false; });
  const auto decoder = Decoder::create(*run.model, KvKind::f32, 8, 1);
  base::set_allocation_gate(nullptr);
  ASSERT_FALSE(decoder.ok());
  EXPECT_EQ(decoder.error().code, ErrorCode::resource);
}

}  // namespace
}  // namespace scant::serve
