package tunnel_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"culvert/policy"
	"culvert/tunnel"
	"culvert/tunnel/endpoint"
	"culvert/tunnel/tunneltest"
)

// traffic opens flows to a name, one after the other with pauses, until stop; then it tells how many there were and that none was
// refused.
func (a *agents) traffic(t *testing.T, target string, pause time.Duration) (stop func()) {
	t.Helper()
	ctx, end := context.WithCancel(t.Context())
	var n atomic.Int64
	var done sync.WaitGroup
	done.Go(func() { // ends with stop, which waits for it
		for ctx.Err() == nil {
			c, err := tunneltest.Dial(testContext(t), a.hub, "apps", target)
			if err != nil {
				t.Errorf("flow %d is refused: %v", n.Load(), err)
				return
			}
			_, _ = io.WriteString(c, "hello")
			_ = c.CloseWrite()
			if got, err := io.ReadAll(c); err != nil || string(got) != "hello" {
				t.Errorf("flow %d: %q, %v", n.Load(), got, err)
			}
			c.Close()
			n.Add(1)
			time.Sleep(pause)
		}
	})
	return func() {
		waitUntil(t, "some flows", func() bool { return n.Load() >= 10 || t.Failed() })
		end()
		done.Wait()
	}
}

// A reload of the agent, and the end of its certificate's time, move it to another connection: nothing is refused, and flows
// that live go on on the old one.
func TestAgentMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgents(t, nil, nil)
		tunneltest.Echo(t, a.net, camAddr+":8080")
		id := a.ca.IssueUntil(t, "cluster.local", "devices", "cam1", time.Now().Add(time.Minute))
		renewed := a.ca.Issue(t, "cluster.local", "devices", "cam1")
		var current atomic.Pointer[tunneltest.Identity]
		current.Store(id)
		cam := tunneltest.NewGateway(t, a.net, camAddr, id, agentConfig(hubListen, "cam1.devices.example"), nil, func(e *tunnel.Env) {
			e.ClientTLS = func(h *tunnel.Hop) *tls.Config { return shown(current.Load().ClientTLS(h)) }
		}, logTo(a.log))
		a.wantAgents(t, 1, 1)
		stop := a.traffic(t, "cam1.devices.example:80", 100*time.Millisecond)
		lives := a.dial(t, "cam1.devices.example:80")
		for _, names := range [][]string{{"cam1.devices.example", "a.cams.example"}, {"cam1.devices.example"}} {
			time.Sleep(time.Second)
			if err := cam.Reload(testContext(t), agentConfig(hubListen, names...)); err != nil {
				t.Fatal(err)
			}
			a.wantAgents(t, 1, len(names)) // the first one carries lives, and is not registered any more
		}
		time.Sleep(time.Second)
		current.Store(renewed)
		time.Sleep(time.Minute)
		stop()
		wantEcho(t, lives, "flows go on where they are")
		if log := a.log.String(); !strings.Contains(log, "the certificate shown on this one ends soon") {
			t.Errorf("the agent has not moved for its certificate:\n%.3000s", log)
		}
		cam.Close()
		a.hub.Close()
	})
}

// An agent that has long been registered and moves is not registered on the old connection any more, though flows live there: it
// would use up the connections that its identity may have.
func TestAgentMovesLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgents(t, nil, nil)
		tunneltest.Echo(t, a.net, camAddr+":8080")
		cam := a.agent(t, "cam1", nil, "cam1.devices.example")
		a.wantAgents(t, 1, 1)
		lives := a.dial(t, "cam1.devices.example:80")
		for _, names := range [][]string{{"cam1.devices.example", "a.cams.example"}, {"cam1.devices.example"}} {
			time.Sleep(time.Minute)
			if err := cam.Reload(testContext(t), agentConfig(hubListen, names...)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			a.wantAgents(t, 1, len(names))
		}
		wantEcho(t, lives, "flows go on where they are")
		cam.Close()
		a.hub.Close()
	})
}

// A hop that leaves, as one does that is replaced by a new process, gets no new flows and the agent dials its successor.
func TestAgentLeavesADrainingHop(t *testing.T) {
	a := newAgents(t, nil, nil)
	tunneltest.Echo(t, a.net, camAddr+":8080")
	a.agent(t, "cam1", nil, "cam1.devices.example")
	a.wantAgents(t, 1, 1)
	lives := a.dial(t, "cam1.devices.example:80")
	drained := make(chan error, 1)
	old := a.hub
	go func() { drained <- old.Drain(testContext(t)) }() // ends with the flow; waited for below
	waitUntil(t, "the old one to leave", func() bool { return len(old.Agents(1)) == 0 })
	a.hub = tunneltest.NewGateway(t, a.net, hubAddr, a.ca.Issue(t, "cluster.local", "default", "hub"), hubConfig(), nil, nil, logTo(a.log))
	a.wantAgents(t, 1, 1)
	wantEcho(t, a.dial(t, "cam1.devices.example:80"), "the successor")
	wantEcho(t, lives, "flows go on where they are")
	lives.Close()
	if err := <-drained; err != nil {
		t.Errorf("Drain = %v", err)
	}
}

