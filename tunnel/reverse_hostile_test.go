package tunnel_test

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"culvert/policy"
	"culvert/tunnel"
	"culvert/tunnel/h2"
	"culvert/tunnel/tunneltest"
)

// rawAgent is an agent that a test drives itself.
type rawAgent struct {
	t    *testing.T
	conn *h2.Conn
	st   *h2.Stream // its registration; nil: none
	in   *bufio.Scanner
}

// pathAgent is where agents register.
const pathAgent = "/.well-known/culvert/agent"

// raw connects as an agent; handle gets the streams that the gateway opens, and may be nil.
func (a *agents) raw(t *testing.T, id *tunneltest.Identity, cfg h2.Config) *rawAgent {
	t.Helper()
	ctx := testContext(t)
	nc, err := a.net.From(netip.MustParseAddr(camAddr))(ctx, netip.MustParseAddrPort(hubListen))
	if err != nil {
		t.Fatal(err)
	}
	conf := id.AnyTLS()
	conf.NextProtos = []string{h2.ALPNBidirectional}
	tc := tls.Client(nc, conf)
	if err := tc.HandshakeContext(ctx); err != nil {
		t.Fatal(err)
	}
	cfg.Bidirectional = true
	c, err := h2.NewClient(tc, &cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &rawAgent{t: t, conn: c}
}

// ask asks to be registered and returns the status.
func (r *rawAgent) ask() (*h2.Stream, *h2.Header) {
	r.t.Helper()
	st, err := r.conn.Open(testContext(r.t), &h2.Header{Method: "POST", Scheme: "https", Authority: "agents", Path: pathAgent}, false)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { st.Close() })
	resp, err := st.Response(testContext(r.t))
	if err != nil {
		r.t.Fatalf("Response() = %v", err)
	}
	return st, resp
}

// register registers, and wants all that comes before the first claim.
func (r *rawAgent) register() *rawAgent {
	r.t.Helper()
	st, resp := r.ask()
	if resp.Status != 200 {
		r.t.Fatalf("the registration is answered %d, %s", resp.Status, resp.Get("proxy-status"))
	}
	r.st, r.in = st, bufio.NewScanner(st)
	for r.line() != "registered" {
	}
	return r
}

// line is the next line of the gateway, "" when there are no more.
func (r *rawAgent) line() string {
	if r.in.Scan() {
		return r.in.Text()
	}
	return ""
}

// claim claims a name and returns the answer.
func (r *rawAgent) claim(name string) string {
	r.t.Helper()
	if _, err := r.st.Write([]byte("claim " + name + "\n")); err != nil {
		return ""
	}
	return r.line()
}

func (a *agents) device(t *testing.T, account string) *tunneltest.Identity {
	t.Helper()
	return a.ca.Issue(t, "cluster.local", "devices", account)
}

// What an agent may and may not claim, and how it is told.
func TestAgentClaims(t *testing.T) {
	a := newAgents(t, nil, nil)
	r := a.raw(t, a.device(t, "cam1"), h2.Config{}).register()
	for _, tt := range []struct{ claim, want string }{
		{"cam1.devices.example", "granted cam1.devices.example"},
		{"cam1.devices.example", "granted cam1.devices.example"}, // again
		{"a.cams.example", "granted a.cams.example"},
		{"b.a.cams.example", "granted b.a.cams.example"},
		{"cams.example", "refused cams.example the gateway lets"},
		{"cam2.devices.example", "refused cam2.devices.example the gateway lets"},
		{"xcam1.devices.example", "refused xcam1.devices.example the gateway lets"},
		{"{sa}.devices.example", "refused {sa}.devices.example the name holds"},
		{"*.cams.example", "refused *.cams.example the name holds"},
		{"*", "refused * the name holds"},
		{"CAM1.devices.example", "refused CAM1.devices.example not the canonical spelling"},
		{"cam1.devices.example.", "refused cam1.devices.example. not the canonical spelling"},
		{"cam1.devices.example:80", "refused cam1.devices.example:80 an IPv6 address stands"},
		{"fd00::1", "refused fd00::1 "},
		{"10.0.0.1", "refused 10.0.0.1 an address is no name"},
		{"0x7f.1", "refused 0x7f.1 "},
		{"a..cams.example", "refused a..cams.example the name has an empty label"},
		{"", "refused it has no host"},
		{"a b.cams.example", "refused a b.cams.example the name holds"},
		{"\x00.cams.example", "refused ?.cams.example the name holds"},
		{"é.cams.example", "refused ?.cams.example the name is not ASCII"},
	} {
		if got := r.claim(tt.claim); !strings.HasPrefix(got, tt.want) {
			t.Errorf("claim %q: %q, want %q", tt.claim, got, tt.want)
		}
	}
	a.wantAgents(t, 1, 3)
}

