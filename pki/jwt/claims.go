package jwt

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// maxNumericDate is the end of the year 9999. Beyond it times wrap round, in the library that checks signatures, too.
const maxNumericDate = 253402300799

// Token is a token that was verified. All who verified the same one have the same value, so it is not changed.
type Token struct {
	// Issuer is iss, or the name of the key that signed for itself.
	Issuer string
	// Subject is sub, "" if there is none.
	Subject string
	// Audiences are all of aud.
	Audiences []string
	// AuthorizedParty is azp (OpenID Connect Core 1.0, section 2), "" if there is none.
	AuthorizedParty string
	// Claims are all claims, as encoding/json reads them, but with numbers as json.Number.
	Claims map[string]any
	// NotAfter is when the token ends, with the leeway.
	NotAfter time.Time
	// Key is the name ("key:…") of the self-made key that signed, "" for a token of an issuer.
	Key string
	// Kubernetes is whose token it is, nil unless its issuer is one of Kubernetes.
	Kubernetes *Kubernetes

	by     *issuer
	signed *verifyKey
	from   *source // that signed came from, nil if it is fixed or pinned
}

// Kubernetes is what a token of a service account says (claim kubernetes.io).
type Kubernetes struct {
	// Namespace and ServiceAccount are set.
	Namespace, ServiceAccount string
	// Pod is the one that the token is bound to, "" if it is not.
	Pod string
}

// readClaims makes a Token of claims, with all that can be checked without a key.
func (v *Verifier) readClaims(claims map[string]any, by *issuer, now time.Time) (*Token, error) {
	t := &Token{Claims: claims, by: by}
	for _, c := range []struct {
		name string
		to   *string
	}{{"iss", &t.Issuer}, {"sub", &t.Subject}, {"azp", &t.AuthorizedParty}} {
		value, there := claims[c.name]
		s, ok := value.(string)
		if there && (!ok || s == "" || hasControl(s)) {
			return nil, refuse(BadClaim, c.name+" is not a text, or empty")
		}
		*c.to = s
	}
	if err := v.readTimes(t, now); err != nil {
		return nil, err
	}
	if err := t.readAudiences(by); err != nil {
		return nil, err
	}
	if by.kubernetes {
		return t, t.readKubernetes()
	}
	return t, nil
}

// readTimes checks exp, nbf and iat (RFC 7519, sections 4.1.4 to 4.1.6).
func (v *Verifier) readTimes(t *Token, now time.Time) error {
	var times [3]time.Time
	for i, name := range []string{"exp", "nbf", "iat"} {
		value, there := t.Claims[name]
		if !there {
			continue
		}
		at, ok := numericDate(value)
		if !ok {
			return refuse(BadClaim, name+" is no number of seconds from 1970 to 9999")
		}
		times[i] = at
	}
	exp, nbf, iat := times[0], times[1], times[2]
	if exp.IsZero() {
		return refuse(BadClaim, "exp is missing; a token without an end is not taken")
	}
	if t.NotAfter = exp.Add(v.leeway); !now.Before(t.NotAfter) {
		return refuse(Expired, "it ended "+ago(now.Sub(exp))+" ago")
	}
	if latest := now.Add(v.leeway); nbf.After(latest) || iat.After(latest) {
		return refuse(NotYetValid, "it begins in the future; the clocks of issuer and gateway may differ")
	}
	return nil
}

// ago writes a time for a message.
func ago(d time.Duration) string { return d.Round(time.Second).String() }

// numericDate reads a NumericDate (RFC 7519, section 2), which may have a fraction.
func numericDate(v any) (time.Time, bool) {
	number, ok := v.(json.Number)
	if !ok {
		return time.Time{}, false
	}
	// An error for what is beyond a float64, such as 1e400.
	seconds, err := number.Float64()
	if err != nil || !(seconds >= 0 && seconds <= maxNumericDate) {
		return time.Time{}, false
	}
	whole := int64(seconds)
	return time.Unix(whole, int64((seconds-float64(whole))*1e9)), true
}

// readAudiences checks aud (RFC 7519, section 4.1.3).
func (t *Token) readAudiences(by *issuer) error {
	switch aud := t.Claims["aud"].(type) {
	case nil:
		if _, there := t.Claims["aud"]; there {
			return refuse(BadAudience, "aud is null")
		}
	case string:
		t.Audiences = []string{aud}
	case []any:
		for _, one := range aud {
			s, ok := one.(string)
			if !ok {
				return refuse(BadAudience, "aud has something other than texts")
			}
			t.Audiences = append(t.Audiences, s)
		}
	default:
		return refuse(BadAudience, "aud is no text and no list of texts")
	}
	if by.isFor(t.Audiences) {
		return nil
	}
	return refuse(BadAudience, fmt.Sprintf("aud is %.200q, and none of the audiences of the configuration", strings.Join(t.Audiences, " ")))
}

// isFor reports whether tokens for these audiences are taken.
func (by *issuer) isFor(audiences []string) bool {
	return by.anyAudience || slices.ContainsFunc(by.audiences, func(ours string) bool { return slices.Contains(audiences, ours) })
}

// readKubernetes checks the claims of a service account: kubernetes.io names it, and sub must say the same. Legacy
// tokens, which have no end, are refused before.
func (t *Token) readKubernetes() error {
	about, ok := t.Claims["kubernetes.io"].(map[string]any)
	if !ok {
		return refuse(BadClaim, "kubernetes.io is missing; it is no token of a service account")
	}
	nameIn := func(member string) string {
		object, _ := about[member].(map[string]any)
		name, _ := object["name"].(string)
		return name
	}
	k := &Kubernetes{ServiceAccount: nameIn("serviceaccount"), Pod: nameIn("pod")}
	k.Namespace, _ = about["namespace"].(string)
	if !isObjectName(k.Namespace) || !isObjectName(k.ServiceAccount) || k.Pod != "" && !isObjectName(k.Pod) {
		return refuse(BadClaim, "kubernetes.io does not name a namespace and a service account")
	}
	if t.Subject != "system:serviceaccount:"+k.Namespace+":"+k.ServiceAccount {
		return refuse(BadClaim, "sub is not the service account that kubernetes.io names")
	}
	t.Kubernetes = k
	return nil
}

// isObjectName reports whether s is the name of an object of Kubernetes: a DNS name in lower case, of 253 bytes at most.
func isObjectName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || label[0] == '-' || label[len(label)-1] == '-' || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return false
		}
	}
	return true
}
