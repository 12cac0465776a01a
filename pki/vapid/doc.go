// Package vapid signs and verifies the tokens by which the sender of a Web Push message says who it is: a public key,
// and nothing more.
//
// ParseAuthorization reads the header field, Verifier checks the token in it against the origin of the push resource and
// remembers the result by hash until the token ends, and Sign makes the header field for a sender.
//
// Source: RFC 8292 (VAPID), with RFC 7515 (JWS) for the token and RFC 9110, section 11, for the field.
package vapid
