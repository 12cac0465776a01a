package ingress_test

import (
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"culvert/policy"
	"culvert/tunnel"
	"culvert/tunnel/tunneltest"
)

// Requests that share a tunnel: the record of each names who the hop is, and the trace by which the hop's record has the tunnel.
func TestRecordsNameTheHop(t *testing.T) {
	e := newEdge(t, func(c *tunnel.Config) {
		c.Hops = map[string]tunnel.HopConfig{"shop": {Address: "10.0.0.2:15008", Identity: "spiffe://cluster.local/ns/default/sa/exit"}}
		c.Routes[0].Via = []string{"shop"}
	})
	var log tunneltest.Log
	exit := tunneltest.NewGateway(t, e.net, "10.0.0.2", e.ca.Issue(t, "cluster.local", "default", "exit"), &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "mesh", Kind: tunnel.KindHBONE, Address: "10.0.0.2:15008"}},
		Routes:    []tunnel.RouteConfig{{Destinations: []string{"10.0.0.0/8"}}},
		Policy:    policy.Config{Egress: []string{"10.0.0.0/8"}},
	}, nil, nil, slog.NewTextHandler(&log, nil))
	e.serve(t, appListen, echo)
	c := e.client(t, http1)
	for range 2 {
		resp, err := c.Get("http://shop.example/")
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%v, %v\n%s\n%s", resp, err, e.log, &log)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
	}
	e.gw.Close()
	exit.Close()
	_, tunnelTrace, _ := strings.Cut(log.String(), " trace=")
	tunnelTrace, _, _ = strings.Cut(tunnelTrace, " ")
	records := 0
	for line := range strings.Lines(e.log.String()) {
		if !strings.Contains(line, "msg=flow ") {
			continue
		}
		records++
		if !strings.Contains(line, " hop_id=spiffe://cluster.local/ns/default/sa/exit ") || len(tunnelTrace) != 32 || !strings.Contains(line, "trace="+tunnelTrace) {
			t.Errorf("the record lacks the hop's identity, or the trace %s of the tunnel: %s", tunnelTrace, line)
		}
	}
	if records != 2 || strings.Count(log.String(), "msg=flow ") != 1 {
		t.Errorf("%d records here, want 2, for one tunnel:\n%s\n%s", records, e.log, &log)
	}
}

// A request that is refused before policy is asked has a record that says which it was.
func TestRecordsOfRefusedRequests(t *testing.T) {
	e := newEdge(t, func(c *tunnel.Config) { c.Routes[0].Hosts = []string{"shop.example"} })
	if resp, _ := e.say(t, "GET /a?q HTTP/1.1\r\nHost: other.example\r\n\r\n"); resp.StatusCode != http.StatusNotFound {
		t.Errorf("answer %d, want 404", resp.StatusCode)
	}
	e.gw.Close()
	if log := e.log.String(); !strings.Contains(log, "reason=no-route") || !strings.Contains(log, "decided=none method=GET path=/a authority=other.example") {
		t.Errorf("the record does not say which request it was:\n%s", log)
	}
}
