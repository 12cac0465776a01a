package tunnel_test

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"culvert/policy"
	"culvert/tunnel"
	"culvert/tunnel/tunneltest"
	"culvert/tunnel/tunneltest/memnet"
)

// authorizers answers in the place of those outside.
type authorizers struct {
	mu     sync.Mutex
	asked  []string                                                         // "NAME HOST ADDR PORT", in their order
	answer func(ctx context.Context, name string, r *policy.Request) string // the reason of a refusal
}

func (a *authorizers) ask(ctx context.Context, name string, r *policy.Request) policy.Decision {
	a.mu.Lock()
	a.asked = append(a.asked, strings.Join([]string{name, r.Host, r.Addr.String(), netip.AddrPortFrom(netip.IPv4Unspecified(), r.Port).String()[8:], r.Peer.ServiceAccount()}, " "))
	answer := a.answer
	a.mu.Unlock()
	if answer != nil {
		if why := answer(ctx, name, r); why != "" {
			return policy.Decision{Policy: "ask", Rule: "ask/" + name, Reason: why}
		}
	}
	return policy.Decision{Allow: true, Policy: "ask", Rule: "ask/" + name}
}

func (a *authorizers) answers(f func(ctx context.Context, name string, r *policy.Request) string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answer = f
}

func (a *authorizers) list() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return strings.Join(a.asked, "; ")
}

// askRules has a named authorizer asked about a port.
func askRules(c *policy.Config, port string, names ...string) {
	for _, name := range names {
		c.Authorizers = append(c.Authorizers, name)
		c.Rules = append(c.Rules, policy.Rules{Name: "ask-" + name, Action: policy.ActionAsk, Authorizer: name, Rules: []policy.Rule{
			{To: []policy.Operation{{Ports: []string{port}}}},
		}})
	}
}

// newAskingPair is a pair whose exit asks authorizers a and b about port 80.
func newAskingPair(t *testing.T, a *authorizers, mend func(*tunnel.Config)) *tunneltest.Pair {
	t.Helper()
	return tunneltest.NewPair(t, tunneltest.Options{
		Exit: func(c *tunnel.Config) {
			askRules(&c.Policy, "80", "a", "b")
			if mend != nil {
				mend(c)
			}
		},
		ExitEnv: func(e *tunnel.Env) { e.Ask = a.ask },
	})
}

func TestAskedFlows(t *testing.T) {
	refuse := func(which string) func(context.Context, string, *policy.Request) string {
		return func(_ context.Context, name string, _ *policy.Request) string {
			if name == which {
				return "not you, it says"
			}
			return ""
		}
	}
	for _, tt := range []struct {
		name, to string
		answer   func(context.Context, string, *policy.Request) string
		refused  string // by which rule
		asked    string
	}{
		{"allowed by both", "10.0.0.2:80", nil, "", "a  10.0.0.2 80 entry; b  10.0.0.2 80 entry"},
		{"refused by the second", "10.0.0.2:80", refuse("b"), "ask/b", "a  10.0.0.2 80 entry; b  10.0.0.2 80 entry"},
		{"refused by the first", "10.0.0.2:80", refuse("a"), "ask/a", "a  10.0.0.2 80 entry"},
		{"nobody has to be asked", "10.0.0.2:81", refuse("a"), "", ""},
		{"denied anyhow", "10.0.0.2:82", nil, "closed", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := &authorizers{answer: tt.answer}
			p := newAskingPair(t, a, func(c *tunnel.Config) {
				askRules(&c.Policy, "82", "c")
				c.Policy.Rules = append(c.Policy.Rules, denyPort("82")...)
			})
			p.Echo(t, tt.to)
			if tt.refused == "" {
				app, err := p.Dial(testContext(t), tt.to)
				if err != nil {
					t.Fatal(err)
				}
				wantEcho(t, app, "hello")
			} else {
				if err := p.Refusal(testContext(t), tt.to); tunnel.CauseOf(err) != tunnel.CauseDenied {
					t.Errorf("the flow = %v, want that it is denied", err)
				}
				waitUntil(t, "the record", func() bool { s := p.Exit.Stats(); return s.Ended["denied"] == 1 && s.Active == 0 })
				if log := p.Log.String(); !strings.Contains(log, "rule="+tt.refused) {
					t.Errorf("the record does not name %s:\n%s", tt.refused, log)
				}
			}
			if got := a.list(); got != tt.asked {
				t.Errorf("asked %q, want %q", got, tt.asked)
			}
		})
	}
}