// An agent that drains is left by the gateway at once; flows that live go on.
func TestAgentDrains(t *testing.T) {
	a := newAgents(t, nil, nil)
	tunneltest.Echo(t, a.net, camAddr+":8080")
	first := a.agent(t, "cam1", nil, "a.cams.example")
	a.agent(t, "cam2", nil, "a.cams.example")
	a.wantAgents(t, 2, 2)
	stop := a.traffic(t, "a.cams.example:80", 5*time.Millisecond)
	lives := a.dial(t, "a.cams.example:80")
	lives2 := a.dial(t, "a.cams.example:80")
	drained := make(chan error, 1)
	go func() { drained <- first.Drain(testContext(t)) }() // ends with the flow; waited for below
	a.wantAgents(t, 1, 1)
	stop()
	wantEcho(t, lives, "it goes on")
	wantEcho(t, lives2, "it goes on")
	lives.Close()
	lives2.Close()
	if err := <-drained; err != nil {
		t.Errorf("Drain = %v", err)
	}
}

// An agent registers through a chain: the hop before sees TLS, and no more.
func TestAgentThroughAChain(t *testing.T) {
	a := newAgents(t, nil, nil)
	tunneltest.Echo(t, a.net, camAddr+":8080")
	tunneltest.NewGateway(t, a.net, "10.0.0.5", a.ca.Issue(t, "cluster.local", "default", "lb"), &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "mesh", Kind: tunnel.KindHBONE, Address: "10.0.0.5:15008"}},
		Routes:    []tunnel.RouteConfig{{Destinations: []string{hubListen}}},
		Policy:    policy.Config{Allow: []string{"cluster.local/ns/devices/*"}},
	}, nil, nil, logTo(a.log))
	a.agent(t, "cam1", func(c *tunnel.Config) {
		c.Hops["lb"] = tunnel.HopConfig{Address: "10.0.0.5:15008", Identity: "spiffe://cluster.local/ns/default/sa/lb"}
		c.Listeners[0].Via = []string{"lb"}
	}, "cam1.devices.example")
	a.wantAgents(t, 1, 1)
	if src := a.hub.Agents(1)[0].Src; !strings.HasPrefix(src, "10.0.0.5:") {
		t.Errorf("the agent comes from %s, want the hop before", src)
	}
	wantEcho(t, a.dial(t, "cam1.devices.example:80"), strings.Repeat("through a chain ", 1000))
}

// An agent of a hop with several addresses has a connection to each, and several where that is wanted.
func TestAgentAtSeveralAddresses(t *testing.T) {
	a := newAgents(t, func(c *tunnel.Config) {
		second := c.Listeners[0]
		second.Name, second.Address = "mesh2", hubAddr+":15009"
		c.Listeners = append(c.Listeners, second)
	}, nil)
	tunneltest.Echo(t, a.net, camAddr+":8080")
	a.agent(t, "cam1", func(c *tunnel.Config) {
		hop := tunnel.HopConfig{Identity: c.Hops["hub"].Identity}
		hop.Endpoints = append(hop.Endpoints, endpoint.EndpointConfig{Address: hubListen}, endpoint.EndpointConfig{Address: hubAddr + ":15009"})
		c.Hops["hub"], c.Listeners[0].Connections = hop, 2
	}, "cam1.devices.example")
	a.wantAgents(t, 4, 4)
	for range 8 {
		defer a.dial(t, "cam1.devices.example:80").Close()
	}
	for _, info := range a.hub.Agents(10) {
		if info.Flows != 2 {
			t.Errorf("%d flows of 8 on one of four connections, want 2", info.Flows)
		}
	}
}

// A Go program is an agent by itself: each tunnel is a connection, at any port of its names.
func TestListenAgent(t *testing.T) {
	a := newAgents(t, nil, nil)
	id := a.ca.Issue(t, "cluster.local", "devices", "cam1")
	env := tunnel.Env{Self: id.Self, ClientTLS: id.ClientTLS, Dial: a.net.From(netip.MustParseAddr(camAddr))}
	hop := tunnel.HopConfig{Address: hubListen, Identity: "spiffe://cluster.local/ns/default/sa/hub"}
	l, err := tunnel.ListenAgent(testContext(t), hop, []string{"cam1.devices.example"}, env, policy.Config{Allow: []string{"cluster.local/ns/default/sa/hub"}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Cut()
	if l.Addr().Network() != "agent" {
		t.Errorf("Addr = %v, want that of an agent", l.Addr())
	}
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // ends with the connection
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	for _, port := range []string{"80", "65535"} {
		c := a.dial(t, "cam1.devices.example:"+port)
		wantEcho(t, c, "a program")
		c.Close()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	hop.Address = "10.0.0.9:15008"
	if _, err := tunnel.ListenAgent(ctx, hop, nil, env, policy.Config{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ListenAgent at nobody = %v, want %v and why", err, context.DeadlineExceeded)
	}
}

// shown has a client choose its certificate as a gateway does, which sees by that when it ends.
func shown(conf *tls.Config) *tls.Config {
	cert := conf.Certificates[0]
	cert.Leaf, _ = x509.ParseCertificate(cert.Certificate[0])
	conf.Certificates = nil
	conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
	return conf
}
