package jwt

import (
	"errors"
	"strconv"
	"strings"
)

// Reason is a short fixed word for why a token is refused, fit for a metric label and for comparing. Senders cannot
// choose its values.
type Reason string

// Reasons of an Error.
const (
	TooLarge        Reason = "too-large"        // longer than 8 KiB, deeper than 16 levels, or more than 512 values
	Malformed       Reason = "malformed"        // not a signed JWT, or one that can be read in two ways
	BadHeader       Reason = "bad-header"       // crit, b64, a typ that is no JWT, or a kid that is no text
	BadAlgorithm    Reason = "bad-algorithm"    // alg is none, HS*, unknown, or not one of the key's kind
	UnknownIssuer   Reason = "unknown-issuer"   // iss is missing or not in the configuration
	UnknownKey      Reason = "unknown-key"      // the issuer has no such key
	KeysUnavailable Reason = "keys-unavailable" // the issuer's keys could not be had, or are too old
	BadSignature    Reason = "bad-signature"    // the signature is not one of the key
	Expired         Reason = "expired"          // exp has passed
	NotYetValid     Reason = "not-yet-valid"    // nbf or iat is in the future
	BadAudience     Reason = "bad-audience"     // aud is missing or names none of ours
	BadClaim        Reason = "bad-claim"        // a claim is missing, or of the wrong kind
)

// Error says why a token was refused. Its text holds nothing of the token but its iss or kid, quoted and cut.
type Error struct {
	Reason Reason
	// Issuer is the issuer of the configuration that was asked, "" if none was found.
	Issuer string
	Detail string // what is wrong, in plain words
	Err    error  // the cause where it is not the token: the end of the context, or of a fetch
}

// Error returns "token of ISSUER refused: DETAIL: CAUSE".
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("token ")
	if e.Issuer != "" {
		b.WriteString("of " + e.Issuer + " ")
	}
	b.WriteString("refused: " + e.Detail)
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// refuse makes the error of a token.
func refuse(reason Reason, detail string) *Error { return &Error{Reason: reason, Detail: detail} }

// ConfigError is one field of a Config that is wrong, or a file that it names.
type ConfigError struct {
	Field string // the path of the field as in the configuration file, such as "issuers[1].jwksFile"
	What  string // what is wrong, and what would be right
	Err   error  // the cause, or nil
}

// Error returns "FIELD: WHAT: CAUSE".
func (e *ConfigError) Error() string {
	if e.Err != nil {
		return e.Field + ": " + e.What + ": " + e.Err.Error()
	}
	return e.Field + ": " + e.What
}

// Unwrap returns the cause.
func (e *ConfigError) Unwrap() error { return e.Err }

// maxShown is how much of a text that somebody else chose is shown, in bytes.
const maxShown = 100

// clip cuts a text for a message, which quotes it.
func clip(text string) string {
	if len(text) > maxShown {
		return text[:maxShown] + "..."
	}
	return text
}

// quote cuts and quotes a text that somebody else chose.
func quote(text string) string { return strconv.QuoteToASCII(clip(text)) }

// hasControl reports whether text has ASCII control characters.
func hasControl(text string) bool {
	return strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// errTooMuch is what decodeObject refuses for its size.
var errTooMuch = errors.New("more members or levels than a token has")
