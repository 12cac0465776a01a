package tunnel_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"culvert/policy"
	"culvert/tunnel"
	"culvert/tunnel/tunneltest"
	"culvert/tunnel/tunneltest/memnet"
)

// Hosts of the tests with agents. An agent's is behind a NAT: nobody could dial it.
const (
	hubAddr   = "10.0.0.2"
	hubListen = hubAddr + ":15008"
	camAddr   = "192.168.1.7"
)

// agents is a gateway with agents that have dialled it, in one process.
type agents struct {
	net *memnet.Net
	ca  *tunneltest.CA
	hub *tunnel.Gateway
	log *tunneltest.Log
}

// hubConfig takes the agents of the namespace devices, each under its own name and those of cams.
func hubConfig() *tunnel.Config {
	return &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{
			{Name: "mesh", Kind: tunnel.KindHBONE, Address: hubListen, Agents: []tunnel.AgentConfig{
				{From: []string{"cluster.local/ns/devices/*"}, Names: []string{"{sa}.devices.example"}},
				{From: []string{"cluster.local/ns/devices/sa/cam1", "cluster.local/ns/devices/sa/cam2"}, Names: []string{"*.cams.example"}},
			}},
			{Name: "apps", Kind: tunnel.KindSOCKS5, Address: "127.0.0.1:1080"},
		},
		Routes: []tunnel.RouteConfig{{Listeners: []string{"apps"}, Hosts: []string{"*.example"}, Destinations: []string{"fd00::/8"}, Agents: true}},
	}
}

// newAgents starts the gateway. mend may be nil.
func newAgents(t *testing.T, mend func(*tunnel.Config), mendEnv func(*tunnel.Env)) *agents {
	t.Helper()
	a := &agents{net: memnet.New(), ca: tunneltest.NewCA(t), log: &tunneltest.Log{}}
	a.hub = tunneltest.NewGateway(t, a.net, hubAddr, a.ca.Issue(t, "cluster.local", "default", "hub"), hubConfig(), mend, mendEnv, logTo(a.log))
	return a
}

// agentConfig is that of an agent which offers its port 8080 as port 80.
func agentConfig(hop string, names ...string) *tunnel.Config {
	return &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "home", Kind: tunnel.KindAgent, Hop: "hub", Names: names, Offer: map[uint16]string{80: camAddr + ":8080"}}},
		Hops:      map[string]tunnel.HopConfig{"hub": {Address: hop, Identity: "spiffe://cluster.local/ns/default/sa/hub"}},
		Policy:    policy.Config{Allow: []string{"cluster.local/ns/default/sa/hub"}},
	}
}

// agent starts an agent with an identity of the namespace devices.
func (a *agents) agent(t *testing.T, account string, mend func(*tunnel.Config), names ...string) *tunnel.Gateway {
	t.Helper()
	id := a.ca.Issue(t, "cluster.local", "devices", account)
	return tunneltest.NewGateway(t, a.net, camAddr, id, agentConfig(hubListen, names...), mend, nil, logTo(a.log))
}

// wantAgents waits until so many connections of agents are registered, with so many names in all.
func (a *agents) wantAgents(t *testing.T, conns, names int) {
	t.Helper()
	waitUntil(t, fmt.Sprintf("%d agents with %d names", conns, names), func() bool {
		list, n := a.hub.Agents(1000), 0
		for i := range list {
			n += len(list[i].Names)
		}
		return len(list) == conns && n == names
	})
}

// dial opens a flow at the gateway.
func (a *agents) dial(t *testing.T, target string) *memnet.Conn {
	t.Helper()
	c, err := tunneltest.Dial(testContext(t), a.hub, "apps", target)
	if err != nil {
		t.Fatalf("Dial(%s) = %v\n%s", target, err, a.log)
	}
	return c
}

// refusal is why a flow at the gateway is refused.
func (a *agents) refusal(t *testing.T, target string) error {
	t.Helper()
	c, err := tunneltest.Dial(testContext(t), a.hub, "apps", target)
	if err == nil {
		c.Close()
		return tunneltest.ErrNotRefused
	}
	return err
}

