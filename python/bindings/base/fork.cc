#include "bindings/base/fork.h"

#include <atomic>
#include <pthread.h>

namespace scant::python {
namespace {

std::atomic<uint32_t> generation_of_process{
    0};  // written in the child before any other thread exists there

void in_child() { generation_of_process.fetch_add(1, std::memory_order_relaxed); }

}  // namespace

uint32_t fork_generation() { return generation_of_process.load(std::memory_order_relaxed); }

void watch_forks() { pthread_atfork(nullptr, nullptr, &in_child); }

}  // namespace scant::python
