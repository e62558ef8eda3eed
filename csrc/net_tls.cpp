#include "net_tls.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "clock.h"
#include "net_tls_identity.h"

namespace trimtab {
namespace {

constexpr std::int64_t kLookEvery = 1'000'000'000;
constexpr std::size_t kReadAhead = 64 << 10;  // several records with one system call
constexpr const char* kCiphers =
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:"
    "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305";

std::string last_error() {
    const unsigned long code = ERR_peek_last_error();
    const char* reason = code != 0 ? ERR_reason_error_string(code) : nullptr;
    return reason != nullptr ? reason : "unknown TLS error";
}

[[noreturn]] void refuse(const std::string& what) {
    const std::string reason = last_error();
    ERR_clear_error();
    throw std::runtime_error(what + ": " + reason);
}

// --- sockets as OpenSSL wants them: its own would raise SIGPIPE

Descriptor& socket_of(BIO* bio) { return *static_cast<Descriptor*>(BIO_get_data(bio)); }

int finish(BIO* bio, ssize_t count, int retry_flag) {
    if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) BIO_set_flags(bio, retry_flag);
    return static_cast<int>(count);
}

int bio_write(BIO* bio, const char* data, int size) {
    BIO_clear_retry_flags(bio);
    const ssize_t count = ::send(socket_of(bio).get(), data, static_cast<std::size_t>(size), MSG_NOSIGNAL);
    return finish(bio, count, BIO_FLAGS_WRITE | BIO_FLAGS_SHOULD_RETRY);
}

int bio_read(BIO* bio, char* data, int size) {
    BIO_clear_retry_flags(bio);
    const ssize_t count = ::recv(socket_of(bio).get(), data, static_cast<std::size_t>(size), 0);
    if (count == 0) BIO_set_flags(bio, BIO_FLAGS_IN_EOF);
    return finish(bio, count, BIO_FLAGS_READ | BIO_FLAGS_SHOULD_RETRY);
}

long bio_control(BIO* bio, int command, long, void*) {
    if (command == BIO_CTRL_EOF) return BIO_test_flags(bio, BIO_FLAGS_IN_EOF) != 0 ? 1 : 0;
    return command == BIO_CTRL_FLUSH ? 1 : 0;
}

BIO_METHOD* socket_method() {
    static BIO_METHOD* const method = [] {
        BIO_METHOD* made = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "trimtab socket");
        if (made == nullptr) throw std::bad_alloc();
        BIO_meth_set_write(made, &bio_write);
        BIO_meth_set_read(made, &bio_read);
        BIO_meth_set_ctrl(made, &bio_control);
        return made;
    }();
    return method;
}

// --- contexts

int choose_protocol(SSL*, const unsigned char** chosen, unsigned char* size, const unsigned char* offered,
                    unsigned int offered_size, void*) {
    for (unsigned int i = 0; i < offered_size; i += 1U + offered[i]) {
        if (offered[i] == 2 && i + 3 <= offered_size && offered[i + 1] == 'h' && offered[i + 2] == '2') {
            *chosen = offered + i + 1;
            *size = 2;
            return SSL_TLSEXT_ERR_OK;
        }
    }
    return SSL_TLSEXT_ERR_ALERT_FATAL;
}

int no_password(char*, int, int, void*) { return 0; }

TlsContext make_context(const TlsFiles& files) {
    ERR_clear_error();
    TlsContext made(SSL_CTX_new(TLS_server_method()), &SSL_CTX_free);
    SSL_CTX* context = made.get();
    if (context == nullptr) throw std::bad_alloc();
    SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION);
    SSL_CTX_set_options(context, SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION | SSL_OP_CIPHER_SERVER_PREFERENCE |
                                     SSL_OP_PRIORITIZE_CHACHA | SSL_OP_NO_QUERY_MTU);
    // Buffers go when they are empty: idle connections are many.
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                                  SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_read_ahead(context, 1);
    SSL_CTX_set_default_read_buffer_len(context, kReadAhead);
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_alpn_select_cb(context, &choose_protocol, nullptr);
    SSL_CTX_set_default_passwd_cb(context, &no_password);
    constexpr unsigned char name[] = "trimtab";
    if (SSL_CTX_set_cipher_list(context, kCiphers) != 1 ||
        SSL_CTX_set_session_id_context(context, name, sizeof(name) - 1) != 1)
        refuse("TLS cannot be set up");
    if (SSL_CTX_use_certificate_chain_file(context, files.certificate.c_str()) != 1)
        refuse("certificate " + files.certificate);
    if (SSL_CTX_use_PrivateKey_file(context, files.key.c_str(), SSL_FILETYPE_PEM) != 1) refuse("key " + files.key);
    if (SSL_CTX_check_private_key(context) != 1) refuse("key " + files.key + " is not that of " + files.certificate);
    if (!files.client_ca.empty()) {
        STACK_OF(X509_NAME)* names = SSL_load_client_CA_file(files.client_ca.c_str());
        if (names == nullptr || SSL_CTX_load_verify_locations(context, files.client_ca.c_str(), nullptr) != 1) {
            sk_X509_NAME_pop_free(names, &X509_NAME_free);
            refuse("client CA " + files.client_ca);
        }
        SSL_CTX_set_client_CA_list(context, names);  // takes them
        SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
    }
    return made;
}