// An agent is reached by the name that it claims and by the addresses of its key, half-closed as well, and both ends tell who
// the other one is.
func TestAgentIsReached(t *testing.T) {
	a := newAgents(t, nil, nil)
	tunneltest.Echo(t, a.net, camAddr+":8080")
	a.agent(t, "cam1", nil, "cam1.devices.example")
	a.wantAgents(t, 1, 1)
	info := a.hub.Agents(10)[0]
	if info.Peer != "spiffe://cluster.local/ns/devices/sa/cam1" || info.Listener != "mesh" || len(info.Addrs) != 2 || len(info.Refused) != 0 {
		t.Errorf("Agents = %+v, want one with its identity, a name and two addresses", info)
	}
	targets := []string{"cam1.devices.example:80"}
	for _, addr := range info.Addrs {
		targets = append(targets, netip.AddrPortFrom(netip.MustParseAddr(addr), 80).String())
	}
	for _, target := range targets {
		c := a.dial(t, target)
		wantEcho(t, c, strings.Repeat("hello ", 10_000))
	}
	if err := a.refusal(t, "cam1.devices.example:81"); tunnel.CauseOf(err) != tunnel.CauseNoRoute {
		t.Errorf("a port that is not offered = %v, want no route of the agent", err)
	}
	if err := a.refusal(t, "cam2.devices.example:80"); tunnel.CauseOf(err) != tunnel.CauseUnknownHost {
		t.Errorf("a name that nobody has = %v, want unknown host", err)
	}
	waitUntil(t, "the records", func() bool { return strings.Count(a.log.String(), "msg=flow") >= 8 })
	log := a.log.String()
	for _, want := range []string{"hop=agents hop_id=spiffe://cluster.local/ns/devices/sa/cam1", "peer=spiffe://cluster.local/ns/default/sa/hub",
		"dst=" + camAddr + ":8080", "agent is registered"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log has no %s:\n%s", want, log)
		}
	}
	if n := a.hub.Agents(10)[0].Flows; n != 0 {
		t.Errorf("%d flows are counted when all have ended", n)
	}
}

// The deputy: a name that belongs to another is refused, with a reason at both ends, while the others of the same connection
// stand; flows to it go to its owner and to nobody else.
func TestAgentClaimsAnothersName(t *testing.T) {
	a := newAgents(t, nil, nil)
	tunneltest.Echo(t, a.net, camAddr+":8080")
	a.agent(t, "cam9", nil, "cam1.devices.example", "cam9.devices.example", "x.cams.example")
	a.wantAgents(t, 1, 1)
	if got := a.hub.Agents(1)[0]; !slices.Equal(got.Names, []string{"cam9.devices.example"}) || len(got.Refused) != 2 {
		t.Errorf("names %v, refused %v; want its own name only", got.Names, got.Refused)
	}
	if err := a.refusal(t, "cam1.devices.example:80"); tunnel.CauseOf(err) != tunnel.CauseUnknownHost {
		t.Errorf("the name of another = %v, want unknown host", err)
	}
	wantEcho(t, a.dial(t, "cam9.devices.example:80"), "its own")
	waitUntil(t, "the agent to hear of it", func() bool { return strings.Contains(a.log.String(), "agent does not get a name") })
	log := a.log.String()
	if !strings.Contains(log, `msg="agent refused"`) || !strings.Contains(log, `msg="agent does not get a name"`) || !strings.Contains(log, "lets this agent claim no such name") {
		t.Errorf("the log does not tell both sides why:\n%s", log)
	}
	if st := a.hub.Stats(); st.Agents != 1 || st.ClaimsRefused != 2 {
		t.Errorf("Stats: %d agents, %d claims refused, want 1 and 2", st.Agents, st.ClaimsRefused)
	}
}

// A peer that may not register is told so, and reaches nothing; neither does one that speaks the protocol where no agents
// are taken.
func TestAgentMayNotRegister(t *testing.T) {
	a := newAgents(t, nil, nil)
	id := a.ca.Issue(t, "cluster.local", "shop", "cam1")
	tunneltest.NewGateway(t, a.net, camAddr, id, agentConfig(hubListen, "cam1.devices.example"), nil, nil, logTo(a.log))
	waitUntil(t, "the refusal", func() bool {
		return strings.Contains(a.log.String(), "the hop lets this agent not register")
	})
	if st := a.hub.Stats(); st.Agents != 0 || st.AgentsRefused == 0 {
		t.Errorf("Stats: %d agents, %d refused, want 0 and some", st.Agents, st.AgentsRefused)
	}
	none := tunneltest.NewGateway(t, a.net, "10.0.0.3", a.ca.Issue(t, "cluster.local", "default", "hub"), &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "mesh", Kind: tunnel.KindHBONE, Address: "10.0.0.3:15008"}},
	}, nil, nil, slog.DiscardHandler)
	tunneltest.NewGateway(t, a.net, camAddr, id, agentConfig("10.0.0.3:15008"), nil, nil, logTo(a.log))
	waitUntil(t, "the alert", func() bool { return strings.Contains(a.log.String(), "the hop takes no agents") })
	if n := len(none.Agents(10)); n != 0 {
		t.Errorf("%d agents where none are taken", n)
	}
}

