package tunnel_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"culvert/tunnel"
	"culvert/tunnel/h2"
	"culvert/tunnel/tunneltest"
)

// The one line of the entry says who refused a flow, why, and by which rule; not the rule by which the entry
// itself has let it pass.
func TestRecordNamesTheGatewayThatRefused(t *testing.T) {
	for _, tt := range []struct{ name, target, proxy, want, not string }{
		{"by a rule", "192.0.2.1:80", `"far \"1\""; error=http_request_denied; details="denied by policy"; policy="mine"; rule="no-guests", "near"; received-status=401`,
			`by="far \"1\"" rule=no-guests reason=denied `, "same-namespace"},
		{"without a rule", "192.0.2.1:80", "far; error=connection_refused", "by=far reason=denied ", "rule="},
		{"without a name", "192.0.2.1:80", `""; error=http_request_denied; rule=x`, "by=exit rule=x reason=denied ", "same-namespace"},
		{"without a word", "192.0.2.1:80", "", "by=exit reason=denied ", "rule="},
		{"by the entry", "192.0.2.2:81", "", "rule=same-namespace reason=no-route ", "by="},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := tunneltest.NewPair(t, tunneltest.Options{Entry: func(c *tunnel.Config) {
				c.Hops["exit"] = tunnel.HopConfig{Address: "10.0.0.3:15008"}
				c.Routes[0].Ports = []uint16{80}
			}})
			newFakeHop(t, p.Net, p.CA.Issue(t, "cluster.local", "default", "far"), "10.0.0.3:15008", func(s *h2.Stream) {
				defer s.Close()
				_ = s.Respond(&h2.Header{Status: 401, Fields: []h2.Field{{Name: "proxy-status", Value: tt.proxy}}}, true)
			})
			if err := p.Refusal(testContext(t), tt.target); errors.Is(err, tunneltest.ErrNotRefused) {
				t.Fatal(err)
			}
			p.Entry.Close()
			log := p.Log.String()
			if !strings.Contains(log, tt.want) || strings.Contains(log, tt.not) {
				t.Errorf("record %s, want in it %s and not %s", log, tt.want, tt.not)
			}
		})
	}
}

// The record of a flow that was cut says who has cut it.
func TestRecordOfACutFlow(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(*tunnel.Gateway)
		want string
	}{
		{"by the end of a drain", func(g *tunnel.Gateway) {
			ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
			defer cancel()
			g.Drain(ctx)
		}, "cut: the time for draining is over"},
		{"for a cause", func(g *tunnel.Gateway) {
			ctx, cancel := context.WithCancelCause(context.Background())
			cancel(errors.New("told twice"))
			g.Drain(ctx)
		}, "cut: told twice"},
		{"for no cause", func(g *tunnel.Gateway) {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			g.Drain(ctx)
		}, "cut: the drain was ended before its time"},
		{"by Close", (*tunnel.Gateway).Close, "cut: the gateway was closed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := tunneltest.NewPair(t, tunneltest.Options{})
			p.Echo(t, "10.0.0.2:80")
			app, err := p.Dial(testContext(t), "10.0.0.2:80")
			if err != nil {
				t.Fatal(err)
			}
			defer app.Close()
			tt.end(p.Entry)
			if log := p.Log.String(); !strings.Contains(log, `reason=cut err="`+tt.want+`"`) {
				t.Errorf("no record says %q: %s", tt.want, log)
			}
		})
	}
}
