// What a fuzz target is: any bytes give an answer or an error, never a crash, an over-read or a leak.
//
// Each target is one file, linked either with libFuzzer, which searches, or with driver.cpp, which runs a fixed number of
// mutations of the seeds, the same ones every time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

// Inputs that go deep; the driver mutates them.
std::vector<std::string> fuzz_seeds();
