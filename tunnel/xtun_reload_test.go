package tunnel_test

import (
	"errors"
	"testing"

	"culvert/tunnel"
	"culvert/tunnel/h2"
	"culvert/tunnel/tunneltest"
)

// A reload has another kind of listener at the address of one that took x-tun: what a proxy asks for on a connection that it has
// kept is refused.
func TestXTunConnectionOutlivesItsListener(t *testing.T) {
	var config tunnel.Config
	p := newOuterPair(t, "POST", outerOptions{exit: func(c *tunnel.Config) { config = *c }})
	kept := p.proxy(t)
	if _, resp := kept.ask(post(good, toEcho)); resp.Status != 200 {
		t.Fatalf("answer %d", resp.Status)
	}
	config.Listeners = []tunnel.ListenerConfig{{Name: "tun", Kind: tunnel.KindHBONE, Address: tunListen}}
	if err := p.exit.Reload(testContext(t), &config); err != nil {
		t.Fatal(err)
	}
	if _, resp := kept.ask(post(good, toEcho)); resp.Status != 503 {
		t.Errorf("answer %d, want 503\n%s", resp.Status, p.log)
	}
}

// Whose tokens a listener does not take any more after a reload, they start no new flow inside of a request that came before.
func TestXTunListenerTakesOthersAfterAReload(t *testing.T) {
	var config tunnel.Config
	p := newOuterPair(t, "POST", outerOptions{exit: func(c *tunnel.Config) { config = *c }})
	tunneltest.Echo(t, p.net, "10.0.0.2:80")
	in, err := p.inside(t, "10.0.0.2:80", p.ca.Issue(t, "cluster.local", "default", "entry").AnyTLS())
	if err != nil {
		t.Fatal(err)
	}
	if status, proxy := in.status("10.0.0.2:80"); status != 200 {
		t.Fatalf("answer %d, %s", status, proxy)
	}
	config.Listeners[0].XTun = &tunnel.XTunConfig{Issuers: []string{"https://other.example"}}
	if err := p.exit.Reload(testContext(t), &config); err != nil {
		t.Fatal(err)
	}
	s, err := in.conn.Open(testContext(t), &h2.Header{Method: "CONNECT", Authority: "10.0.0.2:80"}, false)
	if err == nil {
		_, err = s.Response(testContext(t))
	}
	var refused *h2.StreamError
	if !errors.As(err, &refused) || refused.Code != h2.RefusedStream {
		t.Errorf("a new flow: %v, want REFUSED_STREAM, so that the peer asks again with another token", err)
	}
}
