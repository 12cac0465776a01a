package jwt

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

const (
	// maxDepth is how deep objects and arrays may be in each other. Claims of Keycloak and Kubernetes have three levels.
	maxDepth = 16
	// maxValues is how many members and elements a token may have at all its levels. The longest lists that are
	// common are those of groups, with 200.
	maxValues = 512
	// maxSetValues is the same for key sets and documents of discovery.
	maxSetValues = 4096
)

// decodeObject reads one JSON object and nothing after it. It refuses what two readers may take in different
// ways: a member that is there twice at any level (RFC 7519, section 4: "The Claim Names within a JWT Claims Set MUST be unique"),
// bytes that are not UTF-8, and half a surrogate pair. Numbers stay json.Number. An error that is errTooMuch says that
// there are more than values of them, or more than maxDepth levels.
func decodeObject(data []byte, values int) (map[string]any, error) {
	if !utf8.Valid(data) {
		return nil, errors.New("is not UTF-8")
	}
	d := objectReader{dec: json.NewDecoder(bytes.NewReader(data)), left: values}
	d.dec.UseNumber()
	v, err := d.value(0)
	if err != nil {
		return nil, err
	}
	object, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("is no JSON object")
	}
	if _, err := d.dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("has something after its JSON object")
	}
	return object, nil
}

// objectReader builds values while it counts and compares.
type objectReader struct {
	dec  *json.Decoder
	left int // values that may still come
}

// value reads the next value, which is depth levels deep.
func (d *objectReader) value(depth int) (any, error) {
	tok, err := d.dec.Token()
	if err != nil {
		return nil, errors.New("is not JSON")
	}
	if d.left--; d.left < 0 {
		return nil, errTooMuch
	}
	delim, ok := tok.(json.Delim)
	if !ok {
		if s, isText := tok.(string); isText && !isWhole(s) {
			return nil, errNotWhole
		}
		return tok, nil
	}
	if depth++; depth > maxDepth {
		return nil, errTooMuch
	}
	if delim == '{' {
		return d.object(depth)
	}
	return d.array(depth)
}

func (d *objectReader) object(depth int) (any, error) {
	object := make(map[string]any)
	for d.dec.More() {
		tok, err := d.dec.Token()
		name, ok := tok.(string)
		if err != nil || !ok {
			return nil, errors.New("is not JSON")
		}
		if !isWhole(name) {
			return nil, errNotWhole
		}
		if _, twice := object[name]; twice {
			return nil, fmt.Errorf("has the member %s twice", quote(name))
		}
		if object[name], err = d.value(depth); err != nil {
			return nil, err
		}
	}
	return object, d.end()
}

func (d *objectReader) array(depth int) (any, error) {
	list := []any{}
	for d.dec.More() {
		v, err := d.value(depth)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, d.end()
}

// end reads the bracket that ends an object or array.
func (d *objectReader) end() error {
	if _, err := d.dec.Token(); err != nil {
		return errors.New("is not JSON")
	}
	return nil
}

// errNotWhole is the refusal of a text that isWhole does not take.
var errNotWhole = errors.New("has half a surrogate pair, or U+FFFD")

// isWhole reports whether s is what its escapes say: encoding/json makes U+FFFD of half a surrogate pair, so that two
// different texts would be one. Nobody has a reason to write U+FFFD itself.
func isWhole(s string) bool { return !strings.ContainsRune(s, utf8.RuneError) }
