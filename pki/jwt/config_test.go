package jwt

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestValidate(t *testing.T) {
	good := func(change func(*IssuerConfig)) Config {
		iss := IssuerConfig{Issuer: testIssuer, Audiences: []string{"a"}, JWKSURI: "https://issuer.example/keys"}
		change(&iss)
		return Config{Issuers: []IssuerConfig{iss}}
	}
	for _, tc := range []struct {
		name string
		cfg  Config
		want []string // the fields that are wrong
	}{
		{"zero", Config{}, nil},
		{"good", good(func(*IssuerConfig) {}), nil},
		{"discovery", good(func(i *IssuerConfig) {
			i.JWKSURI, i.Discovery, i.Hosts = "", true, []string{"keys.example", "keys.example:8443"}
		}), nil},
		{"loopback", good(func(i *IssuerConfig) { i.JWKSURI, i.LoopbackHTTP = "http://127.0.0.1:8080/keys", true }), nil},
		{"IPv6 loopback", good(func(i *IssuerConfig) { i.JWKSURI, i.LoopbackHTTP = "http://[::1]:8080/keys", true }), nil},
		{"keys alone", good(func(i *IssuerConfig) { i.JWKSURI, i.Keys = "", []KeyConfig{{File: "k.pem"}} }), nil},
		{"self-signed", Config{SelfSigned: &SelfSignedConfig{AnyAudience: true}}, nil},
		{"longest leeway", Config{Leeway: time.Minute}, nil},
		{"leeway too long", Config{Leeway: time.Minute + 1}, []string{"leeway"}},
		{"few entries", Config{CacheEntries: 3}, []string{"cacheEntries"}},
		{"no audience", good(func(i *IssuerConfig) { i.Audiences = nil }), []string{"issuers[0].audiences"}},
		{"empty audience", good(func(i *IssuerConfig) { i.Audiences = []string{"a", ""} }), []string{"issuers[0].audiences[1]"}},
		{"audience and any", good(func(i *IssuerConfig) { i.AnyAudience = true }), []string{"issuers[0].anyAudience"}},
		{"no issuer", good(func(i *IssuerConfig) { i.Issuer = "" }), []string{"issuers[0].issuer"}},
		{"issuer with a line end", good(func(i *IssuerConfig) { i.Issuer = "a\n" }), []string{"issuers[0].issuer"}},
		{"issuer is a key", good(func(i *IssuerConfig) { i.Issuer = selfName }), []string{"issuers[0].issuer"}},
		{"no source", good(func(i *IssuerConfig) { i.JWKSURI = "" }), []string{"issuers[0].jwks"}},
		{"two sources", good(func(i *IssuerConfig) { i.JWKSFile = "f" }), []string{"issuers[0].jwks"}},
		{"http", good(func(i *IssuerConfig) { i.JWKSURI = "http://issuer.example/keys" }), []string{"issuers[0].jwksUri"}},
		{"http elsewhere than loopback", good(func(i *IssuerConfig) { i.JWKSURI, i.LoopbackHTTP = "http://10.0.0.1/keys", true }), []string{"issuers[0].jwksUri"}},
		{"http to a name that may be loopback", good(func(i *IssuerConfig) { i.JWKSURI, i.LoopbackHTTP = "http://localhost/keys", true }), []string{"issuers[0].jwksUri"}},
		{"file", good(func(i *IssuerConfig) { i.JWKSURI = "file:///etc/keys" }), []string{"issuers[0].jwksUri"}},
		{"user in the address", good(func(i *IssuerConfig) { i.JWKSURI = "https://a:b@issuer.example/keys" }), []string{"issuers[0].jwksUri"}},
		{"discovery of a name", good(func(i *IssuerConfig) { i.Issuer, i.JWKSURI, i.Discovery = "kubernetes/serviceaccount", "", true }), []string{"issuers[0].issuer"}},
		{"hosts without discovery", good(func(i *IssuerConfig) { i.Hosts = []string{"a"} }), []string{"issuers[0].hosts"}},
		{"host with a path", good(func(i *IssuerConfig) { i.JWKSURI, i.Discovery, i.Hosts = "", true, []string{"a/b", "", "A"} }), []string{"issuers[0].hosts[0]", "issuers[0].hosts[1]", "issuers[0].hosts[2]"}},
		{"CA without an address", good(func(i *IssuerConfig) { i.JWKSURI, i.JWKSFile, i.CAFile = "", "f", "ca" }), []string{"issuers[0].jwksUri"}},
		{"bad set", good(func(i *IssuerConfig) { i.JWKSURI, i.JWKS = "", "{}" }), []string{"issuers[0].jwks"}},
		{"key without a file", good(func(i *IssuerConfig) { i.Keys = []KeyConfig{{ID: "a"}} }), []string{"issuers[0].keys[0].file"}},
		{"all at once", Config{Leeway: time.Hour, Issuers: []IssuerConfig{{}, {}}, SelfSigned: &SelfSignedConfig{}}, []string{"leeway", "issuers[0].issuer", "issuers[0].audiences", "issuers[0].jwks",
			"issuers[1].issuer", "issuers[1].issuer", "issuers[1].audiences", "issuers[1].jwks", "selfSigned.audiences"}},
		{"too many issuers", Config{Issuers: slices.Repeat(good(func(*IssuerConfig) {}).Issuers, maxIssuers+1)}, slices.Insert(slices.Repeat([]string{"issuer"}, maxIssuers), 0, "issuers")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := fieldsOf(tc.cfg.Validate())
			same := slices.EqualFunc(got, tc.want, func(g, w string) bool { return g == w || w == "issuer" && strings.HasSuffix(g, "."+w) })
			if !same {
				t.Errorf("Validate found faults in %q, want %q", got, tc.want)
			}
		})
	}
}

