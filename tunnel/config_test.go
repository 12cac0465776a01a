package tunnel

import (
	"errors"
	"slices"
	"testing"
	"time"
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
