#include "connection.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace load {
namespace {

enum : std::uint8_t { kData, kHeaders, kPriority, kReset_, kSettings, kPush, kPing, kGoaway, kWindow, kContinuation };
constexpr std::uint8_t kEndStream = 1, kAck = 1, kEndHeaders = 4, kPadded = 8, kHasPriority = 32;
constexpr std::size_t kRead = 512 << 10;
constexpr std::int64_t kReceiveWindow = 0x7FFFFFFF;

std::uint32_t number(std::string_view bytes) {
    const auto at = [&](std::size_t i) { return static_cast<std::uint32_t>(static_cast<unsigned char>(bytes[i])); };
    return at(0) << 24 | at(1) << 16 | at(2) << 8 | at(3);
}

std::string text(std::uint32_t value) {
    std::string bytes(4, '\0');
    for (int i = 0; i < 4; ++i) bytes[static_cast<std::size_t>(i)] = static_cast<char>(value >> (24 - 8 * i));
    return bytes;
}

nghttp2_nv field(std::string_view name, std::string_view value) {
    const auto bytes = [](std::string_view of) { return reinterpret_cast<std::uint8_t*>(const_cast<char*>(of.data())); };
    return {bytes(name), bytes(value), name.size(), value.size(), NGHTTP2_NV_FLAG_NONE};
}

// Without what padding and priority add.
std::string_view strip(std::string_view payload, std::uint8_t flags, bool headers) {
    std::size_t padding = 0;
    if ((flags & kPadded) != 0 && !payload.empty()) {
        padding = static_cast<unsigned char>(payload[0]);
        payload.remove_prefix(1);
    }
    if (headers && (flags & kHasPriority) != 0) payload.remove_prefix(std::min<std::size_t>(5, payload.size()));
    payload.remove_suffix(std::min(padding, payload.size()));
    return payload;
}

}  // namespace

Connection::Connection(const Call& call, std::unique_ptr<Socket> socket, Sink& sink)
    : call_(call), socket_(std::move(socket)), sink_(sink), slots_(64), in_(kRead + 64 * 1024) {
    if (nghttp2_hd_inflate_new(&inflater_) != 0) throw std::runtime_error("no HPACK decoder");
    const std::string_view preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    out_.assign(preface.begin(), preface.end());
    put(kSettings, 0, 0, std::string("\0\2", 2) + text(0) + std::string("\0\4", 2) + text(kReceiveWindow));
    put(kWindow, 0, 0, text(kReceiveWindow - 65535));
}

Connection::~Connection() {
    if (inflater_ != nullptr) nghttp2_hd_inflate_del(inflater_);
    if (deflater_ != nullptr) nghttp2_hd_deflate_del(deflater_);
}

void Connection::put(std::uint8_t type, std::uint8_t flags, std::uint32_t stream, std::string_view payload) {
    const std::size_t at = out_.size(), size = payload.size();
    out_.resize(at + 9 + size);
    char* to = out_.data() + at;
    to[0] = static_cast<char>(size >> 16);
    to[1] = static_cast<char>(size >> 8);
    to[2] = static_cast<char>(size);
    to[3] = static_cast<char>(type);
    to[4] = static_cast<char>(flags);
    for (int i = 0; i < 4; ++i) to[5 + i] = static_cast<char>(stream >> (24 - 8 * i));
    std::memcpy(to + 9, payload.data(), size);
}

// The header blocks of requests: the first fills the server's HPACK table, and from the second on all are equal.
void Connection::prepare() {
    if (nghttp2_hd_deflate_new(&deflater_, std::min<std::size_t>(table_size_, 4096)) != 0)
        throw std::runtime_error("no HPACK encoder");
    std::vector<nghttp2_nv> fields = {field(":method", "POST"),          field(":scheme", call_.scheme),
                                      field(":path", call_.path),        field(":authority", call_.authority),
                                      field("te", "trailers"),           field("content-type", "application/grpc"),
                                      field("user-agent", "trimtab-load")};
    if (!call_.timeout.empty()) fields.push_back(field("grpc-timeout", call_.timeout));
    const auto encode = [&] {
        std::string block(nghttp2_hd_deflate_bound(deflater_, fields.data(), fields.size()), '\0');
        const auto size = nghttp2_hd_deflate_hd(deflater_, reinterpret_cast<std::uint8_t*>(block.data()), block.size(),
                                                fields.data(), fields.size());
        if (size < 0) throw std::runtime_error("HPACK encoding failed");
        block.resize(static_cast<std::size_t>(size));
        return block;
    };
    first_headers_ = encode();
    headers_ = encode();
    if (encode() != headers_) throw std::runtime_error("HPACK encoding did not settle");
}

