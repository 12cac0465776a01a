// Package bearer gets the tokens that a gateway shows to proxies of others as "authorization: Bearer" (RFC 6750): from a
// file, by the client credentials grant of OAuth 2.0 (RFC 6749, section 4.4) from an OpenID Connect provider, or signed by
// the gateway's own key, by a function that the program gives.
//
// A token is a secret. No error and no text of this package holds one.
package bearer
