// Package keyaddr makes names and addresses of public keys: what a self-made key, an identity without a CA, is
// called and where it is looked up.
//
// All of them are made of the same bytes, the key's own:
//
//   - P-256: the uncompressed point (SEC 1, section 2.3.3), 65 bytes: 0x04, X, Y. This is also what VAPID and
//     Web Push send (RFC 8292, section 3.2; RFC 8291, section 3.1).
//   - Ed25519: the public key (RFC 8032, section 5.1.2), 32 bytes.
//   - RSA, for addresses only: the PKCS #1 RSAPublicKey in DER (RFC 8017, appendix A.1.1).
//
// An address or a NodeID is an index and no proof. V1 and NodeID hold 64 bits that are raw bytes of the key, and
// whoever makes keys until one fits finds another key with the same; V2 holds 120 bits. Look a key up by its
// address, then compare the whole key, or its Digest, before anything is allowed.
package keyaddr
