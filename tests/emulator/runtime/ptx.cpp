#include "emulator/ptx.h"

#include <cstring>
#include <unordered_map>
#include <vector>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "emulator/race.h"
#include "emulator/shared.h"

namespace emulator::ptx {
namespace {

constexpr int kRows = 64, kColumns = 128, kDepth = 16;  // of the one product that is modelled: m64n128k16
constexpr size_t kPiece = 16;                           // bytes of a copy, and of a row of a core matrix

struct Copy {
  uint32_t target;
  const void* source;
  int given;
};
struct Product {
  std::array<float*, 64> d;
  std::array<float, 64> before;
  uint64_t a, b;
  bool add, is_half;
  bool follows;  // a product that was pending when it was issued, in the same registers
  int group;     // -1: not committed
};
struct Pending {  // of a thread
  std::vector<Copy> copies;
  std::vector<Product> products;
  int groups = 0;
  bool fenced = false;
};
std::unordered_map<const Thread*, Pending> pending;

void align(const char* name, uint64_t operands, Place place) {
  meet_warp(Together::kAligned, name, 0xffffffffu, operands, 0, place);
}

// Where byte `byte` of row `row` of a K-major operand lies. PTX ISA, "Matrix Descriptor Format": bits 0-13 the address,
// 16-29 the leading and 32-45 the stride offset, each / 16, 49-51 the base offset, 62-63 the swizzle (0 none, 1 of 128,
// 2 of 64, 3 of 32 bytes). Swizzling exclusive-ors bits 4-6 of an address with its bits 7-9.
const unsigned char* element(uint64_t descriptor, int row, int byte) {
  const auto field = [&](int first) { return static_cast<uint32_t>(descriptor >> first & 0x3fff) << 4; };
  const uint32_t start = field(0), leading = field(16), stride = field(32);
  const auto swizzle = static_cast<unsigned>(descriptor >> 62);
  if ((descriptor >> 49 & 7) != 0) fail("wgmma: the base offset of a descriptor is not modelled");
  const auto r = static_cast<uint32_t>(row), b = static_cast<uint32_t>(byte);
  if (swizzle == 0) return shared_pointer(start + r / 8 * stride + b / 16 * leading + r % 8 * 16 + b % 16);
  const uint32_t width = swizzle == 1 ? 128 : swizzle == 2 ? 64 : 32;
  if ((start & (width - 1)) + b >= width) fail("wgmma: an operand leaves its swizzled row");
  const uint32_t at = start + r / 8 * stride + r % 8 * width + b;
  return shared_pointer(at ^ (at >> 7 & (width / 16 - 1)) << 4);
}

float value(const unsigned char* at, bool is_half) {
  if (is_half) {
    __half x;
    memcpy(&x, at, sizeof(x));
    return __half2float(x);
  }
  __nv_bfloat16 x;
  memcpy(&x, at, sizeof(x));
  return __bfloat162float(x);
}

// What this thread's quarter of the product reads.
void note_reads(const Product& p, const void* from) {
  const int row = static_cast<int>(16 * (self->rank / kLanes % 4) + self->lane / 4);
  for (int byte = 0; byte < 2 * kDepth; byte += static_cast<int>(kPiece)) {
    for (int r = row; r < row + 16; r += 8) {
      race::access(element(p.a, r, byte), kPiece, race::Kind::kProxyRead, from);
    }
    for (int column = static_cast<int>(self->lane) % 4 * 2; column < kColumns; column += 8) {
      for (int e = 0; e < 2; ++e) {
        race::access(element(p.b, column + e, byte), kPiece, race::Kind::kProxyRead, from);
      }
    }
  }
}

// PTX ISA, "Register Fragments for wgmma.mma_async.m64nNk16": element 4q + 2h + e of lane l of warp w is row
// 16 w + l / 4 + 8 h, column 8 q + 2 (l % 4) + e.
void finish(const Product& p) {
  const int warp = static_cast<int>(self->rank / kLanes % 4), lane = static_cast<int>(self->lane);
  float a[2][kDepth];
  for (int h = 0; h < 2; ++h) {
    for (int k = 0; k < kDepth; ++k) a[h][k] = value(element(p.a, 16 * warp + lane / 4 + 8 * h, 2 * k), p.is_half);
  }
  for (int column = lane % 4 * 2; column < kColumns; column += 8) {
    for (int e = 0; e < 2; ++e) {
      float b[kDepth];
      for (int k = 0; k < kDepth; ++k) b[k] = value(element(p.b, column + e, 2 * k), p.is_half);
      for (int h = 0; h < 2; ++h) {
        const int i = column / 8 * 4 + 2 * h + e;
        float sum = !p.add ? 0.0f : p.follows ? *p.d[i] : p.before[i];
        for (int k = 0; k < kDepth; ++k) sum += a[h][k] * b[k];
        *p.d[i] = sum;
      }
    }
  }
}

}  // namespace

void new_threads() { pending.clear(); }

void end_of_thread() {
  const auto found = pending.find(self);
  if (found == pending.end()) return;
  if (!found->second.products.empty()) fail("the thread ends before its products are waited for");
  if (!found->second.copies.empty()) fail("the thread ends before its copies are waited for");
}

void cp_async_cg_shared_global(uint32_t target, const void* source, int bytes, int given) {
  if (bytes != kPiece) fail("cp.async.cg: copies 16 bytes, not %d", bytes);
  if (given < 0 || given > bytes) fail("cp.async.cg: gives %d of 16 bytes", given);
  if (target % kPiece != 0 || reinterpret_cast<uintptr_t>(source) % kPiece != 0) fail("cp.async.cg: not aligned");
  pending[self].copies.push_back({target, source, given});
  race::access(shared_pointer(target), kPiece, race::Kind::kWrite, __builtin_return_address(0));
}

void cp_async_wait_all() {
  for (const Copy& copy : pending[self].copies) {
    unsigned char* const at = shared_pointer(copy.target);
    race::access(at, kPiece, race::Kind::kWrite, __builtin_return_address(0));
    race::access(copy.source, static_cast<size_t>(copy.given), race::Kind::kRead, __builtin_return_address(0));
    memset(at, 0, kPiece);
    memcpy(at, copy.source, static_cast<size_t>(copy.given));
  }
  pending[self].copies.clear();
}

void fence_proxy_async_shared_cta() {
  ++self->proxy_fences;
  self->record = 0;
}

void wgmma_fence_sync_aligned(Place place) {
  align("wgmma.fence", 0, place);
  pending[self].fenced = true;
}

void multiply(const std::array<float*, 64>& d, uint64_t a, uint64_t b, bool add, int scale_a, int scale_b, int trans_a,
              int trans_b, bool is_half, Place place) {
  if (scale_a != 1 || scale_b != 1 || trans_a != 0 || trans_b != 0)
    fail("wgmma: only plain K-major operands are modelled");
  align("wgmma.mma_async", a * 3 + b * 5 + add, place);
  Pending& own = pending[self];
  // PTX ISA, "wgmma.fence": before the first product, and between any other access to the registers and a product.
  if (!own.fenced) fail("wgmma.mma_async without wgmma.fence since its registers were last used");
  Product product{d, {}, a, b, add, is_half, false, -1};
  for (const Product& other : own.products) product.follows |= other.d[0] == d[0];
  for (size_t i = 0; i < d.size(); ++i) {
    product.before[i] = *d[i];
    *d[i] = NAN;
  }
  own.products.push_back(product);
  note_reads(product, __builtin_return_address(0));
}

void wgmma_commit_group_sync_aligned(Place place) {
  align("wgmma.commit_group", 0, place);
  Pending& own = pending[self];
  for (Product& product : own.products) {
    if (product.group < 0) product.group = own.groups;
  }
  ++own.groups;
}

void wgmma_wait_group_sync_aligned(int most_pending, Place place) {
  align("wgmma.wait_group", static_cast<uint64_t>(most_pending), place);
  Pending& own = pending[self];
  std::vector<Product> left;
  for (const Product& product : own.products) {
    if (product.group < 0 || product.group >= own.groups - most_pending) {
      left.push_back(product);
      continue;
    }
    note_reads(product, __builtin_return_address(0));
    finish(product);
  }
  own.products.swap(left);
  own.fenced = false;
}

}  // namespace emulator::ptx
