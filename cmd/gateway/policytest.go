package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"culvert/pki/spiffe"
	"culvert/policy"
)

// PolicyTest is a request, and what has to come of it.
type PolicyTest struct {
	// Peer is the SPIFFE ID of who asks. Default: nobody that is known.
	Peer string `yaml:"peer"`
	// Source is the address that the connection comes from.
	Source string `yaml:"source"`
	// Dst is the destination: an address or a name, and a port.
	Dst string `yaml:"dst"`
	// Workload is the name of what the destination is. Default: none.
	Workload string `yaml:"workload"`
	// Namespace of that workload. Default: that of this gateway.
	Namespace string `yaml:"namespace"`
	// Labels of that workload.
	Labels map[string]string `yaml:"labels"`
	// Listener is the name of the listener that has accepted it.
	Listener string `yaml:"listener"`
	// Remote is the address of the client, as a proxy that is trusted tells. Default: that of Source.
	Remote string `yaml:"remote"`
	// TokenClaims are what a valid token says, as JSON, such as `{"iss": "https://issuer.example", "sub": "ann"}`. Default: no token.
	TokenClaims string `yaml:"tokenClaims"`
	// BadToken is why a token that is shown is not valid. Default: none is shown.
	BadToken string `yaml:"badToken"`
	// Time of the request, as in `2026-03-02T09:30:00Z`. Default: not known.
	Time string `yaml:"time"`
	// SNI is the server name that TLS was asked for.
	SNI string `yaml:"sni"`
	// Method of a request of HTTP, where the hop has it in the clear.
	Method string `yaml:"method"`
	// Path of that request.
	Path string `yaml:"path"`
	// Headers of that request.
	Headers map[string]string `yaml:"headers"`
	// Want is `allow` or `deny`.
	Want string `yaml:"want"`
	// Rule is the name of the rule that has to decide. Default: any.
	Rule string `yaml:"rule"`
}

// request makes the request of a test; self is this gateway.
func (t *PolicyTest) request(self spiffe.ID) (*policy.Request, error) {
	r := &policy.Request{Self: self, SNI: t.SNI, Listener: t.Listener, BadToken: t.BadToken, Workload: &policy.Workload{Name: t.Workload, Namespace: t.Namespace, Labels: t.Labels}}
	if t.Namespace == "" {
		r.Workload.Namespace = self.Namespace()
	}
	var err error
	if t.Peer != "" {
		if r.Peer, err = spiffe.Parse(t.Peer); err != nil {
			return nil, fmt.Errorf("peer: %w", err)
		}
	}
	source, err := testAddr("source", t.Source)
	if err != nil {
		return nil, err
	}
	r.Source = netip.AddrPortFrom(source, 0)
	if r.Remote, err = testAddr("remote", t.Remote); err != nil {
		return nil, err
	}
	if t.TokenClaims != "" {
		if r.Token, err = tokenOf(t.TokenClaims); err != nil {
			return nil, err
		}
	}
	if t.Time != "" {
		if r.Time, err = time.Parse(time.RFC3339, t.Time); err != nil {
			return nil, fmt.Errorf("time: %q is none; it should be like 2026-03-02T09:30:00Z", t.Time)
		}
	}
	if err := setDestination(r, t.Dst); err != nil {
		return nil, err
	}
	if t.Method != "" || t.Path != "" || t.Headers != nil {
		headers := make(map[string]string)
		for name, value := range t.Headers {
			headers[strings.ToLower(name)] = value
		}
		r.HTTP = &policy.HTTP{Method: t.Method, Path: t.Path, Host: r.Host, Header: func(name string) (string, bool) {
			value, ok := headers[name]
			return value, ok
		}}
	}
	return r, nil
}

// testAddr reads an address, the zero Addr of "".
func testAddr(field, text string) (netip.Addr, error) {
	if text == "" {
		return netip.Addr{}, nil
	}
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return addr, fmt.Errorf("%s: %q is no address; it should be like 10.0.0.7", field, text)
	}
	return addr.Unmap(), nil
}

// tokenOf makes the token with some claims (RFC 7519, section 4.1), which are JSON.
func tokenOf(claims string) (*policy.Token, error) {
	t := new(policy.Token)
	if err := json.Unmarshal([]byte(claims), &t.Claims); err != nil || t.Claims == nil {
		return nil, fmt.Errorf(`token-claims: %q are none; they should be JSON such as {"iss": "https://issuer.example", "sub": "ann"}`, claims)
	}
	for name, to := range map[string]*string{"iss": &t.Issuer, "sub": &t.Subject, "azp": &t.AuthorizedParty} {
		if value, there := t.Claims[name]; there {
			text, ok := value.(string)
			if !ok {
				return nil, fmt.Errorf("token-claims: %s is no text", name)
			}
			*to = text
		}
	}
	switch aud := t.Claims["aud"].(type) {
	case nil:
	case string:
		t.Audiences = []string{aud}
	case []any:
		for _, one := range aud {
			text, ok := one.(string)
			if !ok {
				return nil, fmt.Errorf("token-claims: aud has something else than texts")
			}
			t.Audiences = append(t.Audiences, text)
		}
	default:
		return nil, fmt.Errorf("token-claims: aud is neither a text nor a list of texts")
	}
	return t, nil
}
