// A target that answers every message with itself, at once: for tests, and as the speed of the front alone.
#pragma once

#include <memory>

#include "hot_request.h"

namespace trimtab {

class EchoTarget final : public HotTarget {
  public:
    std::unique_ptr<HotRequest> make() override { return std::make_unique<HotRequest>(); }
    void submit(HotRequest* request) noexcept override {
        request->answer.swap(request->body);
        request->status = StatusCode::ok;
        request->origin->deliver({&request, 1});
    }
    void flush() noexcept override {}
    void cancel(HotRequest*, StatusCode) noexcept override {}
};

}  // namespace trimtab
