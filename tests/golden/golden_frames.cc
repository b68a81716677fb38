// Wire frames: headers of every type, datagrams of every kind, payloads of control frames, address
// records; plans, decisions and measurements as bytes, and the layouts that they are about.
#include <gtest/gtest.h>

#include "codec/rate/probe.h"
#include "collective/engine/control.h"
#include "golden.h"
#include "gradient/testing/fusion_plans.h"
#include "net/address_record.h"
#include "net/datagram.h"
#include "net/frame.h"
#include "plan/decision.h"
#include "plan/measurement.h"

namespace scant::golden {
namespace {

constexpr uint64_t kSeed = 20261130;

template <typename T>
T draw(base::Rng& rng) {
  return static_cast<T>(rng.next());
}

net::FrameHeader draw_header(base::Rng& rng, net::FrameType type) {
  net::FrameHeader header;
  header.type = type;
  header.flags = draw<uint16_t>(rng);
  header.job = draw<uint32_t>(rng);
  header.epoch = draw<uint32_t>(rng);
  header.sequence = rng.next();
  header.length = static_cast<uint32_t>(rng.below(net::kFramePayloadBytesMax + 1));
  header.payload_crc = draw<uint32_t>(rng);
  header.group = draw<uint32_t>(rng);
  header.operation = draw<uint32_t>(rng);
  header.slot = draw<uint32_t>(rng);
  header.tag = draw<uint32_t>(rng);
  header.call.kind = draw<uint8_t>(rng);
  header.call.dtype = draw<uint8_t>(rng);
  header.call.reduce = draw<uint8_t>(rng);
  header.call.algorithm = draw<uint8_t>(rng);
  header.call.root = draw<uint16_t>(rng);
  header.call.group_size = draw<uint16_t>(rng);
  header.call.bytes = rng.next();
  header.credit = draw<uint32_t>(rng);
  return header;
}

void add_headers(Lines& lines) {
  struct Known {
    const char* name;
    net::FrameType type;
  };
  for (const Known known :
       {Known{"heartbeat", net::FrameType::heartbeat}, Known{"goodbye", net::FrameType::goodbye},
        Known{"data", net::FrameType::data}, Known{"ready", net::FrameType::ready},
        Known{"request", net::FrameType::request}, Known{"credit", net::FrameType::credit},
        Known{"cancel", net::FrameType::cancel}, Known{"propose", net::FrameType::propose}}) {
    base::Rng rng(kSeed, static_cast<uint64_t>(known.type));
    Digest digest;
    net::FrameHeader plain;
    plain.type = known.type;
    digest.add(net::encode(plain));
    for (int i = 0; i < 50; ++i) {
      const net::EncodedHeader header = net::encode(draw_header(rng, known.type));
      EXPECT_TRUE(net::decode(header).ok());
      digest.add(header);
    }
    lines.add(std::string("frame/header/") + known.name, digest);
  }
}

void add_datagrams(Lines& lines) {
  base::Rng rng(kSeed, 100);
  for (uint8_t kind = 1; kind <= static_cast<uint8_t>(net::DatagramKind::reset); ++kind) {
    Digest digest;
    for (uint32_t i = 0; i < 50; ++i) {
      std::vector<std::byte> piece(rng.below(1500));
      for (std::byte& one : piece) one = draw<std::byte>(rng);
      net::Datagram datagram;
      datagram.kind = static_cast<net::DatagramKind>(kind);
      datagram.source = static_cast<Rank>(i % 7);
      datagram.destination = static_cast<Rank>(i % 11 + 7);
      datagram.job = draw<uint32_t>(rng);
      datagram.number = rng.below(1 << 30);
      datagram.frame = rng.below(1 << 30);
      datagram.offset = static_cast<uint32_t>(rng.below(1000));
      datagram.total = datagram.offset + static_cast<uint32_t>(piece.size()) + i;
      datagram.ack.next = rng.below(1 << 30);
      for (uint64_t& word : datagram.ack.beyond) word = rng.next();
      if (datagram.kind == net::DatagramKind::data) datagram.piece = piece;
      digest.add(net::encode(datagram));
    }
    lines.add("frame/datagram/" + std::to_string(kind), digest);
  }
}

void add_text(Digest& digest, const std::string& text) {
  digest.add(std::as_bytes(std::span(text)));
}

void add_address_records(Lines& lines) {
  Digest digest;
  add_text(digest, net::encode(net::AddressRecord{}));
  add_text(digest, net::encode(net::AddressRecord{.world_size = 3,
                                                  .host = "host-a",
                                                  .pid = 71,
                                                  .port = 50123,
                                                  .addresses = {"10.0.0.1", "fd00::7", "127.0.0.1"},
                                                  .unix_name = "scant-71-3",
                                                  .network = "net:4026531840"}));
  add_text(digest, net::encode(net::AddressRecord{.world_size = 65535,
                                                  .host = std::string(400, 'h') + "\n\t",
                                                  .pid = -1,
                                                  .port = 65535,
                                                  .addresses = std::vector<std::string>(20, "::1"),
                                                  .unix_name = "a b",
                                                  .network = ""}));
  lines.add("frame/address_record", digest);
}

void add_control(Lines& lines) {
  Digest cancels;
  for (uint8_t code = 0; code <= static_cast<uint8_t>(ErrorCode::unsupported); ++code) {
    for (const std::string& message :
         {std::string(), std::string("rank 2 left"), std::string(2000, 'x')}) {
      cancels.add(collective::encode_cancel({.code = static_cast<ErrorCode>(code),
                                             .sys_errno = code,
                                             .peer = static_cast<Rank>(code) - 1,
                                             .message = message}));
    }
  }
  lines.add("frame/payload/cancel", cancels);
  Digest proposals;
  base::Rng rng(kSeed, 101);
  for (const size_t stations : {1, 2, 7, 8, 9, 64, 1000, 65535}) {
    collective::Proposal proposal{.epoch = draw<uint32_t>(rng),
                                  .live = std::vector<bool>(stations)};
    for (size_t i = 0; i < stations; ++i) proposal.live[i] = rng.chance(0.7);
    proposals.add(collective::encode_proposal(proposal));
  }
  lines.add("frame/payload/propose", proposals);
}

Digest digest_of_layout(const gradient::Layout& layout) {
  Digest digest;
  digest.add_number(layout.arena_elements());
  digest.add_number(layout.elements());
  for (const gradient::TensorLayout& tensor : layout.tensors()) {
    digest.add_number(tensor.offset);
    digest.add_number(uint64_t{tensor.first_part} << 32 | tensor.parts);
  }
  for (const gradient::PartLayout& part : layout.parts()) {
    digest.add_number(part.range.first);
    digest.add_number(part.range.elements);
    digest.add_number(uint64_t{part.first_slice} << 32 | part.slices);
  }
  for (const gradient::SliceLayout& slice : layout.slices()) {
    digest.add_number(uint64_t{slice.part} << 32 | static_cast<uint32_t>(slice.owner));
    digest.add_number(slice.range.first);
    digest.add_number(slice.range.elements);
  }
  return digest;
}

plan::Decision draw_decision(base::Rng& rng, const gradient::Layout& layout) {
  return {.plan = gradient::testing::random_plan(rng, layout),
          .steps = 10,
          .skipped = 2,
          .curves = rng.chance(0.5),
          .sounding_bytes = static_cast<uint32_t>(rng.below(1 << 20))};
}

plan::Measurement draw_measurement(base::Rng& rng, size_t parts, bool curves) {
  plan::Measurement one;
  for (double* number :
       {&one.step_s, &one.backward_s, &one.exposed_s, &one.end_s, &one.encode_s, &one.add_s,
        &one.decode_s, &one.overlapped_work_s, &one.sent_bytes, &one.kept, &one.residual}) {
    *number = rng.uniform();
  }
  one.steps = static_cast<double>(rng.below(100));
  one.sounding.small_s = rng.uniform();
  one.sounding.exchange_s = rng.uniform();
  one.sounding.reduce_s = rng.uniform();
  one.sounding.exchange_bytes = one.sounding.reduce_bytes = 1e5 * rng.uniform();
  for (size_t part = 0; part < parts; ++part) {
    one.ready_s.push_back(rng.uniform());
    one.needed_s.push_back(rng.uniform());
    if (!curves) continue;
    codec::Curve curve{.energy = 1 + rng.uniform(), .points = {}};
    for (const codec::Point point : codec::default_points())
      curve.points.push_back({point, 1000 * rng.uniform(), rng.uniform()});
    one.curves.push_back(std::move(curve));
  }
  return one;
}

void add_of_layout(Lines& lines, uint64_t number) {
  base::Rng rng(kSeed, 200 + number);
  const gradient::Layout layout = gradient::testing::random_layout(rng, 30);
  const std::string name = "plan/" + std::to_string(number);
  lines.add(name + "/layout", digest_of_layout(layout));
  Digest plans;
  Digest decisions;
  Digest measurements;
  for (int i = 0; i < 5; ++i) {
    const gradient::FusionPlan plan = gradient::testing::random_plan(rng, layout);
    const std::vector<std::byte> bytes = gradient::serialise(plan, layout);
    plans.add(bytes);
    plans.add_number(gradient::hash_of(bytes));
    const auto parsed = gradient::parse_fusion_plan(bytes, layout);
    EXPECT_TRUE(parsed.ok() && parsed.value() == plan);
    for (uint32_t turn = 0; turn < plan.buffers.size(); ++turn)
      plans.add_number(gradient::buffer_at(plan, turn));
    decisions.add(plan::serialise(draw_decision(rng, layout), layout));
    for (const bool curves : {false, true}) {
      const size_t parts = layout.parts().size();
      std::vector<std::byte> room(plan::measurement_bytes(parts, curves));
      plan::write_measurement(draw_measurement(rng, parts, curves), room);
      measurements.add(room);
    }
  }
  lines.add(name + "/fusion_plan", plans);
  lines.add(name + "/decision", decisions);
  lines.add(name + "/measurement", measurements);
}

// As users name them: path, point, sizes of buffers.
void add_uniform_plans(Lines& lines) {
  const std::vector<codec::Shape> shapes{{1, 10}, {300, 2000}, {1, 300}, {64, 64000}, {1, 5000000}};
  for (int ranks = 1; ranks <= 9; ++ranks) {
    const gradient::Layout layout = gradient::testing::layout_of(shapes, ranks);
    Digest digest;
    base::Rng rng(kSeed, 300);
    for (int i = 0; i < 60; ++i) {
      const gradient::UniformPlan wanted{
          .path = static_cast<gradient::Path>(i % gradient::kPathCount),
          .point = gradient::testing::random_point(rng),
          .buffer_bytes = rng.below(1 << 24),
          .first_buffer_bytes = rng.below(1 << 22),
          .small_elements = rng.below(10000)};
      digest.add(gradient::serialise(gradient::uniform_plan(wanted, layout), layout));
    }
    lines.add("plan/uniform/" + std::to_string(ranks), digest);
  }
}

}  // namespace

void add_frames(Lines& lines) {
  add_headers(lines);
  add_datagrams(lines);
  add_address_records(lines);
  add_control(lines);
}

void add_plans(Lines& lines) {
  for (uint64_t number = 0; number < 20; ++number) add_of_layout(lines, number);
  add_uniform_plans(lines);
}

}  // namespace scant::golden