// Of a name that is resolved here an authorizer is asked once, when the addresses are known: about the address if there is one.
func TestAskedAboutNames(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		addrs      []string
		refuse     bool
	}{
		{"one address", "a shop.example 10.0.0.2 80 entry; b shop.example 10.0.0.2 80 entry", []string{"10.0.0.2"}, false},
		{"two addresses", "a shop.example invalid IP 80 entry; b shop.example invalid IP 80 entry", []string{"10.0.0.2", "10.0.0.3"}, false},
		{"refused", "a shop.example 10.0.0.2 80 entry", []string{"10.0.0.2"}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := new(authorizers)
			if tt.refuse {
				a.answer = func(context.Context, string, *policy.Request) string { return "no" }
			}
			p := tunneltest.NewPair(t, tunneltest.Options{
				Exit: func(c *tunnel.Config) {
					askRules(&c.Policy, "80", "a", "b")
					c.Routes = []tunnel.RouteConfig{{Hosts: []string{"shop.example"}}}
				},
				ExitEnv: func(e *tunnel.Env) {
					e.Ask = a.ask
					e.Resolve = func(context.Context, string) (list []netip.Addr, err error) {
						for _, a := range tt.addrs {
							list = append(list, netip.MustParseAddr(a))
						}
						return list, nil
					}
				},
			})
			p.Echo(t, "10.0.0.2:80")
			app, err := p.Dial(testContext(t), "shop.example:80")
			if tt.refuse {
				if tunnel.CauseOf(err) != tunnel.CauseDenied {
					t.Errorf("the flow = %v, want that it is denied", err)
				}
			} else if err != nil {
				t.Fatal(err)
			} else {
				wantEcho(t, app, "hello")
			}
			if got := a.list(); got != tt.want {
				t.Errorf("asked %q, want %q", got, tt.want)
			}
		})
	}
}

// A flow that an authorizer has to allow is refused where there is none.
func TestAskedWithoutAuthorizers(t *testing.T) {
	p := tunneltest.NewPair(t, tunneltest.Options{Exit: func(c *tunnel.Config) { askRules(&c.Policy, "80", "a") }})
	p.Echo(t, "10.0.0.2:80")
	if err := p.Refusal(testContext(t), "10.0.0.2:80"); tunnel.CauseOf(err) != tunnel.CauseDenied {
		t.Errorf("the flow = %v, want that it is denied", err)
	}
}

// Nobody is asked any longer about a flow that nobody waits for, and that is no refusal.
func TestAskedFlowGoesAway(t *testing.T) {
	begun, ended := make(chan struct{}), make(chan struct{})
	a := &authorizers{answer: func(ctx context.Context, _ string, _ *policy.Request) string {
		close(begun)
		<-ctx.Done()
		close(ended)
		return "nobody waits"
	}}
	p := newAskingPair(t, a, nil)
	ctx, gone := context.WithCancel(testContext(t))
	done := make(chan error, 1)
	go func() { // ends with ctx
		_, err := p.Dial(ctx, "10.0.0.2:80")
		done <- err
	}()
	<-begun
	gone()
	<-ended
	if err := <-done; err == nil {
		t.Error("the flow stands")
	}
	waitUntil(t, "the record", func() bool { return p.Exit.Stats().Ended["source-gone"] == 1 })
}

// Close does not wait for an authorizer that does not answer.
func TestCloseWhileAsking(t *testing.T) {
	begun := make(chan struct{})
	a := &authorizers{answer: func(ctx context.Context, _ string, _ *policy.Request) string {
		close(begun)
		<-ctx.Done()
		return "closed"
	}}
	p := newAskingPair(t, a, nil)
	done := make(chan error, 1)
	go func() { // ends with the gateway
		_, err := p.Dial(testContext(t), "10.0.0.2:80")
		done <- err
	}()
	<-begun
	p.Exit.Close()
	if err := <-done; err == nil {
		t.Error("the flow stands")
	}
}

// echoes sends text over a flow that lives on, and wants it back.
func echoes(t *testing.T, app *memnet.Conn, text string) {
	t.Helper()
	if _, err := app.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	back := make([]byte, len(text))
	if _, err := io.ReadFull(app, back); err != nil || string(back) != text {
		t.Fatalf("the flow echoes %q, %v; want %q", back, err, text)
	}
}

