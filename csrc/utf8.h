// UTF-8 as protobuf and Arrow want it: no overlong forms, no surrogates, nothing past U+10FFFF; NUL is a character.
#pragma once

#include <string_view>

namespace trimtab {

bool is_utf8(std::string_view text) noexcept;

}  // namespace trimtab
