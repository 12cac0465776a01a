package jwt

import (
	"errors"
	"fmt"
	"slices"

	"github.com/MicahParks/jwkset"
)

const (
	// maxSetBytes is the size of a key set; one with 32 RSA keys and their certificates is below it.
	maxSetBytes = 64 << 10
	// maxSetKeys bounds a key set. Issuers have two to five.
	maxSetKeys = 32
	// maxTries is how many keys one token is tried with: those of one kid, or all of the right kind where it names none.
	maxTries = 4
)

// parseSet reads a key set (RFC 7517, section 5). Keys of kinds that are not taken, for encryption, or with a fault
// are passed over, as that section says; a set without any key left is an error. Keys that old has, too, are the same
// values as there. jwkset parses the keys, and is given none of the members that name certificates or addresses.
func parseSet(data []byte, old []*verifyKey) ([]*verifyKey, error) {
	if len(data) > maxSetBytes {
		return nil, fmt.Errorf("the key set is bigger than %d bytes", maxSetBytes)
	}
	set, err := decodeObject(data, maxSetValues)
	if err != nil {
		return nil, fmt.Errorf("the key set %w", err)
	}
	list, ok := set["keys"].([]any)
	if !ok {
		return nil, errors.New("the key set has no list of keys (RFC 7517, section 5)")
	}
	if len(list) > maxSetKeys {
		return nil, fmt.Errorf("the key set has %d keys; %d are taken", len(list), maxSetKeys)
	}
	var keys []*verifyKey
	for _, one := range list {
		key := parseKey(one)
		if key == nil {
			continue
		}
		if i := slices.IndexFunc(old, key.same); i >= 0 {
			key = old[i]
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("the key set has %d keys, and none of them can check signatures of tokens", len(list))
	}
	return keys, nil
}

// parseKey reads one key, and returns nil for one to pass over.
func parseKey(v any) *verifyKey {
	jwk, ok := v.(map[string]any)
	if !ok {
		return nil
	}
	text := func(name string) string {
		s, _ := jwk[name].(string)
		return s
	}
	// RFC 7517, sections 4.2 and 4.3: a key may be for something else.
	if use, there := jwk["use"]; there && use != "sig" {
		return nil
	}
	if ops, there := jwk["key_ops"]; there {
		if list, ok := ops.([]any); !ok || !slices.Contains(list, any("verify")) {
			return nil
		}
	}
	if id, there := jwk["kid"]; there {
		if s, ok := id.(string); !ok || len(s) > maxKeyIDBytes {
			return nil
		}
	}
	parsed, err := jwkset.NewJWKFromMarshal(jwkset.JWKMarshal{
		KTY: jwkset.KTY(text("kty")), CRV: jwkset.CRV(text("crv")), X: text("x"), Y: text("y"), N: text("n"), E: text("e"),
	}, jwkset.JWKMarshalOptions{}, jwkset.JWKValidateOptions{})
	if err != nil {
		return nil
	}
	key, err := newKey(text("kid"), parsed.Key())
	if err != nil {
		return nil
	}
	// RFC 7517, section 4.4: alg is what the key is for, one of those of its kind.
	if alg, there := jwk["alg"]; there {
		name, ok := alg.(string)
		if !ok || !slices.Contains(key.algs, name) {
			return nil
		}
		key.algs = []string{name}
	}
	return key
}

// candidates returns the keys that a token may have been signed with, maxTries at most. known is false where no key
// has its kid; where keys have it and none of them is for alg, known is true and the list empty.
func candidates(keys []*verifyKey, kid, alg string) (list []*verifyKey, known bool) {
	for _, key := range keys {
		if kid != "" && key.id != kid {
			continue
		}
		known = true
		if slices.Contains(key.algs, alg) && len(list) < maxTries {
			list = append(list, key)
		}
	}
	return list, known
}
