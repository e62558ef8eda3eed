// A front for targets that need one: it listens on a Unix socket of the abstract namespace, and offers an echo of each
// kind, hot ones and ones that a thread answers as Python would.
#pragma once

#include <sys/socket.h>

#include <atomic>
#include <memory>
#include <string>
#include <thread>

#include "front.h"

namespace trimtab {

class FrontBed {
  public:
    FrontBed(std::size_t threads, const FrontLimits& limits);
    ~FrontBed();

    Descriptor connect() const;  // blocking
    Front& front() { return front_; }

  private:
    void serve();  // what Python does: takes events, echoes messages
    void handle(const Event& event, std::vector<Command>& commands);

    Front front_;
    std::string name_;
    std::atomic<bool> stop_{false};
    std::thread server_;
};

// A client's preface, settings, and headers of one call of a path with these as further fields, all as literals.
std::string http2_preface();
std::string http2_frame(unsigned type, unsigned flags, unsigned stream, const std::string& payload);
std::string http2_headers(unsigned stream, const std::string& path, bool end,
                          const std::vector<std::pair<std::string, std::string>>& more = {});
std::string grpc_message(const std::string& body, char flag = 0);

}  // namespace trimtab
