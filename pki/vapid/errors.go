package vapid

import "strconv"

// Reason is a short fixed word for why a sender is refused, fit for a metric label and for comparing. Senders cannot
// choose its values.
type Reason string

// Reasons of an Error.
const (
	OtherScheme  Reason = "other-scheme"  // the field is not of the scheme vapid
	Malformed    Reason = "malformed"     // the field, the token or the key cannot be read, or can be read in two ways
	TooLarge     Reason = "too-large"     // the field or the token is too long, or has too many parameters
	BadAlgorithm Reason = "bad-algorithm" // alg is not ES256
	BadKey       Reason = "bad-key"       // the key is no point of P-256
	BadSignature Reason = "bad-signature" // the signature is not one of the key
	BadAudience  Reason = "bad-audience"  // aud is missing or does not have the origin of the push resource
	Expired      Reason = "expired"       // exp has passed
	TooLong      Reason = "too-long"      // exp is more than 24 h ahead
	BadClaim     Reason = "bad-claim"     // a claim is missing, or of the wrong kind
)

// Error says why a sender was refused. Its text holds nothing of the token.
type Error struct {
	Reason Reason
	Detail string // what is wrong, in plain words
}

// Error returns "vapid refused: DETAIL".
func (e *Error) Error() string { return "vapid refused: " + e.Detail }

func refuse(reason Reason, detail string) *Error { return &Error{Reason: reason, Detail: detail} }

// maxShown is how much of a text that somebody else chose is shown, in bytes.
const maxShown = 100

// quote cuts and quotes a text that somebody else chose.
func quote(text string) string {
	if len(text) > maxShown {
		text = text[:maxShown] + "..."
	}
	return strconv.QuoteToASCII(text)
}
