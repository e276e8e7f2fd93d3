// The race checker: a runtime for -fsanitize=thread in place of libtsan. Two accesses are ordered where a barrier that
// holds both threads came between them, so that what is found does not depend on the order in which fibers run. It also
// sees reads of shared memory that nobody has written, accesses outside of shared variables and misaligned ones.
#if defined(EMULATOR_RACE)

#include "emulator/race.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "emulator/fiber.h"

namespace emulator::race {
namespace {

// Who accessed, and what its clocks were. Records are numbered on through all launches; those below `first_record` are
// of earlier ones, and come before everything.
struct Record {
  uint32_t block, cluster, rank, step, barriers, proxy_fences, cluster_syncs, grid_syncs;
};
std::vector<Record> records;
uint32_t first_record = 1;

// In place of a record, as the last write of a byte; kAtomic marks the record of an atomic access.
constexpr uint32_t kAtomic = 0x80000000u, kUnwritten = 0x7ffffffeu, kOutside = 0x7fffffffu, kMostRecords = 0x70000000u;

struct Access {
  uint32_t record, at;  // at: the place in the code
};
struct Byte {
  Access write, reads[2];
};
constexpr int kPageBits = 12;
constexpr uintptr_t kPageMask = (uintptr_t{1} << kPageBits) - 1;
struct Page {
  Byte bytes[kPageMask + 1];
};
std::unordered_map<uintptr_t, Page*> pages;
constexpr size_t kMostPages = 4096;  // 400 MB
uintptr_t last_number = 0;
Page* last_page = nullptr;

Byte& byte_at(uintptr_t address) {
  const uintptr_t number = address >> kPageBits;
  if (number != last_number) {
    Page*& page = pages[number];
    if (page == nullptr) page = static_cast<Page*>(calloc(1, sizeof(Page)));
    last_number = number;
    last_page = page;
  }
  return last_page->bytes[address & kPageMask];
}

bool is_of_this_launch(uint32_t record) {
  record &= ~kAtomic;
  return record >= first_record && record < kUnwritten;
}
const Record& record_at(uint32_t record) { return records[(record & ~kAtomic) - first_record]; }

uint32_t own_record() {
  if (self->record == 0) {
    self->record = first_record + static_cast<uint32_t>(records.size());
    const Block& block = *self->block;
    records.push_back({block.serial, block.cluster, self->rank, self->step, self->warp->barriers, self->proxy_fences,
                       together.cluster_syncs, together.grid_syncs});
  }
  return self->record;
}

bool is_own(const Record& was) { return was.block == self->block->serial && was.rank == self->rank; }

// Whether an earlier access is known to come before what this thread does now.
bool is_before(uint32_t earlier) {
  if (!is_of_this_launch(earlier)) return true;
  const Record& was = record_at(earlier);
  if (was.grid_syncs < together.grid_syncs && current.cooperative) return true;
  if (was.cluster == self->block->cluster && was.cluster_syncs < together.cluster_syncs) return true;
  if (was.block != self->block->serial) return false;
  const unsigned warp = was.rank / kLanes;
  if (was.barriers < self->warp->seen[warp]) return true;
  return was.rank == self->rank || (warp == self->rank / kLanes && was.step < self->known[was.rank % kLanes]);
}

struct Finding {
  const char* what;
  uint32_t earlier_at, at;
  bool operator<(const Finding& other) const {
    return std::tie(what, earlier_at, at) < std::tie(other.what, other.earlier_at, other.at);
  }
};
constexpr size_t kMostFindings = 8;
std::set<Finding> known_findings;
std::vector<std::string> findings;

// Offsets in this library.
const char* library_base() {
  static const char* const base = [] {
    Dl_info info{};
    dladdr(reinterpret_cast<const void*>(&new_launch), &info);
    return static_cast<const char*>(info.dli_fbase);
  }();
  return base;
}

// file:line, asked of addr2line: the innermost that is not the runtime's own.
std::string text_of(uint32_t at) {
  Dl_info info{};
  dladdr(reinterpret_cast<const void*>(&new_launch), &info);
  const std::string library = info.dli_fname, folder = library.substr(0, library.rfind('/') + 1);
  char offset[16];
  snprintf(offset, sizeof(offset), "0x%x", at - 1);
  const std::string command = "addr2line -i -e '" + library + "' " + offset;
  FILE* const pipe = popen(command.c_str(), "r");
  std::string text = "an unknown place";
  for (char line[4096]; pipe != nullptr && fgets(line, sizeof(line), pipe) != nullptr;) {
    text = line;
    text.erase(std::min(text.find_first_of(" \n"), text.size()));  // also "(discriminator 3)"
    if (text.find("/runtime/") == std::string::npos) break;
  }
  if (pipe != nullptr) pclose(pipe);
  return text.compare(0, folder.size(), folder) == 0 ? text.substr(folder.size()) : text;
}

void tell(const char* what, Access earlier, uint32_t at) {
  if (findings.size() >= kMostFindings || !known_findings.insert({what, earlier.at, at}).second) return;
  const auto who = [](unsigned rank, unsigned block) {
    return " by thread " + std::to_string(rank) + " of block " + std::to_string(block);
  };
  std::string text = std::string(what) + " at " + text_of(at) + who(self->rank, self->block->serial);
  if (is_of_this_launch(earlier.record)) {
    const Record& was = record_at(earlier.record);
    text += "; before at " + text_of(earlier.at) + who(was.rank, was.block);
  }
  findings.push_back(text);
}

void read(Byte& byte, Access now) {
  // Two readers are kept: the latest, and one before it that no barrier has ordered, of another warp if there is one.
  const Access last = byte.reads[0];
  if (is_of_this_launch(last.record) && !is_own(record_at(last.record)) && !is_before(last.record)) {
    const bool other_warp = record_at(last.record).rank / kLanes != self->rank / kLanes;
    if (other_warp || is_before(byte.reads[1].record)) byte.reads[1] = last;
  }
  byte.reads[0] = now;
}

// Programming guide, "Async Proxies": what other threads wrote is seen by it behind fence.proxy.async of the writer.
bool is_unfenced(uint32_t write) {
  if (!is_of_this_launch(write)) return false;
  const Record& was = record_at(write);
  if (was.block != self->block->serial) return false;
  const Thread& writer = *self->block->warps[was.rank / kLanes].lanes[was.rank % kLanes];
  return writer.proxy_fences == was.proxy_fences;
}

}  // namespace

void access(const void* pointer, size_t bytes, Kind kind, const void* from) {
  if (bytes == 0 || self == nullptr || on_a_stack(pointer)) return;
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  const auto at = static_cast<uint32_t>(static_cast<const char*>(from) - library_base());
  if (bytes <= 16 && (bytes & (bytes - 1)) == 0 && address % bytes != 0) return tell("misaligned access", {}, at);
  const bool reads = kind == Kind::kRead || kind == Kind::kProxyRead, atomic = kind == Kind::kAtomic;
  const Access now{own_record() | (atomic ? kAtomic : 0), at};
  for (size_t i = 0; i < bytes; ++i) {
    Byte& byte = byte_at(address + i);
    if (byte.write.record == kOutside) return tell("access outside of every shared variable", {}, at);
    if (byte.write.record == kUnwritten && (reads || atomic)) {
      if (bytes >= 16 && i > 0) continue;  // a struct's padding, it may be
      return tell("read of shared memory that nobody has written", {}, at);
    }
    const bool both_atomic = atomic && (byte.write.record & kAtomic) != 0;
    if (!both_atomic && !is_before(byte.write.record)) {
      return tell(reads ? "race: read after write" : "race: write after write", byte.write, at);
    }
    if (kind == Kind::kProxyRead && is_unfenced(byte.write.record)) {
      return tell("wgmma reads what fence.proxy.async has not made visible", byte.write, at);
    }
    if (reads) {
      read(byte, now);
      continue;
    }
    for (const Access& reader : byte.reads) {
      if (!is_before(reader.record)) return tell("race: write after read", reader, at);
    }
    byte = {now, {}};
  }
}

// Among whole warps: each knows from here on what any of them knew, and all that they did.
void meet_block(Thread* const* threads, unsigned count) {
  uint32_t seen[kMostWarps] = {};
  std::set<Warp*> warps;
  for (unsigned i = 0; i < count; ++i) warps.insert(threads[i]->warp);
  const Warp* const first = threads[0]->block->warps;
  for (const Warp* warp : warps) {
    for (unsigned w = 0; w < kMostWarps; ++w) seen[w] = std::max(seen[w], warp->seen[w]);
  }
  for (const Warp* warp : warps) seen[warp - first] = warp->barriers + 1;
  for (Warp* warp : warps) {
    ++warp->barriers;
    std::copy(std::begin(seen), std::end(seen), warp->seen);
  }
}

void meet_warp(Warp& warp, unsigned lanes) {
  uint32_t known[kLanes] = {};
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    if ((lanes >> lane & 1) == 0) continue;
    for (unsigned l = 0; l < kLanes; ++l) known[l] = std::max(known[l], warp.lanes[lane]->known[l]);
  }
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    if (lanes >> lane & 1) known[lane] = warp.lanes[lane]->step + 1;
  }
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    if ((lanes >> lane & 1) == 0) continue;
    ++warp.lanes[lane]->step;
    std::copy(std::begin(known), std::end(known), warp.lanes[lane]->known);
  }
}

