// What ranks do together, as the public API has it: each becomes a call that the I/O thread
// submits.
#include <utility>

#include "collective/communicator_impl.h"

namespace scant {

Work Communicator::all_reduce(Bytes input, MutableBytes output, DType dtype, ReduceOp op,
                              const CallOptions& options) {
  collective::Call call;
  call.kind = collective::OpKind::all_reduce;
  call.dtype = dtype;
  call.reduce = op;
  call.inputs = {input};
  call.outputs = {output};
  return impl_->submit(std::move(call), options);
}

Work Communicator::reduce(Bytes input, MutableBytes output, DType dtype, ReduceOp op, Rank root,
                          const CallOptions& options) {
  collective::Call call;
  call.kind = collective::OpKind::reduce;
  call.dtype = dtype;
  call.reduce = op;
  call.root = root;
  call.inputs = {input};
  call.outputs = {output};
  return impl_->submit(std::move(call), options);
}

Work Communicator::reduce_scatter(std::vector<Bytes> input_parts, MutableBytes output, DType dtype,
                                  ReduceOp op, const CallOptions& options) {
  collective::Call call;
  call.kind = collective::OpKind::reduce_scatter;
  call.dtype = dtype;
  call.reduce = op;
  call.inputs = std::move(input_parts);
  call.outputs = {output};
  return impl_->submit(std::move(call), options);
}

Work Communicator::all_gather(Bytes input, std::vector<MutableBytes> output_parts, DType dtype,
                              const CallOptions& options) {
  collective::Call call;
  call.kind = collective::OpKind::all_gather;
  call.dtype = dtype;
  call.inputs = {input};
  call.outputs = std::move(output_parts);
  return impl_->submit(std::move(call), options);
}

Work Communicator::broadcast(MutableBytes data, DType dtype, Rank root,
                             const CallOptions& options) {
  collective::Call call;
  call.kind = collective::OpKind::broadcast;
  call.dtype = dtype;
  call.root = root;
  call.outputs = {data};
  return impl_->submit(std::move(call), options);
}

Work Communicator::gather(Bytes input, std::vector<MutableBytes> output_parts, DType dtype,
                          Rank root, const CallOptions& options) {
  collective::Call call;
  call.kind = collective::OpKind::gather;
  call.dtype = dtype;
  call.root = root;
  call.inputs = {input};
  call.outputs = std::move(output_parts);
  return impl_->submit(std::move(call), options);
}

Work Communicator::scatter(std::vector<Bytes> input_parts, MutableBytes output, DType dtype,
                           Rank root, const CallOptions& options) {
  collective::Call call;
  call.kind = collective::OpKind::scatter;
  call.dtype = dtype;
  call.root = root;
  call.inputs = std::move(input_parts);
  call.outputs = {output};
  return impl_->submit(std::move(call), options);
}

Work Communicator::all_to_all(std::vector<Bytes> input_parts,
                              std::vector<MutableBytes> output_parts, DType dtype,
                              const CallOptions& options) {
  collective::Call call;
  call.kind = collective::OpKind::all_to_all;
  call.dtype = dtype;
  call.inputs = std::move(input_parts);
  call.outputs = std::move(output_parts);
  return impl_->submit(std::move(call), options);
}

Work Communicator::exchange(std::vector<Bytes> input_parts, std::vector<MutableBytes> output_parts,
                            std::span<uint64_t> received, const CallOptions& options) {
  collective::Call call;
  call.kind = collective::OpKind::exchange;
  call.inputs = std::move(input_parts);
  call.outputs = std::move(output_parts);
  call.received = received;
  return impl_->submit(std::move(call), options);
}

Work Communicator::send(Bytes data, DType dtype, Rank peer, uint32_t tag,
                        const CallOptions& options) {
  collective::Call call;
  call.kind = collective::OpKind::send;
  call.dtype = dtype;
  call.root = peer;
  call.tag = tag;
  call.inputs = {data};
  return impl_->submit(std::move(call), options);
}

Work Communicator::recv(MutableBytes data, DType dtype, Rank peer, uint32_t tag,
                        const CallOptions& options) {
  collective::Call call;
  call.kind = collective::OpKind::recv;
  call.dtype = dtype;
  call.root = peer;
  call.tag = tag;
  call.outputs = {data};
  return impl_->submit(std::move(call), options);
}

Work Communicator::barrier(const CallOptions& options) {
  collective::Call call;
  call.kind = collective::OpKind::barrier;
  return impl_->submit(std::move(call), options);
}

}  // namespace scant
