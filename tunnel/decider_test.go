package tunnel_test

import (
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"

	"culvert/policy"
	"culvert/tunnel"
	"culvert/tunnel/tunneltest"
)

// deciderFunc is a Decider of a function.
type deciderFunc func(*policy.Request) policy.Decision

func (f deciderFunc) Decide(r *policy.Request) policy.Decision { return f(r) }

// A Decider decides instead of the policy, which it may ask; it is made anew for each configuration, and one that cannot be
// made leaves everything as it was.
func TestDecider(t *testing.T) {
	var config tunnel.Config
	var fail, none bool
	made := 0
	p := tunneltest.NewPair(t, tunneltest.Options{
		Exit: func(c *tunnel.Config) { config = *c },
		ExitEnv: func(e *tunnel.Env) {
			e.Decide = func(base *policy.Policy) (tunnel.Decider, error) {
				switch {
				case fail:
					return nil, errors.New("no database")
				case none:
					return nil, nil
				}
				made++
				closed := uint16(80 + made) // 81, after a reload 82
				return deciderFunc(func(r *policy.Request) policy.Decision {
					if r.Port == closed {
						return policy.Decision{Policy: "mine", Rule: "closed", Reason: "not today"}
					}
					return base.Decide(r)
				}), nil
			}
		},
	})
	for _, address := range []string{"10.0.0.2:80", "10.0.0.2:81", "10.0.0.2:82"} {
		p.Echo(t, address)
	}
	err := p.Refusal(testContext(t), "10.0.0.2:81")
	wantCause(t, "what the Decider refuses", err, tunnel.CauseDenied)
	live, err := p.Dial(testContext(t), "10.0.0.2:82")
	if err != nil {
		t.Fatal(err)
	}
	fail = true
	if err := p.Exit.Reload(testContext(t), &config); err == nil || !strings.Contains(err.Error(), "Env.Decide: no database") {
		t.Errorf("Reload = %v, want the error of Decide", err)
	}
	fail, none = false, true
	if err := p.Exit.Reload(testContext(t), &config); err == nil {
		t.Error("Reload without a Decider succeeded")
	}
	none = false
	if _, err := live.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(live, make([]byte, 1)); err != nil {
		t.Errorf("after reloads that failed the flow has ended: %v", err)
	}
	if err := p.Exit.Reload(testContext(t), &config); err != nil {
		t.Fatal(err)
	}
	if _, err := live.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a live flow that the new Decider refuses reads %v, want ECONNRESET", err)
	}
	app, err := p.Dial(testContext(t), "10.0.0.2:81")
	if err != nil {
		t.Fatalf("what the new Decider allows = %v", err)
	}
	wantEcho(t, app, "hello")
	p.Exit.Close()
	if log := p.Log.String(); !strings.Contains(log, "not today") || !strings.Contains(log, "rule=closed") {
		t.Errorf("the record does not have the Decider's reason:\n%s", log)
	}
}
