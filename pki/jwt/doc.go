// Package jwt verifies JSON Web Tokens: OpenID Connect, service accounts of Kubernetes, and tokens that a self-made
// key signs for itself.
//
// A token is looked at strictly before anything in it is believed (size, alphabet, duplicate members, depth), then
// matched with an issuer of the configuration, then with a key of that issuer, and the kind of the key says which
// algorithms there are. Nothing in a token is ever fetched or followed. Keys come from files, from the configuration,
// or from a fixed https address, in the background; what a token can cause is one refresh of its issuer's keys in ten
// seconds. Results are kept by the token's SHA-256 until the token ends or its key is withdrawn.
//
// Signatures are checked by github.com/golang-jwt/jwt/v5, keys are parsed by github.com/MicahParks/jwkset.
//
// Sources: RFC 7515 (JWS), RFC 7517 (JWK), RFC 7518 (JWA), RFC 7519 (JWT), RFC 8037 (EdDSA), RFC 8725 (best practices), OpenID
// Connect Discovery 1.0.
package jwt
