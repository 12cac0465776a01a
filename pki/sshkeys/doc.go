// Package sshkeys reads SSH keys as identities: who may come in (authorized_keys), which host is which (known_hosts), and
// certificates that name a SPIFFE ID. The same authorized_keys serves SSH, and by Pins self-signed certificates of TLS and
// JWTs. Nothing is dialled and no name is looked up.
//
// Both files are lists of restrictions, so nothing in them is skipped: an option, marker or key that is not understood is
// an error with its line, where sshd and ssh pass over the line and knownhosts.New of x/crypto ends at the first one. All
// bad lines are reported at once, each as a *LineError. A file is bounded by MaxFileBytes, MaxLines and MaxLineBytes.
//
// Keys are Ed25519, ECDSA (P-256, P-384, P-521), RSA of 2048 bits and more, and those of FIDO tokens; DSA and shorter RSA
// keys are errors, except on a line that revokes them.
//
// Sources: sshd(8) of OpenSSH 9.2, "AUTHORIZED_KEYS FILE FORMAT" and "SSH_KNOWN_HOSTS FILE FORMAT"; ssh_config(5),
// "PATTERNS"; OpenSSH's PROTOCOL.certkeys; RFC 4253, section 6.6. Where these leave something open, the code does as OpenSSH
// does, or is stricter and says so.
//
// golang.org/x/crypto/ssh reads keys and certificates and verifies signatures. Of its package knownhosts only Normalize is
// used: New reads files of any size, its wildcards can take exponential time, it takes "host:2222" for a host with a
// port, a CA's own key for a host's key, and a certificate without principals for every host.
package sshkeys