// liveFlows opens n flows to port 80, each of which has been answered.
func liveFlows(t *testing.T, p *tunneltest.Pair, n int) (list []*memnet.Conn) {
	t.Helper()
	for range n {
		app, err := p.Dial(testContext(t), "10.0.0.2:80")
		if err != nil {
			t.Fatal(err)
		}
		echoes(t, app, "before")
		list = append(list, app)
	}
	return list
}

// A reload asks again about live flows, few at a time and without waiting for it, and ends those that are refused now.
func TestLiveFlowsAreAskedAgain(t *testing.T) {
	const flows, atOnce = 30, 8
	a := new(authorizers)
	var config tunnel.Config
	p := newAskingPair(t, a, func(c *tunnel.Config) { config = *c })
	p.Echo(t, "10.0.0.2:80")
	apps := liveFlows(t, p, flows)
	answer := make(chan struct{})
	var asked, now, most atomic.Int64
	a.answers(func(ctx context.Context, _ string, _ *policy.Request) string {
		defer now.Add(-1)
		n := now.Add(1)
		for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
		}
		asked.Add(1)
		<-answer
		return "not any more"
	})
	if err := p.Exit.Reload(testContext(t), &config); err != nil { // it does not wait
		t.Fatal(err)
	}
	waitUntil(t, "questions", func() bool { return asked.Load() == atOnce })
	echoes(t, apps[0], "while it is asked")
	close(answer)
	for _, app := range apps {
		if _, err := app.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("a flow that is refused now reads %v, want ECONNRESET", err)
		}
	}
	waitUntil(t, "records", func() bool { return p.Exit.Stats().Ended["denied"] == flows })
	if n := most.Load(); n > atOnce {
		t.Errorf("%d questions at once, want %d at most", n, atOnce)
	}
}

// The next reload begins anew, and what the one before has not asked is not asked: nothing of it ends a flow.
func TestReloadEndsTheQuestionsOfTheOneBefore(t *testing.T) {
	a := new(authorizers)
	var config tunnel.Config
	p := newAskingPair(t, a, func(c *tunnel.Config) { config = *c })
	p.Echo(t, "10.0.0.2:80")
	apps := liveFlows(t, p, 20)
	var asked, ended atomic.Int64
	a.answers(func(ctx context.Context, _ string, _ *policy.Request) string {
		asked.Add(1)
		<-ctx.Done()
		ended.Add(1)
		return "cancelled"
	})
	if err := p.Exit.Reload(testContext(t), &config); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "questions", func() bool { return asked.Load() == 8 })
	open := config
	open.Policy = policy.Config{}
	if err := p.Exit.Reload(testContext(t), &open); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "the end of all questions", func() bool { return ended.Load() == 8 })
	for _, app := range apps {
		wantEcho(t, app, "lives on")
	}
	if n := asked.Load(); n != 8 {
		t.Errorf("%d questions, want 8", n)
	}
}

// A program that accepts flows itself has them asked about too.
func TestListenerAsks(t *testing.T) {
	for _, why := range []string{"", "not you"} {
		p := newProgram(t)
		a := &authorizers{answer: func(context.Context, string, *policy.Request) string { return why }}
		env := p.env(t, "default", "orders", "10.0.0.2")
		env.Ask = a.ask
		var rules policy.Config
		askRules(&rules, "80", "a")
		l, err := tunnel.Listen(testContext(t), "10.0.0.2:15008", env, rules)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(l.Cut)
		accepted := make(chan error, 1)
		go func() { // ends with the flow, or with the listener
			c, err := l.Accept()
			if err == nil {
				_, err = c.Write([]byte("x"))
				_ = c.Close()
			}
			accepted <- err
		}()
		c, err := p.dialer(t, "default").DialContext(testContext(t), "tcp", "orders.example:80")
		if (err == nil) != (why == "") {
			t.Errorf("the flow = %v, with the answer %q", err, why)
		}
		if err == nil {
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				t.Error(err)
			}
			c.Close()
		}
		if got, want := a.list(), "a orders.example invalid IP 80 client"; got != want {
			t.Errorf("asked %q, want %q", got, want)
		}
		l.Cut()
		<-accepted
	}
}
