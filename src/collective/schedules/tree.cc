// Binomial trees for broadcast and reduce: log2(P) levels, each segment on its own way. Places
// count from the root; the children of place v are v + 2^k for each 2^k below v's lowest set bit
// (below P for the root).
#include "base/check.h"
#include "collective/schedules/schedule_builder.h"

namespace scant::collective {
namespace {

struct Node {
  Rank parent = kNoRank;
  std::vector<Rank> children;  // smallest subtree first
};

Node node_of(const ScheduleBuilder& b) {
  const int size = b.size();
  const Rank root = b.input().root;
  const int place = (b.rank() - root + size) % size;
  Node node;
  int bit = 1;
  for (; bit < size && (place & bit) == 0; bit *= 2) {
    if (place + bit < size) node.children.push_back((place + bit + root) % size);
  }
  if (place != 0) node.parent = (place - bit + root) % size;
  return node;
}

void broadcast(ScheduleBuilder& b) {
  const Node node = node_of(b);
  for (const Region piece : b.segments({0, b.input().output_bytes[0]})) {
    const Ref where = at(Space::output, piece.begin);
    StepIds arrived;
    if (node.parent != kNoRank) arrived.push_back(b.receive(node.parent, where, piece.bytes()));
    // The largest subtree first: it has the longest way to go.
    for (auto child = node.children.rbegin(); child != node.children.rend(); ++child) {
      b.send(*child, where, piece.bytes(), arrived);
    }
  }
}

// A node combines its own value with its children's in the order of their places, so operands stand
// in place order.
void reduce(ScheduleBuilder& b) {
  const Node node = node_of(b);
  const uint64_t bytes = b.input().input_bytes[0];
  const bool is_root = node.parent == kNoRank;
  const uint64_t scratch = is_root || node.children.empty() ? 0 : b.reserve_scratch(bytes);
  for (const Region piece : b.segments({0, bytes})) {
    Ref value = at(Space::input, piece.begin);
    StepIds combined;
    for (size_t i = 0; i < node.children.size(); ++i) {
      const Ref to =
          is_root ? at(Space::output, piece.begin) : at(Space::scratch, scratch + piece.begin);
      const bool last = is_root && i + 1 == node.children.size();
      combined = {
          b.receive_reduce(node.children[i], value, to, piece.bytes(), false, last, combined)};
      value = to;
    }
    if (!is_root) b.send(node.parent, value, piece.bytes(), combined);
  }
}

}  // namespace

void tree_schedule(ScheduleBuilder& builder) {
  switch (builder.input().kind) {
    case OpKind::broadcast:
      return broadcast(builder);
    case OpKind::reduce:
      return reduce(builder);
    default:
      SCANT_CHECK(false, "no tree schedule for this kind");
  }
}

}  // namespace scant::collective