// fieldsOf are the fields of joined *ConfigErrors.
func fieldsOf(err error) (fields []string) {
	if err == nil {
		return nil
	}
	for _, one := range err.(interface{ Unwrap() []error }).Unwrap() {
		e, ok := errors.AsType[*ConfigError](one)
		if !ok {
			return append(fields, "not a ConfigError: "+one.Error())
		}
		fields = append(fields, e.Field)
	}
	return fields
}

func TestNewReportsAllFiles(t *testing.T) {
	cfg := Config{
		Issuers: []IssuerConfig{
			{Issuer: "https://a", AnyAudience: true, JWKSFile: "nowhere.json"},
			{Issuer: "https://b", AnyAudience: true, JWKSFile: writeFile(t, "set", "{}")},
			{Issuer: "https://c", AnyAudience: true, Keys: []KeyConfig{{File: writeFile(t, "a", "x")}, {File: writeFile(t, "b", p256().publicPEM(t))}, {File: t.TempDir()}}},
			{Issuer: "https://d", AnyAudience: true, JWKSURI: "https://d/keys", CAFile: "nowhere.pem", TokenFile: "nowhere"},
			{Issuer: "https://e", AnyAudience: true, Keys: []KeyConfig{{File: writeFile(t, "k", strings.ReplaceAll(p256().publicPEM(t), "PUBLIC", "PRIVATE"))}}},
		},
		SelfSigned: &SelfSignedConfig{AnyAudience: true},
	}
	v, err := New(cfg, Env{})
	if err == nil {
		v.Close()
		t.Fatal("New took files that are not there")
	}
	want := []string{"issuers[0].jwksFile", "issuers[1].jwksFile", "issuers[2].keys[0].file", "issuers[2].keys[2].file", "issuers[3].caFile", "issuers[3].tokenFile", "issuers[4].keys[0].file", "selfSigned"}
	if got := fieldsOf(err); !slices.Equal(got, want) {
		t.Errorf("New found faults in %q, want %q", got, want)
	}
}