// An identity may be spelled in ways that names may not: its own name by {sa} is none then, or only what it is itself.
func TestAgentOwnName(t *testing.T) {
	a := newAgents(t, func(c *tunnel.Config) {
		c.Listeners[0].Agents = []tunnel.AgentConfig{{From: []string{"cluster.local/*"}, Names: []string{"{sa}.{ns}.example", "*.{x"}[:1]}}
	}, nil)
	for _, tt := range []struct{ account, claim, want string }{
		{"cam1", "cam1.devices.example", "granted"},
		{"a.b", "a.b.devices.example", "refused"},
		{"CAM1", "cam1.devices.example", "refused"},
		{"-a", "-a.devices.example", "refused"},
		{"a", "a.other.example", "refused"},
	} {
		r := a.raw(t, a.device(t, tt.account), h2.Config{}).register()
		if got := r.claim(tt.claim); !strings.HasPrefix(got, tt.want+" ") {
			t.Errorf("%s claims %q: %q, want %s", tt.account, tt.claim, got, tt.want)
		}
	}
}

// What an agent sends that is no claim, or too much of it, ends its registration, and the names go.
func TestAgentSaysTooMuch(t *testing.T) {
	for name, say := range map[string]func(io.Writer){
		"a million names": func(w io.Writer) {
			for i := range 1_000_000 {
				if _, err := fmt.Fprintf(w, "claim n%d.cams.example\n", i); err != nil {
					return
				}
			}
		},
		"one name a million times": func(w io.Writer) {
			for range 1_000_000 {
				if _, err := io.WriteString(w, "claim cam1.devices.example\n"); err != nil {
					return
				}
			}
		},
		"a line without end": func(w io.Writer) {
			for range 1000 {
				if _, err := io.WriteString(w, strings.Repeat("a", 1000)); err != nil {
					return
				}
			}
		},
		"another word": func(w io.Writer) { io.WriteString(w, "release cam1.devices.example\n") },
		"no line":      func(w io.Writer) { io.WriteString(w, "\n") },
		"HTTP":         func(w io.Writer) { io.WriteString(w, "GET / HTTP/1.1\r\n\r\n") },
	} {
		t.Run(name, func(t *testing.T) {
			a := newAgents(t, nil, nil)
			r := a.raw(t, a.device(t, "cam1"), h2.Config{}).register()
			if got := r.claim("cam1.devices.example"); !strings.HasPrefix(got, "granted ") {
				t.Fatalf("claim: %q", got)
			}
			read := make(chan struct{})
			go func() { // ends with the stream; waited for below
				defer close(read)
				io.Copy(io.Discard, r.st)
			}()
			say(r.st)
			a.wantAgents(t, 0, 0)
			if st := a.hub.Stats(); st.AgentsRefused != 1 {
				t.Errorf("%d agents refused, want 1", st.AgentsRefused)
			}
			r.conn.Close()
			<-read
		})
	}
}

// An agent that claims and does not read the answers loses the connection, and keeps nobody waiting.
func TestAgentDoesNotRead(t *testing.T) {
	a := newAgents(t, nil, nil)
	r := a.raw(t, a.device(t, "cam1"), h2.Config{StreamWindow: 100}).register()
	for i := range 60 {
		if _, err := fmt.Fprintf(r.st, "claim n%d.cams.example\n", i); err != nil {
			break
		}
	}
	done := make(chan error, 1)
	go func() { done <- a.hub.Reload(testContext(t), hubConfig()) }() // ends at once; waited for below
	if err := <-done; err != nil {
		t.Errorf("Reload = %v", err)
	}
	a.hub.Close()
}

