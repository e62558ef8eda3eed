// Who is at the other end of a TLS connection, in the words of grpc's auth_context().
#pragma once

#include <openssl/ssl.h>

#include "net_stream.h"

namespace trimtab {

// After the handshake. The certificate's part is there only if the client showed one, and it was verified.
PeerIdentity identity_of(const SSL& connection);

}  // namespace trimtab
