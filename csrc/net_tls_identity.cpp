#include "net_tls_identity.h"

#include <arpa/inet.h>
#include <openssl/bio.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <array>
#include <memory>
#include <string>
#include <vector>

namespace trimtab {
namespace {

std::string text_of(const ASN1_STRING* text) {
    unsigned char* utf8 = nullptr;
    const int size = ASN1_STRING_to_UTF8(&utf8, text);
    if (size < 0) return {};
    const std::unique_ptr<unsigned char, void (*)(unsigned char*)> held(utf8, [](unsigned char* p) { OPENSSL_free(p); });
    return {reinterpret_cast<const char*>(utf8), static_cast<std::size_t>(size)};
}

std::string common_name(const X509& certificate) {
    const X509_NAME* subject = X509_get_subject_name(&certificate);
    const int place = X509_NAME_get_index_by_NID(subject, NID_commonName, -1);
    return place < 0 ? "" : text_of(X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, place)));
}

std::string address_of(const ASN1_OCTET_STRING& bytes) {
    std::array<char, INET6_ADDRSTRLEN> text{};
    const int size = ASN1_STRING_length(&bytes);
    if (size != 4 && size != 16) return {};
    inet_ntop(size == 4 ? AF_INET : AF_INET6, ASN1_STRING_get0_data(&bytes), text.data(), text.size());
    return text.data();
}

std::vector<std::string> alternative_names(const X509& certificate) {
    std::vector<std::string> result;
    auto* names = static_cast<GENERAL_NAMES*>(X509_get_ext_d2i(&certificate, NID_subject_alt_name, nullptr, nullptr));
    for (int i = 0; i < sk_GENERAL_NAME_num(names); ++i) {
        int type = 0;
        const void* value = GENERAL_NAME_get0_value(sk_GENERAL_NAME_value(names, i), &type);
        std::string name;
        if (type == GEN_DNS || type == GEN_EMAIL || type == GEN_URI) {
            name = text_of(static_cast<const ASN1_STRING*>(value));
        } else if (type == GEN_IPADD) {
            name = address_of(*static_cast<const ASN1_OCTET_STRING*>(value));
        }
        if (!name.empty()) result.push_back(std::move(name));
    }
    GENERAL_NAMES_free(names);
    return result;
}

std::string pem_of(X509& certificate) {
    const std::unique_ptr<BIO, void (*)(BIO*)> memory(BIO_new(BIO_s_mem()), &BIO_free_all);
    if (memory == nullptr || PEM_write_bio_X509(memory.get(), &certificate) != 1) return {};
    char* data = nullptr;
    const long size = BIO_get_mem_data(memory.get(), &data);
    return {data, static_cast<std::size_t>(size)};
}

}  // namespace

PeerIdentity identity_of(const SSL& connection) {
    PeerIdentity identity;
    identity.properties.emplace_back("transport_security_type", std::vector<std::string>{"ssl"});
    X509* certificate = SSL_get0_peer_certificate(&connection);
    if (certificate == nullptr || SSL_get_verify_result(&connection) != X509_V_OK) return identity;
    identity.properties.emplace_back("x509_common_name", std::vector<std::string>{common_name(*certificate)});
    identity.properties.emplace_back("x509_subject_alternative_name", alternative_names(*certificate));
    identity.properties.emplace_back("x509_pem_cert", std::vector<std::string>{pem_of(*certificate)});
    return identity;
}

}  // namespace trimtab
