#include "front_call.h"

namespace trimtab {

void Call::reset() {
    connection = nullptr;
    local = nullptr;
    stream = 0;
    id = 0;
    post = grpc = timed = bad_timeout = bad_te = bad_metadata = gzip_in = gzip_out = false;
    compressed = mirror_gzip = half_closed = counted = handed_over = withdrawn = false;
    responded = gzip_sent = plain = deferred = finishing = finished = false;
    compression = Compression::mirror;
    header_bytes = 0;
    timeout = 0;
    deadline = kNever;
    prefix_bytes = 0;
    length = 0;
    came = came_before = 0;
    charged = message_charged = unread = withheld = 0;
    status = StatusCode::ok;
    out_offset = out_bytes = 0;
    sent_bytes = sent_told = 0;
    for (std::string* text : {&encoding, &path, &traceparent, &message}) text->clear();
    for (Metadata* fields : {&metadata, &initial, &trailing}) fields->clear();
}

}  // namespace trimtab