// Changes when a file is written or replaced.
std::string stamp_of(const TlsFiles& files) {
    std::string stamp;
    for (const std::string* path : {&files.certificate, &files.key, &files.client_ca}) {
        struct stat status {};
        if (path->empty() || ::stat(path->c_str(), &status) != 0) continue;
        stamp += std::to_string(status.st_mtim.tv_sec) + "." + std::to_string(status.st_mtim.tv_nsec) + ":" +
                 std::to_string(status.st_ino) + ":" + std::to_string(status.st_size) + ";";
    }
    return stamp;
}

}  // namespace

// --- the factory

TlsFactory::TlsFactory(TlsFiles files)
    : files_(std::move(files)), context_(make_context(files_)), stamp_(stamp_of(files_)), looked_(monotonic_ns()) {}

std::unique_ptr<NetStream> TlsFactory::make(Descriptor socket) {
    return std::make_unique<TlsStream>(std::move(socket), context());
}

std::string TlsFactory::reload_error() const {
    const std::lock_guard lock(mutex_);
    return reload_error_;
}

TlsContext TlsFactory::context() {
    const std::lock_guard lock(mutex_);
    const std::int64_t now = monotonic_ns();
    if (now - looked_ < kLookEvery) return context_;
    looked_ = now;
    std::string stamp = stamp_of(files_);
    if (stamp == stamp_) return context_;
    try {
        context_ = make_context(files_);
        stamp_ = std::move(stamp);
        reload_error_.clear();
    } catch (const std::exception& error) {
        reload_error_ = error.what();  // and tried again in a second
    }
    return context_;
}

// --- a stream

TlsStream::TlsStream(Descriptor socket, TlsContext context)
    : socket_(std::move(socket)), context_(std::move(context)), ssl_(SSL_new(context_.get())) {
    BIO* bio = ssl_ != nullptr ? BIO_new(socket_method()) : nullptr;
    if (bio == nullptr) {
        SSL_free(ssl_);
        throw std::bad_alloc();
    }
    BIO_set_data(bio, &socket_);
    BIO_set_init(bio, 1);
    SSL_set_bio(ssl_, bio, bio);  // takes it
    SSL_set_accept_state(ssl_);
}

TlsStream::~TlsStream() { SSL_free(ssl_); }

IoState TlsStream::fail(std::string reason) {
    broken_ = true;
    error_ = std::move(reason);
    return IoState::failed;
}

IoState TlsStream::state_of(int result) {
    switch (SSL_get_error(ssl_, result)) {
        case SSL_ERROR_WANT_READ:
        case SSL_ERROR_WANT_WRITE: return IoState::again;
        case SSL_ERROR_ZERO_RETURN: return IoState::closed;
        case SSL_ERROR_SYSCALL: {
            const int number = errno;
            const bool queued = ERR_peek_last_error() != 0;
            return fail(queued ? last_error() : number != 0 ? std::strerror(number) : "the peer went away");
        }
        default: return fail(last_error());
    }
}

IoState TlsStream::handshake() {
    if (broken_) return IoState::failed;
    ERR_clear_error();
    errno = 0;
    const int result = SSL_do_handshake(ssl_);
    if (result != 1) {
        const IoState state = state_of(result);
        return state == IoState::closed ? fail("the peer left during the handshake") : state;
    }
    // Clients that name no protocol at all are not asked by choose_protocol.
    const unsigned char* protocol = nullptr;
    unsigned int size = 0;
    SSL_get0_alpn_selected(ssl_, &protocol, &size);
    if (size == 0) return fail("the client does not offer HTTP/2 (ALPN)");
    identity_ = identity_of(*ssl_);
    return IoState::done;
}

IoResult TlsStream::read(std::span<std::uint8_t> buffer) {
    std::size_t filled = 0;
    if (broken_) return {0, IoState::failed};
    while (filled < buffer.size()) {  // a record, at most 16 KiB, at a time
        ERR_clear_error();
        errno = 0;
        std::size_t count = 0;
        const int result = SSL_read_ex(ssl_, buffer.data() + filled, buffer.size() - filled, &count);
        filled += count;
        if (result != 1) return {filled, state_of(result)};
    }
    return {filled, IoState::done};
}

IoResult TlsStream::write(std::span<const std::uint8_t> bytes) {
    std::size_t taken = 0;
    if (broken_) return {0, IoState::failed};
    while (taken < bytes.size()) {
        ERR_clear_error();
        errno = 0;
        std::size_t count = 0;
        const int result = SSL_write_ex(ssl_, bytes.data() + taken, bytes.size() - taken, &count);
        taken += count;
        if (result != 1) return {taken, state_of(result)};
    }
    return {taken, IoState::done};
}

void TlsStream::shutdown() {
    if (!broken_ && SSL_is_init_finished(ssl_) != 0) {
        ERR_clear_error();
        SSL_shutdown(ssl_);
        ERR_clear_error();
    }
    ::shutdown(socket_.get(), SHUT_WR);
}

}  // namespace trimtab