// An agent registers once on a connection, and an identity not on more of them than it may have, nor again and again.
func TestAgentRegistersTooOften(t *testing.T) {
	t.Run("twice", func(t *testing.T) {
		a := newAgents(t, nil, nil)
		r := a.raw(t, a.device(t, "cam1"), h2.Config{}).register()
		if _, resp := r.ask(); resp.Status != 400 {
			t.Errorf("the second registration is answered %d, want 400", resp.Status)
		}
		if got := r.claim("cam1.devices.example"); !strings.HasPrefix(got, "granted ") {
			t.Errorf("the first does not stand: %q", got)
		}
	})
	t.Run("on many connections", func(t *testing.T) {
		a := newAgents(t, func(c *tunnel.Config) {
			c.Listeners[0].Agents[0].MaxConnections = 3
			c.Listeners[0].Agents[1].MaxConnections = 1
		}, nil)
		for range 3 {
			a.raw(t, a.device(t, "cam1"), h2.Config{}).register()
		}
		if _, resp := a.raw(t, a.device(t, "cam1"), h2.Config{}).ask(); resp.Status != 503 {
			t.Errorf("the fourth of three is answered %d, want 503", resp.Status)
		}
		a.raw(t, a.device(t, "cam2"), h2.Config{}).register() // another identity
	})
	t.Run("in a loop", func(t *testing.T) {
		a := newAgents(t, func(c *tunnel.Config) {
			c.Listeners[0].Agents[0].MaxConnections = 2
			c.Listeners[0].Agents[1].MaxConnections = 1
		}, nil)
		id, n := a.device(t, "cam1"), 0
		for range 100 {
			r := a.raw(t, id, h2.Config{})
			_, resp := r.ask()
			if resp.Status == 200 {
				n++
			}
			r.conn.Close()
			a.wantAgents(t, 0, 0)
		}
		if n < 8 || n > 30 {
			t.Errorf("%d of 100 registrations at once were taken, want some 8", n)
		}
	})
}

// What an agent does on its connection besides: other requests, CONNECT, promises, streams of the gateway's kind.
func TestAgentOpensStreams(t *testing.T) {
	a := newAgents(t, nil, nil)
	r := a.raw(t, a.device(t, "cam1"), h2.Config{}).register()
	for _, tt := range []struct {
		head   h2.Header
		status int
	}{
		{h2.Header{Method: "GET", Scheme: "https", Authority: "agents", Path: pathAgent}, 400},
		{h2.Header{Method: "POST", Scheme: "https", Authority: "agents", Path: "/"}, 400},
		{h2.Header{Method: "CONNECT", Authority: "10.0.0.2:80"}, 401},  // policy lets the namespace in that the hub is of
		{h2.Header{Method: "CONNECT", Authority: "127.0.0.1:80"}, 401}, // as above
		{h2.Header{Method: "CONNECT", Authority: "cam1.devices.example:80"}, 401},
	} {
		p := &peer{t: t, conn: r.conn}
		if _, resp := p.ask(&tt.head); resp.Status != tt.status {
			t.Errorf("%s %s%s: %d, want %d", tt.head.Method, tt.head.Authority, tt.head.Path, resp.Status, tt.status)
		}
	}
	if _, resp := (&peer{t: t, conn: mustPeer(t, a.net, a.device(t, "cam1"), hubListen).conn}).ask(&h2.Header{Method: "POST", Scheme: "https", Authority: "agents", Path: pathAgent}); resp.Status != 400 {
		t.Errorf("a registration on an ordinary connection is answered %d, want 400", resp.Status)
	}
	if got := r.claim("cam1.devices.example"); !strings.HasPrefix(got, "granted ") {
		t.Errorf("the registration does not stand after all that: %q", got)
	}
}