// --- requests

Connection::Slot& Connection::claim(std::uint32_t stream) {
    while (true) {
        Slot& slot = slots_[(stream >> 1) & (slots_.size() - 1)];
        if (slot.stream == 0) return slot;
        std::vector<Slot> wider(slots_.size() * 2);
        for (Slot& each : slots_)
            if (each.stream != 0) wider[(each.stream >> 1) & (wider.size() - 1)] = std::move(each);
        slots_.swap(wider);
    }
}

Connection::Slot* Connection::find(std::uint32_t stream) {
    Slot& slot = slots_[(stream >> 1) & (slots_.size() - 1)];
    return slot.stream == stream && stream != 0 ? &slot : nullptr;
}

void Connection::submit(std::int64_t start, bool keep) {
    const std::uint32_t stream = next_stream_;
    Slot& slot = claim(stream);
    slot.start = start;
    slot.stream = stream;
    slot.received = 0;
    slot.window = initial_window_;
    slot.sent = 0;
    slot.status = kNoStatus;
    slot.keep = keep;
    slot.message.clear();
    put(kHeaders, kEndHeaders, stream, stream == 1 ? first_headers_ : headers_);
    next_stream_ += 2;
    if (next_stream_ > 0x7FFFFFF0U) going_ = true;
    ++under_way_;
    send_rest(slot);
}

void Connection::send_rest(Slot& slot) {
    const std::string& message = call_.message;
    while (slot.sent < message.size()) {
        const std::int64_t windows = std::min(send_window_, slot.window);
        if (windows <= 0) {
            blocked_.push_back(slot.stream);
            return;
        }
        const std::size_t size =
            std::min({message.size() - slot.sent, most_frame_, static_cast<std::size_t>(windows)});
        const bool last = slot.sent + size == message.size();
        put(kData, last ? kEndStream : 0, slot.stream, std::string_view(message).substr(slot.sent, size));
        slot.sent += size;
        slot.window -= static_cast<std::int64_t>(size);
        send_window_ -= static_cast<std::int64_t>(size);
    }
}

void Connection::resume() {
    for (std::size_t left = blocked_.size(); left > 0 && send_window_ > 0; --left) {
        const std::uint32_t stream = blocked_.front();
        blocked_.pop_front();
        if (Slot* slot = find(stream)) send_rest(*slot);
    }
}

bool Connection::flush() {
    while (out_start_ < out_.size()) {
        const long sent = socket_->write(out_.data() + out_start_, out_.size() - out_start_);
        if (sent <= 0) return false;  // a lost connection is noticed by reading
        out_start_ += static_cast<std::size_t>(sent);
    }
    out_.clear();
    out_start_ = 0;
    return true;
}

// --- answers

bool Connection::read() {
    const long got = socket_->read(in_.data() + in_size_, in_.size() - in_size_);
    if (got < 0) {
        abandon();
        return false;
    }
    in_size_ += static_cast<std::size_t>(got);
    std::size_t at = 0;
    while (in_size_ - at >= 9) {
        const auto* head = reinterpret_cast<const unsigned char*>(in_.data() + at);
        const std::size_t size = static_cast<std::size_t>(head[0]) << 16 | static_cast<std::size_t>(head[1]) << 8 | head[2];
        if (in_size_ - at < 9 + size) break;
        const std::uint32_t stream = number({in_.data() + at + 5, 4}) & 0x7FFFFFFFU;
        on_frame(head[3], head[4], stream, {in_.data() + at + 9, size});
        at += 9 + size;
    }
    std::memmove(in_.data(), in_.data() + at, in_size_ - at);
    in_size_ -= at;
    if (consumed_ > kReceiveWindow / 2) {
        put(kWindow, 0, 0, text(static_cast<std::uint32_t>(consumed_)));
        consumed_ = 0;
    }
    return true;
}

void Connection::abandon() {
    open_ = false;
    for (std::size_t i = 0; i < slots_.size(); ++i) {
        if (slots_[i].stream == 0) continue;
        slots_[i].status = kLost;
        finish(slots_[i]);
    }
}

