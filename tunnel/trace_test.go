package tunnel_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"culvert/tunnel"
	"culvert/tunnel/h2"
	"culvert/tunnel/tunneltest"
)

// tracesIn returns the traces of the records of flows in log, sorted, "" for a record without one.
func tracesIn(log *tunneltest.Log) (list []string) {
	trace := regexp.MustCompile(` trace=(\S*)`)
	for line := range strings.Lines(log.String()) {
		if !strings.Contains(line, "msg=flow") {
			continue
		}
		if m := trace.FindStringSubmatch(line); m != nil {
			list = append(list, m[1])
		} else {
			list = append(list, "")
		}
	}
	slices.Sort(list)
	return list
}

// A flow has one trace in the records and among the live flows of both gateways, whether it was carried or
// refused, and every flow another one.
func TestFlowIsJoinedByItsTrace(t *testing.T) {
	c := newChained(t, nil, nil)
	tunneltest.Echo(t, c.net, "10.0.0.3:80")
	conn, err := tunneltest.Dial(testContext(t), c.entry, "apps", "10.0.0.3:80")
	if err != nil {
		t.Fatal(err)
	}
	entry, b := c.entry.Flows(10), c.b.Flows(10)
	if len(entry) != 1 || len(b) != 1 || entry[0].Trace != b[0].Trace || len(entry[0].Trace) != 32 {
		t.Errorf("live flows %+v at the entry, %+v at b, want one each with the same trace", entry, b)
	}
	wantEcho(t, conn, "x")
	if _, err := tunneltest.Dial(testContext(t), c.entry, "apps", "10.0.0.3:81"); err == nil {
		t.Fatal("dial of a port where nobody listens succeeded")
	}
	for _, g := range []*tunnel.Gateway{c.entry, c.a, c.b} {
		g.Close()
	}
	atEntry, atB := tracesIn(c.logs["entry"]), tracesIn(c.logs["b"])
	if len(atEntry) != 2 || len(atB) != 2 || atEntry[0] == atEntry[1] || !slices.Equal(atEntry, atB) {
		t.Errorf("traces %v at the entry, %v at b, want the same two", atEntry, atB)
	}
	if atA := tracesIn(c.logs["a"]); len(atA) != 1 || atA[0] == atEntry[0] || atA[0] == atEntry[1] {
		t.Errorf("traces %v at a, want one, of no flow that it carries inside", atA)
	}
}

// A peer's trace is shown as it is, whether it is believed or not, but only where it is one; it goes on only
// if it is believed.
func TestTraceOfAPeer(t *testing.T) {
	const id = "0af7651916cd43dd8448eb211c80319c"
	for _, tt := range []struct {
		name, traceparent string
		trust             []string
		shown             string
		goesOn            bool
	}{
		{"of a trusted peer", "00-" + id + "-b7ad6b7169203331-01", []string{"cluster.local/ns/default/*"}, id, true},
		{"of another peer", "00-" + id + "-b7ad6b7169203331-01", nil, id, false},
		{"not valid", "00-" + id + "-b7ad6b7169203331-01 rule=forged", []string{"cluster.local/ns/default/*"}, "", false},
		{"none", "", nil, "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := tunneltest.NewPair(t, tunneltest.Options{Exit: func(c *tunnel.Config) {
				c.TrustHeaders = tt.trust
				c.Routes = []tunnel.RouteConfig{{Via: []string{"10.0.0.3:15008"}}}
			}})
			hop := newFakeHop(t, p.Net, p.CA.Issue(t, "cluster.local", "default", "far"), "10.0.0.3:15008", echo)
			peer := mustPeer(t, p.Net, p.CA.Issue(t, "cluster.local", "default", "client"), tunneltest.ExitListen)
			if status, proxy := peer.status("svc.example:80", h2.Field{Name: "traceparent", Value: tt.traceparent}); status != 200 {
				t.Fatalf("answer %d, %s, want 200", status, proxy)
			}
			sent := (<-hop.asked).Get("traceparent")
			if strings.Contains(sent, id) != tt.goesOn {
				t.Errorf("the next hop gets traceparent %s; the peer's goes on: want %v", sent, tt.goesOn)
			}
			p.Exit.Close()
			want := tt.shown
			if want == "" {
				want = sent[3:35]
			}
			if got := tracesIn(p.Log); len(got) != 1 || got[0] != want {
				t.Errorf("traces in the records %q, want %q", got, want)
			}
			if next := " next_trace=" + sent[3:35]; strings.Contains(p.Log.String(), " next_trace=") != (want != sent[3:35]) || want != sent[3:35] && !strings.Contains(p.Log.String(), next) {
				t.Errorf("the record does not have%s, in which the flow went on, just where that is another one:\n%s", next, p.Log)
			}
		})
	}
}
