// What an endpoint of the simulated network does with what it receives.
#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/crc.h"
#include "net/net_counters.h"
#include "net/peer_text.h"
#include "net/simulated/simulated_transport.h"

namespace scant::net {
namespace {

constexpr size_t kInboxBytesMax = 4 << 20;  // a stopped endpoint loses what comes after that

base::Counter& bytes_received(Content content) {
  return bytes_counter(Direction::received, PathKind::simulated, content);
}

}  // namespace

void SimulatedTransport::receive(Rank from, std::vector<std::byte> bytes) {
  if (inbox_bytes_ + bytes.size() > kInboxBytesMax) return;
  inbox_bytes_ += bytes.size();
  inbox_.emplace_back(from, std::move(bytes));
}

void SimulatedTransport::on_datagram(Rank from, Bytes bytes, TransportSink& sink) {
  const auto decoded = decode_datagram(bytes);
  // Damage on the way; the sender's timer repairs it.
  if (!decoded || decoded.value().source != from || decoded.value().destination != rank_) {
    corrupt_counter().add();
    return;
  }
  const Datagram& datagram = decoded.value();
  if (down(from)) {
    if (datagram.kind == DatagramKind::data) control(from, DatagramKind::reset);
    return;
  }
  if (!liveness_.empty()) liveness_[static_cast<size_t>(from)].on_heard(now());
  switch (datagram.kind) {
    case DatagramKind::data:
      bytes_received(Content::frames).add(bytes.size());
      on_data(from, datagram, sink);
      return;
    case DatagramKind::acknowledgement:
      bytes_received(Content::repair).add(bytes.size());
      on_ack(from, datagram.ack, sink);
      return;
    case DatagramKind::heartbeat:
      bytes_received(Content::keep_alive).add(bytes.size());
      return;
    case DatagramKind::reset:
      bytes_received(Content::repair).add(bytes.size());
      peer_down(from, lost(from, "it reset the connection", now()), false, sink);
      return;
  }
}

void SimulatedTransport::on_data(Rank peer, const Datagram& datagram, TransportSink& sink) {
  Link& from = link(peer);
  from.heard = now();
  const auto arrival = from.receiver.on_packet(now(), datagram.number);
  set_timer(peer, from);
  if (arrival == ReliableReceiver::Arrival::duplicate) duplicates_counter().add();
  if (arrival != ReliableReceiver::Arrival::fresh) return;
  Assembly& assembly = from.assemblies[datagram.frame];
  if (assembly.total != 0 && assembly.total != datagram.total) {
    return broken(peer, "pieces of one frame differ in its size", sink);
  }
  assembly.total = datagram.total;
  assembly.arrived += datagram.piece.size();
  if (assembly.arrived > assembly.total) return broken(peer, "pieces overlap", sink);
  if (datagram.offset == 0) {
    if (!begin_frame(peer, assembly, datagram, sink)) return;
  } else if (!assembly.begun) {
    assembly.early.emplace_back(
        datagram.offset, std::vector<std::byte>(datagram.piece.begin(), datagram.piece.end()));
  } else {
    place(assembly, datagram.offset, datagram.piece);
  }
  if (assembly.begun && assembly.arrived == assembly.total) end_frame(peer, datagram.frame, sink);
}

void SimulatedTransport::place(const Assembly& assembly, uint32_t offset, Bytes piece) {
  if (assembly.target.empty()) return;
  SCANT_CHECK(offset >= kFrameHeaderBytes &&
              offset - kFrameHeaderBytes + piece.size() <= assembly.target.size());
  std::memcpy(assembly.target.data() + (offset - kFrameHeaderBytes), piece.data(), piece.size());
}

bool SimulatedTransport::begin_frame(Rank peer, Assembly& assembly, const Datagram& datagram,
                                     TransportSink& sink) {
  const auto decoded = decode(datagram.piece.first(kFrameHeaderBytes));
  if (!decoded || assembly.begun || decoded.value().sequence != datagram.frame ||
      kFrameHeaderBytes + decoded.value().length != datagram.total) {
    broken(peer, "frame header does not fit its datagram", sink);
    return false;
  }
  assembly.begun = true;
  assembly.header = decoded.value();
  if (assembly.header.length > 0) {
    assembly.target = sink.on_header(peer, assembly.header);
    SCANT_CHECK(assembly.target.empty() || assembly.target.size() == assembly.header.length,
                "the sink's memory has another size");
  }
  if (datagram.piece.size() > kFrameHeaderBytes) {
    place(assembly, kFrameHeaderBytes, datagram.piece.subspan(kFrameHeaderBytes));
  }
  for (const auto& [offset, piece] : std::exchange(assembly.early, {})) {
    place(assembly, offset, piece);
  }
  return true;
}

void SimulatedTransport::end_frame(Rank peer, uint64_t frame, TransportSink& sink) {
  Link& from = link(peer);
  const Assembly assembly = std::move(from.assemblies.extract(frame).mapped());
  ++from.frames_arrived;
  const FrameHeader& header = assembly.header;
  if (header.type == FrameType::goodbye) {
    from.goodbye = true;
    from.goodbye_frame = frame;
  } else {
    const bool discarded = header.length > 0 && assembly.target.empty();
    if (!discarded) {
      if (header.length > 0 && base::crc32c(assembly.target) != header.payload_crc) {
        return broken(peer, "payload checksum of frame " + std::to_string(frame), sink);
      }
      frames_counter(Direction::received, PathKind::simulated).add();
      handled_ = true;
      sink.on_frame(peer, header, assembly.target);
    }
  }
  maybe_closed(peer, sink);
}

// The goodbye may overtake frames; the peer has left when all before it are here.
void SimulatedTransport::maybe_closed(Rank peer, TransportSink& sink) {
  Link& from = link(peer);
  if (!from.goodbye || from.frames_arrived != from.goodbye_frame + 1) return;
  control(peer, DatagramKind::acknowledgement, from.receiver.take_ack());
  peer_down(peer, peer_left(peer_info(peer)), false, sink);
}

void SimulatedTransport::on_notice(Rank peer, TransportSink& sink) {
  if (!down(peer)) peer_down(peer, peer_left(peer_info(peer)), false, sink);
}

void SimulatedTransport::on_ack(Rank peer, const LinkAck& ack, TransportSink& sink) {
  const auto found = links_.find(peer);
  if (found == links_.end()) return broken(peer, "acknowledgement of nothing", sink);
  Link& to = *found->second;
  to.heard = now();
  std::vector<uint64_t> acknowledged;
  if (!to.sender.on_ack(now(), ack, acknowledged)) {
    return broken(peer, "acknowledgement of what was not sent", sink);
  }
  for (const uint64_t number : acknowledged) {
    const auto packet = to.packets.extract(number);
    const auto frame = to.unfinished.find(packet.mapped().frame);
    SCANT_CHECK(frame != to.unfinished.end() && frame->second.packets > 0);
    if (--frame->second.packets > 0 || !frame->second.cut) continue;
    if (network_.options().sent_when_acknowledged) release(frame->second);
    to.unfinished.erase(frame);
  }
  set_timer(peer, to);
  dirty_.insert(peer);
}

}  // namespace scant::net