// Two agents share a name: flows go to the one with less to do; when one is killed the other has the next flow at once.
func TestAgentsShareAName(t *testing.T) {
	a := newAgents(t, nil, nil)
	tunneltest.Echo(t, a.net, camAddr+":8080")
	a.agent(t, "cam1", nil, "a.cams.example")
	second := a.agent(t, "cam2", nil, "a.cams.example")
	a.wantAgents(t, 2, 2)
	var open []*memnet.Conn
	for range 20 {
		open = append(open, a.dial(t, "a.cams.example:80"))
	}
	for _, info := range a.hub.Agents(10) {
		if info.Flows != 10 {
			t.Errorf("%s has %d flows of 20, want 10", info.Peer, info.Flows)
		}
	}
	second.Close()
	for range 20 {
		c := a.dial(t, "a.cams.example:80")
		wantEcho(t, c, "at once")
	}
	lived := 0
	for _, c := range open {
		if _, err := c.Write([]byte("x")); err == nil {
			if n, _ := c.Read(make([]byte, 1)); n == 1 {
				lived++
			}
		}
		c.Close()
	}
	if lived != 10 {
		t.Errorf("%d flows live on, want the 10 of the other agent", lived)
	}
}

// An agent that cannot reach what it offers is no end of a flow while there is another of that name.
func TestAgentFailover(t *testing.T) {
	a := newAgents(t, nil, nil)
	tunneltest.Echo(t, a.net, camAddr+":8080")
	a.agent(t, "cam1", nil, "a.cams.example")
	a.agent(t, "cam2", func(c *tunnel.Config) { c.Listeners[0].Offer[80] = camAddr + ":9999" }, "a.cams.example")
	a.wantAgents(t, 2, 2)
	for range 10 {
		wantEcho(t, a.dial(t, "a.cams.example:80"), "the one that works")
	}
	if n := a.hub.Stats().Retries; n == 0 {
		t.Error("no flow was tried again, though one of two agents cannot carry any")
	}
}

// What the configuration no longer allows ends: the name, and the flows to it, while the rest of the connection stands; what
// it allows again comes back without the agent's doing.
func TestAgentReloadWithdrawsAName(t *testing.T) {
	a := newAgents(t, nil, nil)
	tunneltest.Echo(t, a.net, camAddr+":8080")
	a.agent(t, "cam1", nil, "cam1.devices.example", "a.cams.example")
	a.wantAgents(t, 1, 2)
	ends, lives := a.dial(t, "a.cams.example:80"), a.dial(t, "cam1.devices.example:80")
	less := hubConfig()
	less.Listeners[0].Agents = less.Listeners[0].Agents[:1]
	if err := a.hub.Reload(testContext(t), less); err != nil {
		t.Fatal(err)
	}
	if _, err := ends.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the flow to the name that was taken reads %v, want ECONNRESET", err)
	}
	wantEcho(t, lives, "the other name stands")
	a.wantAgents(t, 1, 1)
	if err := a.refusal(t, "a.cams.example:80"); tunnel.CauseOf(err) != tunnel.CauseUnknownHost {
		t.Errorf("the name that was taken = %v, want unknown host", err)
	}
	waitUntil(t, "the agent to hear of it", func() bool { return strings.Contains(a.log.String(), "agent loses a name") })
	if err := a.hub.Reload(testContext(t), hubConfig()); err != nil {
		t.Fatal(err)
	}
	a.wantAgents(t, 1, 2)
	wantEcho(t, a.dial(t, "a.cams.example:80"), "it is back")
	none := hubConfig()
	none.Listeners[0].Agents = nil
	none.Routes[0].Agents, none.Routes[0].Via = false, []string{"10.0.0.9:1"}
	if err := a.hub.Reload(testContext(t), none); err != nil {
		t.Fatal(err)
	}
	a.wantAgents(t, 0, 0)
}