// An agent that does not answer, or that answers amiss, costs a flow its time and nobody anything else.
func TestAgentAnswersAmiss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgents(t, func(c *tunnel.Config) {
			c.Timeouts = tunnel.TimeoutConfig{Dial: 3 * time.Second, Open: 7 * time.Second}
		}, nil)
		tunneltest.Echo(t, a.net, camAddr+":8080")
		answer := make(chan func(*h2.Stream), 100)
		r := a.raw(t, a.device(t, "cam1"), h2.Config{Handler: func(s *h2.Stream) {
			defer s.Close()
			(<-answer)(s)
		}}).register()
		r.claim("a.cams.example")
		for _, tt := range []struct {
			name   string
			answer func(*h2.Stream)
			cause  tunnel.Cause
		}{
			{"never", func(s *h2.Stream) { <-s.Done() }, tunnel.CauseTimeout},
			{"slowly", func(s *h2.Stream) { time.Sleep(4 * time.Second); s.Respond(&h2.Header{Status: 200}, false) }, tunnel.CauseTimeout},
			{"with no", func(s *h2.Stream) { s.Respond(&h2.Header{Status: 401}, true) }, tunnel.CauseDenied},
			{"with a redirect", func(s *h2.Stream) { s.Respond(&h2.Header{Status: 302}, true) }, tunnel.CauseHopProtocol},
			{"by a reset", func(s *h2.Stream) { s.Reset(h2.InternalError) }, tunnel.CauseUnavailable},
			{"by a refusal", func(s *h2.Stream) { s.Reset(h2.RefusedStream) }, tunnel.CauseUnavailable},
		} {
			answer <- tt.answer
			start := time.Now()
			if err := a.refusal(t, "a.cams.example:80"); tunnel.CauseOf(err) != tt.cause || time.Since(start) > 3*time.Second {
				t.Errorf("an agent that answers %s: %v after %v, want %v within 3s", tt.name, err, time.Since(start), tt.cause)
			}
			time.Sleep(10 * time.Second)
		}
		// With another agent of the name the flow stands after the first one's time.
		a.agent(t, "cam2", nil, "a.cams.example")
		a.wantAgents(t, 2, 2)
		for range 10 {
			answer <- func(s *h2.Stream) { <-s.Done() }
			wantEcho(t, a.dial(t, "a.cams.example:80"), "the other agent")
			time.Sleep(time.Second)
		}
		a.hub.Close()
	})
}

// A gateway that floods its agent with streams: the agent's limits hold, it ends the connection, and dials again later.
func TestAgentIsFlooded(t *testing.T) {
	ca := tunneltest.NewCA(t)
	a := newAgents(t, nil, nil)
	a.ca = ca
	served := make(chan *h2.Conn, 10)
	hub := newFakeHub(t, a, func(c *h2.Conn) { served <- c })
	id := ca.Issue(t, "cluster.local", "devices", "cam1")
	tunneltest.NewGateway(t, a.net, camAddr, id, agentConfig(hub, "cam1.devices.example"), nil, nil, logTo(a.log))
	for range 2 {
		c, n := <-served, 0
		for ; n < 10_000; n++ {
			s, err := c.Open(testContext(t), &h2.Header{Method: "CONNECT", Authority: "cam1.devices.example:80"}, false)
			if err != nil {
				break // it was asked to leave
			}
			s.Reset(h2.Cancel)
			s.Close()
		}
		<-c.Done()
		var end *h2.ConnError
		if !errors.As(c.Err(), &end) || end.By != h2.Peer || n > 5000 {
			t.Errorf("a flood of streams ended after %d with %v, want the agent to end it", n, c.Err())
		}
	}
}

