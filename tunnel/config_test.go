package tunnel

import (
	"errors"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"culvert/capture"
)

// TestValidatePlaces checks that faults are reported at their places.
func TestValidatePlaces(t *testing.T) {
	mesh := []ListenerConfig{{Name: "mesh", Kind: KindHBONE, Address: "127.0.0.1:0"}}
	for name, c := range map[string]struct {
		cfg  Config
		want []string
	}{
		"timeouts that cannot be switched off": {
			Config{Listeners: mesh, Timeouts: TimeoutConfig{Handshake: -time.Second, Dial: 1, Open: -1, Idle: -1, Age: -1, KeepAlive: -1}},
			[]string{"timeouts.handshake", "timeouts.dial", "timeouts.open"},
		},
		"ports that exclude each other": {
			Config{Listeners: mesh, Routes: []RouteConfig{
				{Destinations: []string{"10.0.0.0/8:80", "10.0.0.0/8:443"}, Ports: []uint16{443}},
				{Hosts: []string{"a.b:80"}, Ports: []uint16{443}},
			}},
			[]string{"routes[0].destinations[0]", "routes[1].hosts[0]"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var problems Problems
			if err := c.cfg.Validate(); !errors.As(err, &problems) {
				t.Fatalf("Validate = %v, want Problems", err)
			}
			var got []string
			for _, p := range problems {
				got = append(got, p.Path)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("problems at %q, want %q: %v", got, c.want, problems)
			}
		})
	}
}

// Who must log in to the HTTP proxy must for SOCKS on the same port, too.
func TestMixedLogin(t *testing.T) {
	bob := map[string]capture.Password{"bob": "secret"}
	for name, c := range map[string]*ListenerConfig{
		"users of HTTP": {HTTP: capture.HTTPConfig{Users: bob}}, "users of SOCKS": {SOCKS5: capture.Socks5Config{Users: bob}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, tt := range []struct{ say, want string }{
				{"\x05\x01\x00", "\x05\xff"}, {"CONNECT a.example:80 HTTP/1.1\r\nHost: a.example:80\r\n\r\n", "HTTP/1.1 407"},
			} {
				way, err := newMixed(c)
				if err != nil {
					t.Fatal(err)
				}
				app, nc := net.Pipe()
				over := make(chan struct{})
				go func() { // ends with nc
					_ = way.Serve(nc, func(c *capture.Conn) {
						t.Error("a flow is let through without a login")
						_ = c.Close()
					}, func() { close(over) })
				}()
				if err := app.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
					t.Fatal(err)
				}
				if _, err := io.WriteString(app, tt.say); err != nil {
					t.Fatal(err)
				}
				got := make([]byte, len(tt.want))
				if _, err := io.ReadFull(app, got); string(got) != tt.want {
					t.Errorf("the answer is %q, %v, want %q", got, err, tt.want)
				}
				app.Close()
				<-over
				way.Close()
			}
		})
	}
}