// When an agent is not believed any more its registration ends, with its flows; when its gateway is not, it leaves that.
func TestAgentRecheck(t *testing.T) {
	var d doubter
	a := newAgents(t, nil, func(e *tunnel.Env) {
		e.Doubt = d.ask
		tlsOf := e.ServerTLS
		e.ServerTLS = func(l string) *tls.Config {
			conf := tlsOf(l)
			verify := conf.VerifyConnection
			conf.VerifyConnection = func(cs tls.ConnectionState) error { return errors.Join(verify(cs), d.ask(cs.PeerCertificates, false)) }
			return conf
		}
	})
	tunneltest.Echo(t, a.net, camAddr+":8080")
	a.agent(t, "cam1", nil, "cam1.devices.example")
	a.wantAgents(t, 1, 1)
	c := a.dial(t, "cam1.devices.example:80")
	d.doubt("cam1")
	a.hub.Recheck()
	if err := a.refusal(t, "cam1.devices.example:80"); err == nil {
		t.Error("a flow went to an agent that is not believed any more")
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the flow reads %v, want ECONNRESET", err)
	}
	waitUntil(t, "the record", func() bool { return a.hub.Stats().Ended["revoked"] >= 1 })
	a.wantAgents(t, 0, 0)
}

// An agent whose connection is lost dials again at once: a flow that comes meanwhile waits for it.
func TestAgentComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgents(t, nil, nil)
		tunneltest.Echo(t, a.net, camAddr+":8080")
		cam := a.agent(t, "cam1", nil, "cam1.devices.example")
		a.wantAgents(t, 1, 1)
		for range 3 {
			time.Sleep(time.Minute)
			lost := a.dial(t, "cam1.devices.example:80")
			a.net.Cut(netip.MustParseAddrPort(hubListen))
			if _, err := lost.Read(make([]byte, 1)); err == nil {
				t.Error("a flow ended well whose connection was cut")
			}
			start := time.Now()
			wantEcho(t, a.dial(t, "cam1.devices.example:80"), "it is back")
			if d := time.Since(start); d > 2*time.Second {
				t.Errorf("it was back after %v, want 2 s at most", d)
			}
		}
		cam.Close()
		time.Sleep(11 * time.Second)
		start := time.Now()
		if err := a.refusal(t, "cam1.devices.example:80"); tunnel.CauseOf(err) != tunnel.CauseUnknownHost || time.Since(start) > 0 {
			t.Errorf("an agent that has gone for good = %v after %v, want unknown host at once", err, time.Since(start))
		}
		a.hub.Close()
	})
}

// A connection that something between has forgotten is found by both ends within 20 s.
func TestAgentHalfOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgents(t, nil, nil)
		silent := false
		a.net.Over(func(netip.Addr, netip.AddrPort) (out, back memnet.Link) {
			if silent {
				return
			}
			silent = true
			l := memnet.Link{Stalls: []memnet.Stall{{After: time.Minute, For: time.Hour}}}
			return l, l
		})
		tunneltest.Echo(t, a.net, camAddr+":8080")
		a.agent(t, "cam1", nil, "cam1.devices.example")
		a.wantAgents(t, 1, 1)
		first := a.hub.Agents(1)[0].Since
		time.Sleep(time.Minute)
		start := time.Now()
		waitUntil(t, "another connection", func() bool {
			list := a.hub.Agents(2)
			return len(list) == 1 && list[0].Since != first
		})
		if d := time.Since(start); d > 20*time.Second {
			t.Errorf("found after %v, want 20 s at most", d)
		}
		wantEcho(t, a.dial(t, "cam1.devices.example:80"), "the new connection")
	})
}

// A pattern by which two identities could claim one name is none.
func TestAgentPatterns(t *testing.T) {
	for name, good := range map[string]bool{
		"{sa}.devices.example": true, "cam-{sa}.devices.example": true, "{sa}.{ns}.example": true, "{ns}.x-{sa}-y.example": true,
		"{sa}-{ns}.devices.example": false, // a of b-c is a-b of c
		"{ns}x{sa}.devices.example": false,
		"{sa}{ns}.example":          false,
		"{x}.devices.example":       false,
		"*.{sa}.example":            false,
	} {
		cfg := hubConfig()
		cfg.Listeners[0].Agents[0].Names = []string{name}
		if err := cfg.Validate(); (err == nil) != good {
			t.Errorf("names: [%s]: %v", name, err)
		}
	}
}