void Connection::on_frame(std::uint8_t type, std::uint8_t flags, std::uint32_t stream, std::string_view payload) {
    Slot* slot = find(stream);
    switch (type) {
        case kData:
            consumed_ += static_cast<std::int64_t>(payload.size());
            on_data(slot, strip(payload, flags, false));
            if ((flags & kEndStream) != 0 && slot != nullptr) finish(*slot);
            break;
        case kHeaders:
        case kContinuation: {
            std::string_view block = type == kHeaders ? strip(payload, flags, true) : payload;
            if (type == kHeaders) {
                block_.clear();
                block_stream_ = stream;
                block_flags_ = flags;
            }
            if (type == kContinuation || (flags & kEndHeaders) == 0) {
                block_.append(block);
                if ((flags & kEndHeaders) == 0) break;
                block = block_;
                slot = find(block_stream_);
            }
            const int status = decode(block);
            if (slot == nullptr) break;
            if (status != kNoStatus) slot->status = status;
            if ((block_flags_ & kEndStream) != 0) finish(*slot);
            break;
        }
        case kReset_:
            if (slot == nullptr) break;
            if (slot->status == kNoStatus) slot->status = kReset;
            finish(*slot);
            break;
        case kSettings:
            if ((flags & kAck) == 0) on_settings(payload);
            break;
        case kPing:
            if ((flags & kAck) == 0) put(kPing, kAck, 0, payload);
            break;
        case kGoaway: going_ = true; break;
        case kWindow:
            if (payload.size() == 4) on_window(stream, number(payload) & 0x7FFFFFFFU);
            break;
        default: break;
    }
}

void Connection::on_data(Slot* slot, std::string_view payload) {
    if (slot == nullptr) return;
    slot->received += static_cast<std::uint32_t>(payload.size());
    if (slot->keep) slot->message.append(payload);
}

void Connection::on_settings(std::string_view payload) {
    for (; payload.size() >= 6; payload.remove_prefix(6)) {
        const std::uint32_t value = number(payload.substr(2));
        if (payload[0] != 0) continue;  // an extension's
        switch (static_cast<unsigned char>(payload[1])) {
            case 1: table_size_ = value; break;
            case 3: most_streams_ = value; break;
            case 4:
                for (Slot& slot : slots_)
                    if (slot.stream != 0) slot.window += static_cast<std::int64_t>(value) - initial_window_;
                initial_window_ = value;
                break;
            case 5: most_frame_ = value; break;
            default: break;
        }
    }
    put(kSettings, kAck, 0, {});
    if (!ready_) prepare();
    ready_ = true;
    resume();
}

void Connection::on_window(std::uint32_t stream, std::uint32_t increment) {
    if (stream == 0)
        send_window_ += increment;
    else if (Slot* slot = find(stream))
        slot->window += increment;
    if (!blocked_.empty()) resume();
}

// The gRPC status in a header block; kNoStatus where there is none.
int Connection::decode(std::string_view block) {
    for (const Block& known : known_)
        if (known.table == table_ && known.bytes == block) return known.status;
    // One byte per field, each the index of a name and value: decoding it changes nothing.
    const bool indexed = std::all_of(block.begin(), block.end(), [](char each) {
        const auto byte = static_cast<unsigned char>(each);
        return byte >= 0x80 && byte != 0xFF;
    });
    const int status = inflate(block);
    if (!indexed) {
        ++table_;
    } else if (status == kNoStatus || status == 0) {
        known_[next_known_++ % known_.size()] = {std::string(block), status, table_};
    }
    return status;
}

int Connection::inflate(std::string_view block) {
    auto* at = reinterpret_cast<std::uint8_t*>(const_cast<char*>(block.data()));
    std::size_t left = block.size();
    int status = kNoStatus;
    while (true) {
        nghttp2_nv nv{};
        int flags = 0;
        const auto used = nghttp2_hd_inflate_hd2(inflater_, &nv, &flags, at, left, 1);
        if (used < 0) throw std::runtime_error("the server's headers cannot be decoded");
        at += used;
        left -= static_cast<std::size_t>(used);
        if ((flags & NGHTTP2_HD_INFLATE_EMIT) != 0) {
            const std::string name(reinterpret_cast<char*>(nv.name), nv.namelen);
            const std::string value(reinterpret_cast<char*>(nv.value), nv.valuelen);
            if (name == "grpc-status") status = std::stoi(value);
            if (name == ":status" && value != "200") status = kHttpError;
            if (name == "grpc-message" && refusal_.empty()) refusal_ = value;
        }
        if ((flags & NGHTTP2_HD_INFLATE_FINAL) != 0) break;
        if ((flags & NGHTTP2_HD_INFLATE_EMIT) == 0 && left == 0) break;
    }
    nghttp2_hd_inflate_end_headers(inflater_);
    return status;
}

void Connection::finish(Slot& slot) {
    --under_way_;
    slot.stream = 0;
    if (!slot.keep) {
        sink_.answered(*this, slot.start, slot.status, slot.received, {}, false);
        return;
    }
    // The sink may submit, which moves slots.
    const std::string message = std::move(slot.message);
    sink_.answered(*this, slot.start, slot.status, slot.received, message, true);
}

}  // namespace load
