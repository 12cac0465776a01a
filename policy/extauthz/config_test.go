package extauthz

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestConfigValidate(t *testing.T) {
	ok := Config{Name: "opa", Address: "127.0.0.1:9191"}
	for _, tt := range []struct {
		name   string
		change func(*Config)
		want   []string // fields with a fault
	}{
		{"plain on loopback", func(*Config) {}, nil},
		{"everything", func(c *Config) {
			*c = Config{Name: "a.b-c_1", Address: "authz.example:443", Timeout: 10 * time.Second, MaxInFlight: mostFlight, Headers: []string{"Authorization", "x-a"},
				TLS: TLSConfig{Mode: "tls", Roots: "roots.pem", ServerName: "authz"}}
		}, nil},
		{"socket", func(c *Config) { c.Address = "unix:/run/authz.sock" }, nil},
		{"localhost", func(c *Config) { c.Address = "localhost:1" }, nil},
		{"loopback of IPv6", func(c *Config) { c.Address = "[::1]:1" }, nil},
		{"mtls", func(c *Config) {
			c.Address, c.TLS = "authz.example:443", TLSConfig{Mode: "mtls", Identity: "spiffe://cluster.local/ns/a/sa/b"}
		}, nil},
		{"plain that is meant", func(c *Config) { c.Address, c.TLS.Mode = "10.0.0.1:1", "none" }, nil},
		{"empty", func(c *Config) { *c = Config{} }, []string{"name", "address"}},
		{"name with a slash", func(c *Config) { c.Name = "a/b" }, []string{"name"}},
		{"long name", func(c *Config) { c.Name = strings.Repeat("a", 64) }, []string{"name"}},
		{"plain to another host", func(c *Config) { c.Address = "10.0.0.1:9191" }, []string{"tls.mode"}},
		{"plain to a name", func(c *Config) { c.Address = "localhost.example:9191" }, []string{"tls.mode"}},
		{"no port", func(c *Config) { c.Address = "127.0.0.1" }, []string{"address"}},
		{"port 0", func(c *Config) { c.Address = "127.0.0.1:0" }, []string{"address"}},
		{"port with a sign", func(c *Config) { c.Address = "127.0.0.1:+80" }, []string{"address"}},
		{"port too high", func(c *Config) { c.Address = "127.0.0.1:65536" }, []string{"address"}},
		{"no host", func(c *Config) { c.Address = ":9191" }, []string{"address"}},
		{"scheme", func(c *Config) { c.Address = "dns:///authz:9191" }, []string{"address"}},
		{"relative socket", func(c *Config) { c.Address = "unix:authz.sock" }, []string{"address"}},
		{"no mode", func(c *Config) { c.TLS.Mode = "yes" }, []string{"tls.mode"}},
		{"roots without tls", func(c *Config) { c.TLS.Roots = "r.pem" }, []string{"tls.roots"}},
		{"name with mtls", func(c *Config) { c.TLS = TLSConfig{Mode: "mtls", ServerName: "a"} }, []string{"tls.serverName"}},
		{"identity with tls", func(c *Config) { c.TLS = TLSConfig{Mode: "tls", Identity: "spiffe://a/b"} }, []string{"tls.identity"}},
		{"identity that is none", func(c *Config) { c.TLS = TLSConfig{Mode: "mtls", Identity: "a/b"} }, []string{"tls.identity"}},
		{"socket with tls and no name", func(c *Config) { c.Address, c.TLS.Mode = "unix:/a", "tls" }, []string{"tls.serverName"}},
		{"timeout", func(c *Config) { c.Timeout = 11 * time.Second }, []string{"timeout"}},
		{"no timeout", func(c *Config) { c.Timeout = -1 }, []string{"timeout"}},
		{"flight", func(c *Config) { c.MaxInFlight = -1 }, []string{"maxInFlight"}},
		{"header", func(c *Config) { c.Headers = []string{"a", ":path", ""} }, []string{"headers[1]", "headers[2]"}},
		{"many headers", func(c *Config) { c.Headers = slices.Repeat([]string{"a"}, maxHeaders+1) }, []string{"headers"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := ok
			tt.change(&c)
			err := c.Validate()
			var got []string
			if many, ok := err.(interface{ Unwrap() []error }); ok {
				for _, one := range many.Unwrap() {
					var field *FieldError
					if !errors.As(one, &field) {
						t.Fatalf("%v is no FieldError", one)
					}
					got = append(got, field.Field)
				}
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("Validate = %v, want faults of %q", err, tt.want)
			}
			if len(tt.want) == 0 {
				return
			}
			if client, err := New(&c, Env{}); err == nil {
				client.Close()
				t.Error("New takes it")
			}
		})
	}
}
