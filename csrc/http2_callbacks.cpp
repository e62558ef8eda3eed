#include "http2_callbacks.h"

#include <array>
#include <cstddef>
#include <exception>
#include <new>
#include <string_view>

#include "front_thread.h"
#include "http2_connection.h"

namespace trimtab {

class Http2Callbacks {
  public:
    static int on_begin_headers(nghttp2_session* session, const nghttp2_frame* frame, void* user) {
        if (frame->headers.cat != NGHTTP2_HCAT_REQUEST) return 0;  // trailers
        return guarded([&] {
            Call& call = of(user).begin_call(frame->hd.stream_id);
            nghttp2_session_set_stream_user_data(session, frame->hd.stream_id, &call);
        });
    }

    static int on_header(nghttp2_session*, const nghttp2_frame* frame, const std::uint8_t* name, std::size_t name_size,
                         const std::uint8_t* value, std::size_t value_size, std::uint8_t, void* user) {
        if (frame->headers.cat != NGHTTP2_HCAT_REQUEST) return 0;
        Call* call = of(user).call_of(frame->hd.stream_id);
        if (call == nullptr) return 0;
        return guarded([&] {
            of(user).on_header(*call, {reinterpret_cast<const char*>(name), name_size},
                               {reinterpret_cast<const char*>(value), value_size});
        });
    }

    static int on_frame(nghttp2_session*, const nghttp2_frame* frame, void* user) {
        Connection& connection = of(user);
        switch (frame->hd.type) {
            case NGHTTP2_HEADERS:
            case NGHTTP2_DATA: {
                Call* call = connection.call_of(frame->hd.stream_id);
                if (call == nullptr) return 0;
                if (frame->hd.type == NGHTTP2_DATA) connection.used_ += frame->data.padlen;
                const bool last = (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) != 0;
                call->half_closed = last;
                return guarded([&] {
                    if (frame->hd.type == NGHTTP2_HEADERS && frame->headers.cat == NGHTTP2_HCAT_REQUEST)
                        connection.on_headers(*call);
                    if (last) connection.on_half_closed(*call);
                });
            }
            case NGHTTP2_PING:
                if ((frame->hd.flags & NGHTTP2_FLAG_ACK) != 0 && connection.draining_) connection.last_goaway();
                return 0;
            default: return 0;
        }
    }

    static int on_data(nghttp2_session*, std::uint8_t, std::int32_t stream, const std::uint8_t* data, std::size_t size,
                       void* user) {
        Connection& connection = of(user);
        connection.received_ += size;
        Call* call = connection.call_of(stream);
        if (call == nullptr) return 0;
        connection.used_ += size;
        return guarded([&] { connection.on_data(*call, {data, size}); });
    }

    static int on_close(nghttp2_session*, std::int32_t stream, std::uint32_t, void* user) {
        Call* call = of(user).call_of(stream);
        if (call != nullptr) of(user).close_call(*call);
        return 0;
    }

    static ssize_t on_pull(nghttp2_session*, std::int32_t, std::uint8_t*, std::size_t length, std::uint32_t* flags,
                           nghttp2_data_source* source, void* user) {
        ssize_t bytes = 0;
        const int failed = guarded([&] { bytes = of(user).on_pull(*static_cast<Call*>(source->ptr), length, *flags); });
        return failed != 0 ? failed : bytes;
    }

    static int on_pulled(nghttp2_session*, nghttp2_frame*, const std::uint8_t* header, std::size_t length,
                         nghttp2_data_source* source, void* user) {
        return guarded([&] { of(user).on_pulled(*static_cast<Call*>(source->ptr), {header, 9}, length); });
    }

  private:
    // No exception may pass through nghttp2: what has no memory loses its connection.
    template <class Work>
    static int guarded(Work&& work) noexcept {
        try {
            work();
            return 0;
        } catch (const std::exception&) {
            return NGHTTP2_ERR_CALLBACK_FAILURE;
        }
    }
    static Connection& of(void* user) { return *static_cast<Connection*>(user); }
};

ssize_t pull_data(nghttp2_session* session, std::int32_t stream, std::uint8_t* buffer, std::size_t length,
                  std::uint32_t* flags, nghttp2_data_source* source, void* user) {
    return Http2Callbacks::on_pull(session, stream, buffer, length, flags, source, user);
}

namespace {

nghttp2_session_callbacks* make_callbacks() {
    nghttp2_session_callbacks* callbacks = nullptr;
    if (nghttp2_session_callbacks_new(&callbacks) != 0) throw std::bad_alloc();
    nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, &Http2Callbacks::on_begin_headers);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, &Http2Callbacks::on_header);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, &Http2Callbacks::on_frame);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, &Http2Callbacks::on_data);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, &Http2Callbacks::on_close);
    nghttp2_session_callbacks_set_send_data_callback(callbacks, &Http2Callbacks::on_pulled);
    return callbacks;
}

struct Callbacks {
    nghttp2_session_callbacks* held = make_callbacks();
    Callbacks() = default;
    Callbacks(const Callbacks&) = delete;
    Callbacks& operator=(const Callbacks&) = delete;
    ~Callbacks() { nghttp2_session_callbacks_del(held); }
};

struct Option {
    nghttp2_option* held = nullptr;
    Option() {
        if (nghttp2_option_new(&held) != 0) throw std::bad_alloc();
    }
    Option(const Option&) = delete;
    Option& operator=(const Option&) = delete;
    ~Option() { nghttp2_option_del(held); }
};

}  // namespace

nghttp2_session* new_session(Connection& connection, const FrontLimits& limits, Http2Memory& memory) {
    static const Callbacks callbacks;
    const Option option;
    nghttp2_option_set_no_auto_window_update(option.held, 1);
    nghttp2_option_set_no_closed_streams(option.held, 1);
    // Names and values are checked where they are used: Connection::on_header.
    nghttp2_option_set_no_http_messaging(option.held, 1);
    // The meter counts resets, with a bound of its own.
    nghttp2_option_set_stream_reset_rate_limit(option.held, static_cast<std::uint64_t>(limits.reset_burst) + 1,
                                               static_cast<std::uint64_t>(limits.resets_per_second) + 1);
    nghttp2_session* session = nullptr;
    nghttp2_mem functions = memory.functions();
    if (nghttp2_session_server_new3(&session, callbacks.held, &connection, option.held, &functions) != 0)
        throw std::bad_alloc();
    const std::array<nghttp2_settings_entry, 4> settings{{
        {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, static_cast<std::uint32_t>(limits.streams)},
        {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, static_cast<std::uint32_t>(limits.stream_window)},
        {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, static_cast<std::uint32_t>(limits.header_bytes)},
        {NGHTTP2_SETTINGS_NO_RFC7540_PRIORITIES, 1},
    }};
    nghttp2_submit_settings(session, NGHTTP2_FLAG_NONE, settings.data(), settings.size());
    nghttp2_session_set_local_window_size(session, NGHTTP2_FLAG_NONE, 0,
                                          static_cast<std::int32_t>(limits.connection_window));
    return session;
}

}  // namespace trimtab