// newFakeHub listens as a gateway that takes every agent; with is called with each connection once it is registered.
func newFakeHub(t *testing.T, a *agents, with func(*h2.Conn)) string {
	t.Helper()
	const address = "10.0.0.4:15008"
	l, err := a.net.Listen(address)
	if err != nil {
		t.Fatal(err)
	}
	id := a.ca.Issue(t, "cluster.local", "default", "hub")
	done := make(chan struct{})
	go func() { // ends when the listener is closed; the clean-up waits for it
		defer close(done)
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			conf := id.AnyTLS()
			conf.NextProtos = []string{h2.ALPNBidirectional}
			c, err := h2.NewServer(tls.Server(nc, conf), &h2.Config{Bidirectional: true, Handler: func(s *h2.Stream) {
				defer s.Close()
				s.Respond(&h2.Header{Status: 200}, false)
				io.WriteString(s, "registered\ngranted cam1.devices.example\n")
				with(s.Conn())
				io.Copy(io.Discard, s)
			}})
			if err == nil {
				t.Cleanup(func() { c.Close() })
			}
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return address
}

// An agent that asks for several registrations of one connection at the same time gets one: the others would have names that
// nobody takes back.
func TestAgentRegistersTwiceAtOnce(t *testing.T) {
	a := newAgents(t, nil, nil)
	for i := range 8 {
		r := a.raw(t, a.device(t, fmt.Sprintf("cam%d", i)), h2.Config{})
		const asked = 8
		answers := make(chan int, asked)
		for range asked {
			go func() { // ends with the answer, which is waited for below
				st, err := r.conn.Open(testContext(t), &h2.Header{Method: "POST", Scheme: "https", Authority: "agents", Path: pathAgent}, false)
				if err != nil {
					answers <- 0
					return
				}
				resp, err := st.Response(testContext(t))
				if err != nil {
					answers <- 0
					return
				}
				answers <- resp.Status
			}()
		}
		taken := 0
		for range asked {
			if <-answers == 200 {
				taken++
			}
		}
		if taken != 1 {
			t.Fatalf("connection %d: %d of %d registrations at once were taken, want one", i, taken, asked)
		}
	}
}

// An agent that claims a name again while a reload takes it away does not keep it.
func TestAgentClaimsWhileANameIsTaken(t *testing.T) {
	var made atomic.Int64
	var between func()
	a := newAgents(t, nil, func(e *tunnel.Env) {
		e.Decide = func(base *policy.Policy) (tunnel.Decider, error) {
			generation := made.Add(1)
			return deciderFunc(func(r *policy.Request) policy.Decision {
				if generation == 2 { // live flows are decided again, before agents are looked at
					between()
				}
				return base.Decide(r)
			}), nil
		}
	})
	r := a.raw(t, a.device(t, "cam1"), h2.Config{Handler: func(s *h2.Stream) {
		s.Respond(&h2.Header{Status: 200}, false)
		<-s.Done()
		s.Close()
	}}).register()
	r.claim("a.cams.example")
	a.dial(t, "a.cams.example:80")
	between = sync.OnceFunc(func() { r.claim("a.cams.example") })
	less := hubConfig()
	less.Listeners[0].Agents = less.Listeners[0].Agents[:1]
	if err := a.hub.Reload(testContext(t), less); err != nil {
		t.Fatal(err)
	}
	if err := a.refusal(t, "a.cams.example:80"); tunnel.CauseOf(err) != tunnel.CauseUnknownHost {
		t.Errorf("the name that was taken = %v, want unknown host", err)
	}
}

// A flow that an agent answers after it has lost the name does not stand.
func TestAgentAnswersAfterANameIsTaken(t *testing.T) {
	for _, tt := range []struct {
		name string
		less func(*tunnel.Config)
	}{
		{"the name", func(c *tunnel.Config) { c.Listeners[0].Agents = c.Listeners[0].Agents[:1] }},
		{"all of it", func(c *tunnel.Config) {
			c.Listeners[0].Agents[0].From = []string{"cluster.local/ns/other/*"}
			c.Listeners[0].Agents = c.Listeners[0].Agents[:1]
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := newAgents(t, nil, nil)
			asked, answer := make(chan struct{}), make(chan struct{})
			r := a.raw(t, a.device(t, "cam1"), h2.Config{Handler: func(s *h2.Stream) {
				close(asked)
				<-answer
				s.Respond(&h2.Header{Status: 200}, false)
				<-s.Done()
				s.Close()
			}}).register()
			r.claim("a.cams.example")
			read := make(chan error, 1)
			go func() { // ends with the flow, which is waited for below
				c, err := tunneltest.Dial(testContext(t), a.hub, "apps", "a.cams.example:80")
				if err == nil {
					c.SetReadDeadline(time.Now().Add(5 * time.Second))
					_, err = c.Read(make([]byte, 1))
					c.Close()
				}
				read <- err
			}()
			<-asked
			less := hubConfig()
			tt.less(less)
			if err := a.hub.Reload(testContext(t), less); err != nil {
				t.Fatal(err)
			}
			close(answer)
			if err := <-read; !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the flow reads %v, want ECONNRESET", err)
			}
		})
	}
}
