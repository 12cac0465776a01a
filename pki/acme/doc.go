// Package acme gets certificates for the public names of an ingress from a CA by ACME (RFC 8555), renews them and
// serves them in TLS handshakes.
//
// The names are a fixed list: nothing that a client says in a handshake makes it order a certificate. Each name has
// a certificate and an ECDSA P-256 key of its own, new with every renewal. Control of a name is shown by TLS-ALPN-01
// (RFC 8737), for which Manager.GetConfigForClient answers on port 443, or by HTTP-01 (RFC 8555, section 8.3), for
// which Manager.HTTPHandler answers on port 80. Wildcards need DNS-01 and are refused.
//
// A Manager serves what is on disk at once and orders in the background. A name that fails is tried again with a
// growing delay and does not hinder others; its certificate stays in use until its end, and after it handshakes fail
// with a *NameError. A new certificate is used by the next handshake and no connection is dropped. At most so many
// orders an hour are made for a name, also across restarts, so that a loop of crashes does not use up what the CA
// allows. Renewal goes by the certificate's own time. Renewal information of the CA (ARI, RFC 9773) is not asked
// for: golang.org/x/crypto/acme v0.58.0 knows neither the directory's renewalInfo nor an order's replaces.
//
// The CA is not trusted further than need be. All that it serves must come by HTTPS from the host of its directory,
// without redirects, in bounded bodies and in bounded time, and a certificate is taken only if it is for our key and
// our name, within its time, and followed by the certificates that sign it.
//
// One process at a time orders for a folder. Others that share it serve what that one has written, and one of them
// takes over when it ends. They cannot answer its challenges: with several gateways behind one address, either all
// share the names' certificates by other means, or one of them alone is led to for /.well-known/acme-challenge/.
//
// In the folder, below one for the directory's URL (so that certificates of a test CA are not taken for real ones):
//
//	account.json    the account: its key, its URL and e-mail address
//	cert-NAME.pem   key and certificate chain of a name, in one file so that they always fit together
//	orders.json     when the orders of the last hour were made
//	lock            held by the process that orders
//
// All have mode 0600 and are replaced in one step.
package acme
