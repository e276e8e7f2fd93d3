// What the engine tells the race checker: who has met whom. Nothing where there is none.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "engine.h"

namespace emulator::race {

enum class Kind { kRead, kWrite, kAtomic, kProxyRead };

#if defined(EMULATOR_RACE)
void new_launch();
void new_arena(unsigned char* arena, size_t bytes);        // all of it is out of bounds
void new_variable(unsigned char* variable, size_t bytes);  // nobody has written it
void meet_block(Thread* const* threads, unsigned count);
void meet_warp(Warp& warp, unsigned lanes);
void access(const void* pointer, size_t bytes, Kind kind, const void* from);
std::string report();  // what was found since the launch began
#else
inline void new_launch() {}
inline void new_arena(unsigned char*, size_t) {}
inline void new_variable(unsigned char*, size_t) {}
inline void meet_block(Thread* const*, unsigned) {}
inline void meet_warp(Warp&, unsigned) {}
inline void access(const void*, size_t, Kind, const void*) {}
inline std::string report() { return {}; }
#endif

}  // namespace emulator::race