void new_launch() {
  first_record += static_cast<uint32_t>(records.size());
  records.clear();
  if (first_record > kMostRecords || pages.size() > kMostPages) {  // what is in them is of earlier launches alone
    for (auto& page : pages) free(page.second);
    pages.clear();
    last_number = 0;
    first_record = 1;
  }
  known_findings.clear();
  findings.clear();
}

void new_arena(unsigned char* arena, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) {
    Byte& byte = byte_at(reinterpret_cast<uintptr_t>(arena + i));
    if (byte.write.record != kOutside) byte = {{kOutside, 0}, {}};
  }
}

void new_variable(unsigned char* variable, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) {
    byte_at(reinterpret_cast<uintptr_t>(variable + i)) = {{kUnwritten, 0}, {}};
  }
}

std::string report() {
  std::string text;
  for (const std::string& finding : findings) text += (text.empty() ? "" : "\n") + finding;
  return text;
}

}  // namespace emulator::race

// What the compiler puts before every access.
using emulator::race::access;
using emulator::race::Kind;
#define HERE __builtin_return_address(0)
extern "C" {
#define ACCESSES(n)                                                           \
  void __tsan_read##n(void* p) { access(p, n, Kind::kRead, HERE); }           \
  void __tsan_write##n(void* p) { access(p, n, Kind::kWrite, HERE); }         \
  void __tsan_unaligned_read##n(void* p) { access(p, n, Kind::kRead, HERE); } \
  void __tsan_unaligned_write##n(void* p) { access(p, n, Kind::kWrite, HERE); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
void __tsan_read_range(void* p, unsigned long n) { access(p, n, Kind::kRead, HERE); }
void __tsan_write_range(void* p, unsigned long n) { access(p, n, Kind::kWrite, HERE); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}

// Those of the host, in torch's headers: the kernels' atomics are in cuda_runtime.h.
#define ATOMICS(type, bits)                                                                                     \
  type __tsan_atomic##bits##_load(const volatile type* p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); } \
  void __tsan_atomic##bits##_store(volatile type* p, type v, int) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); } \
  type __tsan_atomic##bits##_fetch_add(volatile type* p, type v, int) {                                         \
    return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST);                                                          \
  }
ATOMICS(uint8_t, 8)
ATOMICS(uint32_t, 32)
ATOMICS(uint64_t, 64)
}

#endif
